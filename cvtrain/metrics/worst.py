"""The samples that a network is most wrong about, kept without waiting for the device."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Mistake(NamedTuple):
    loss: float
    id: int  # position in the split
    label: int
    predicted: int
    probability: float  # that the network gives its prediction


class Worst:
    """The `most` wrong samples of the highest loss (minus the label's log-probability)."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.columns: tuple[Tensor, ...] = ()  # as Mistake's, each [at most `most`]

    def update(self, logits: Tensor, labels: Tensor, predicted: Tensor, ids: Tensor) -> None:
        """Logits `[N, classes]`; labels, predictions and ids int64 `[N]`."""
        log_probability = logits.log_softmax(1)
        own, best = (
            log_probability.gather(1, classes[:, None]).squeeze(1)
            for classes in (labels, predicted)
        )
        loss = torch.where(predicted == labels, -1.0, -own)  # a loss is never below 0
        self.keep(loss, ids, labels, predicted, best.exp())

    def keep(self, *found: Tensor) -> None:
        """Columns `[N]` of what is known of N samples; the first says how bad they are."""
        old = self.columns or tuple(column[:0] for column in found)
        together = [torch.cat(pair) for pair in zip(old, found, strict=True)]
        order = together[0].topk(min(self.most, len(together[0]))).indices
        self.columns = tuple(column[order] for column in together)

    def rows(self) -> list[tuple[Any, ...]]:
        """One for each sample, from the worst on; waits for the device."""
        return sorted(zip(*(column.tolist() for column in self.columns), strict=True))[::-1]

    def mistakes(self) -> list[Mistake]:
        return [Mistake(*row) for row in self.rows() if row[0] >= 0]
