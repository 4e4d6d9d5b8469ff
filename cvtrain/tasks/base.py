"""The seam between the engine and what is learnt."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from cvtrain.data.batch import DataInfo
from cvtrain.errors import ConfigError
from cvtrain.tasks.told import View, Wanted

Picture = np.ndarray  # uint8 [H, W, 3]


class Metric(NamedTuple):
    name: str  # as in reports, without its `val/`
    higher_is_better: bool


class Evaluator(Protocol):
    """Counts over an evaluation. `totals` are summed over processes before `compute` divides."""

    totals: dict[str, Tensor]  # sums and counts, float64 or int64, of fixed shapes

    def update(self, predictions: Any, batch: Any) -> None: ...

    def compute(self) -> dict[str, float]: ...


class Head(NamedTuple):
    """One of several over one backbone."""

    outputs: int
    hidden: int = 0  # units of a layer in between; 0: none
    pretrained: bool = False  # the network's own head, with its weights


@runtime_checkable
class Showing(Evaluator, Protocol):
    """An evaluator that has more to show than figures."""

    def kept(self) -> Any:
        """What this process has besides its totals; plain values."""

    def merge(self, kept: list[Any]) -> None:
        """Take what `kept` gave on every process."""

    def report(self, source: Any) -> dict[str, Any]:
        """Further entries of `summary.json`."""

    def pictures(self, source: Any, split: str) -> dict[str, Picture]:
        """By name; `split` is the one that was evaluated."""


class Task:
    """Base of every task. It never sees devices, processes, precision, EMA or checkpoints."""

    primary: Metric  # picks best.pt, and is what a sweep optimises

    @classmethod
    def outputs(cls, info: DataInfo, arguments: dict[str, Any]) -> int | dict[str, Head]:
        """What a network has to give for such data: so many numbers, or heads by name.

        `arguments` are the task's own of the config.
        """
        return len(info.classes)

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

    def pictures(self, batch: Any, source: Any) -> dict[str, Picture]:
        """Of a training batch as the network gets it, by name; none unless a task draws some."""
        return {}

    def predict(self, model: nn.Module, batch: Any) -> Any:
        raise NotImplementedError

    def evaluator(self) -> Evaluator:
        raise NotImplementedError

    def told(self, predictions: Any, seen: Sequence[View], wanted: Wanted) -> list[dict[str, Any]]:
        """What `predict` gave, of each image as plain values of JSON; see told.py."""
        if isinstance(predictions, Tensor):
            return [{"prediction": row} for row in predictions.tolist()]
        what = f"{type(self).__name__} cannot say what it predicts: it has no told()"
        raise ConfigError(what, "task", "add the method, as cvtrain/tasks/classification.py has it")
