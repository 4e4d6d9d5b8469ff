"""The seam between the engine and what is learnt."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from cvtrain.errors import ConfigError


class Metric(NamedTuple):
    name: str  # as in reports, without its `val/`
    higher_is_better: bool


class Evaluator(Protocol):
    """Counts over an evaluation. `totals` are summed over processes before `compute` divides."""

    totals: dict[str, Tensor]  # scalars: sums and counts, float64 or int64

    def update(self, predictions: Any, batch: Any) -> None: ...

    def compute(self) -> dict[str, float]: ...


class Task:
    """Base of every task. It never sees devices, processes, precision, EMA or checkpoints."""

    primary: Metric  # picks best.pt, and is what a sweep optimises

    def losses(self, model: nn.Module, batch: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """Named (sum, count) pairs, each a scalar tensor.

        The engine adds sums and counts over micro-batches and processes before it divides. A pair
        whose sum carries no gradient is a figure to report, not a part of the loss.
        """
        raise NotImplementedError

    def counts(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """The counts that `losses` will give, known before the network runs.

        Accumulation needs them: the first micro-batch's gradient is divided by the count of all.
        """
        raise ConfigError(
            f"{type(self).__name__} cannot accumulate: it has no counts()",
            "trainer.accumulate",
            "type trainer.accumulate=1",
        )

    def predict(self, model: nn.Module, batch: Any) -> Any:
        raise NotImplementedError

    def evaluator(self) -> Evaluator:
        raise NotImplementedError
