"""The figures of a stretch of training: sums and counts on the device, divided at its log point."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cvtrain.engine.distributed import Ranks
from cvtrain.engine.plan import Position

Pairs = dict[str, tuple[Tensor, Tensor]]  # what a task's `losses` gives: name to (sum, count)


@dataclass
class Window:
    """Began before `step`, when the run had trained for so many `seconds`."""

    step: int = 0
    seconds: float = 0.0
    totals: dict[str, Tensor] = field(default_factory=dict)

    def add(self, figures: list[Pairs]) -> None:
        """The named pairs of a step's micro-batches."""
        for pairs in figures:
            for name, (total, count) in pairs.items():
                kind = "loss" if total.requires_grad else "figure"
                for key, value in ((f"{name}/{kind}", total), (f"{name}/count", count)):
                    self.totals[key] = self.totals.get(key, 0) + value.detach().double()

    def means(self, ranks: Ranks) -> dict[str, float]:
        """Of every figure, over all processes; `train/loss` is the sum of the losses' means."""
        totals, values, loss = self.state(ranks), {}, 0.0
        for key in totals:
            name, _, kind = key.rpartition("/")
            if kind != "count":
                values[f"train/{name}"] = totals[key] / (totals[f"{name}/count"] or 1)
                loss += values[f"train/{name}"] if kind == "loss" else 0
        return {**values, "train/loss": loss}

    def steps_per_second(self, position: Position) -> float:
        """Of waiting for data and computing; evaluations and checkpoints do not count."""
        return (position.step - self.step) / max(position.trained - self.seconds, 1e-9)

    def state(self, ranks: Ranks) -> dict[str, float]:
        """The totals of all processes; waits for the device."""
        return {key: value.item() for key, value in ranks.sum(self.totals).items()}

    def load(self, totals: dict[str, float], ranks: Ranks, device: torch.device) -> None:
        share = float(ranks.is_main)  # the sums were taken over all processes
        self.totals = {
            key: torch.tensor(share * value, dtype=torch.float64, device=device)
            for key, value in totals.items()
        }


def added(counts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of several micro-batches, by name."""
    total: dict[str, Tensor] = {}
    for named in counts:
        for name, count in named.items():
            total[name] = total.get(name, 0) + count
    return total


def mean_loss(pairs: Pairs, counts: dict[str, Tensor]) -> Tensor:
    """Of each named loss (a pair that carries a gradient) its sum over the global count, added."""
    # A count of 0 (no positive in the batch) comes with a sum of 0.
    return sum(  # type: ignore[return-value]
        total / counts[name].to(total.dtype).clamp(min=torch.finfo(total.dtype).tiny)
        for name, (total, _) in pairs.items()
        if total.requires_grad
    )
