"""What an evaluation of a classifier counts and shows."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cvtrain.data.batch import ClassificationBatch
from cvtrain.metrics.calibration import (
    binned,
    calibration_error,
    draw_reliability,
    empty_bins,
    listed,
)
from cvtrain.metrics.confusion import add_confusion, draw_confusion
from cvtrain.metrics.sheet import fits, sheet
from cvtrain.metrics.topk import topk_wrong
from cvtrain.metrics.worst import Mistake, Worst
from cvtrain.tasks.base import Picture
from cvtrain.tasks.shown import as_rgb, per_class

MOST_CLASSES = 1000  # of a confusion matrix
MOST_LISTED = 50  # of one in the summary
WORST = 16


class Criterion(Protocol):
    """What of the task an evaluation needs."""

    num_classes: int

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor: ...

    def rejecting(self, logits: Tensor) -> Tensor: ...

    def samples(self, batch: ClassificationBatch) -> Tensor: ...

    def weight(self, batch: ClassificationBatch) -> Tensor: ...


class ClassificationEvaluator:
    """Errors in whole samples, the loss in float64: exact over any batching."""

    def __init__(self, task: Criterion) -> None:
        self.task = task
        names = ("samples", "top1_wrong", "top5_wrong", "loss_sum", "weight")
        self.totals = {name: torch.zeros((), dtype=torch.float64) for name in names}
        self.totals["calibration"] = empty_bins()
        self.worst, self.mistakes = Worst(WORST), list[Mistake]()
        if task.num_classes <= MOST_CLASSES:
            shape = (task.num_classes, task.num_classes)
            self.totals["confusion"] = torch.zeros(shape, dtype=torch.int64)

    def update(self, predictions: Tensor, batch: ClassificationBatch) -> None:
        self._add("samples", self.task.samples(batch))
        self._add("top1_wrong", topk_wrong(predictions, batch.labels, 1))
        self._add("top5_wrong", topk_wrong(predictions, batch.labels, 5))
        self._add("loss_sum", self.task.cross_entropy(predictions, batch.labels))
        self._add("weight", self.task.weight(batch))
        predicted = predictions.argmax(1)
        sure = self.task.rejecting(predictions).softmax(1).gather(1, predicted[:, None])[:, 0]
        bins = self.totals["calibration"].to(predicted.device)
        self.totals["calibration"] = bins + binned(sure, predicted == batch.labels)
        if "confusion" in self.totals:
            matrix = self.totals["confusion"] = self.totals["confusion"].to(predicted.device)
            add_confusion(matrix, batch.labels, predicted)
        self.worst.update(predictions, batch.labels, predicted, batch.ids)

    def _add(self, name: str, value: Tensor) -> None:
        # A zero-dimensional tensor of the CPU joins one of any device: nothing waits for a GPU.
        self.totals[name] = self.totals[name] + value.double()

    def compute(self) -> dict[str, float]:
        total = {name: value.item() for name, value in self.totals.items() if value.ndim == 0}
        return {
            "loss": total["loss_sum"] / total["weight"],
            "top1_err": 100 * total["top1_wrong"] / total["samples"],
            "top5_err": 100 * total["top5_wrong"] / total["samples"],
        }

    # What there is to show

    @property
    def matrix(self) -> np.ndarray | None:
        """int64 `[K, K]`: rows are labels, columns predictions. None for too many classes."""
        counts = self.totals.get("confusion")
        return None if counts is None else counts.cpu().long().numpy()

    @property
    def bins(self) -> np.ndarray:
        """float64 `[3, BINS]`, as metrics/calibration.py has them."""
        return self.totals["calibration"].cpu().double().numpy()

    def kept(self) -> list[Mistake]:
        return self.worst.mistakes()

    def merge(self, kept: list[list[Mistake]]) -> None:
        together = sorted(mistake for mistakes in kept for mistake in mistakes)
        self.mistakes = together[::-1][:WORST]

    def report(self, source: Any) -> dict[str, Any]:
        """Figures in per cent: `per_class`, the calibration error `ece` and what it is made of,
        `calibration`, and, of not too many classes, `confusion`: rows are labels.
        """
        report: dict[str, Any] = {"ece": round(calibration_error(self.bins), 4)}
        if self.matrix is not None:
            report["per_class"] = per_class(self.matrix, unique(source.info))
        report["calibration"] = listed(self.bins)
        if self.matrix is not None and len(self.matrix) <= MOST_LISTED:
            report["confusion"] = self.matrix.tolist()
        return report

    def pictures(self, source: Any, split: str) -> dict[str, Picture]:
        """`confusion`, `reliability`, and `worst`: of the wrong samples those of highest loss."""
        names = source.info.shown
        pictures = {"reliability": draw_reliability(self.bins)}
        if self.matrix is not None:
            pictures["confusion"] = draw_confusion(self.matrix, names)
        images = [source.image_of(mistake.id, split) for mistake in self.mistakes]
        captions = [
            [source.name_of(mistake.id, split).rpartition("/")[2], *verdict(mistake, names)]
            for mistake in self.mistakes
        ]
        if captions:
            tiles = [None if image is None else as_rgb(image) for image in images]
            pictures["worst"] = sheet(tiles, captions, columns=4)
        return pictures


def verdict(mistake: Mistake, names: Any) -> list[str]:
    """`label -> prediction, 97 %`, on two lines if it is long."""
    label = names[mistake.label]
    prediction = f"{names[mistake.predicted]}, {100 * mistake.probability:.0f} %"
    line = f"{label} → {prediction}"
    return [line] if fits(line) else [f"{label} →", prediction]


def unique(info: Any) -> list[str]:
    """The names that are shown; where two classes share one, with the class behind it."""
    return [
        name if info.shown.count(name) == 1 else f"{name} ({stored})"
        for name, stored in zip(info.shown, info.classes, strict=True)
    ]
