"""What an evaluation of several heads counts and shows."""

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvtrain.data.batch import LabelsBatch
from cvtrain.errors import DataError
from cvtrain.metrics.confusion import add_confusion, draw_confusion
from cvtrain.tasks.base import Picture
from cvtrain.tasks.classification_evaluator import MOST_CLASSES
from cvtrain.tasks.heads_config import Columns
from cvtrain.tasks.shown import per_class

MOST_DRAWN = 8  # matrices
MOST_LISTED = 20  # classes of a matrix in the summary


class HeadsEvaluator:
    """Errors in whole samples, losses in float64: exact over any batching.

    A head for which no sample counts has no figure, and no part in `err` and `loss`.
    """

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.totals: dict[str, Tensor] = {}
        for name, column in columns.items():
            for what in ("samples", "wrong", "loss_sum"):
                self.totals[f"{name}/{what}"] = torch.zeros((), dtype=torch.float64)
            if (classes := len(column.classes)) <= MOST_CLASSES:
                # A last row takes the samples that do not count: nothing waits for a device.
                shape = (classes + 1, classes + 1)
                self.totals[f"{name}/confusion"] = torch.zeros(shape, dtype=torch.int64)

    def update(self, predictions: dict[str, Tensor], batch: LabelsBatch) -> None:
        for name, column in self.columns.items():
            logits, targets = predictions[name], column.targets(batch.labels)
            self._add(f"{name}/samples", column.count(targets))
            self._add(f"{name}/wrong", column.wrong(logits, targets).sum())
            self._add(f"{name}/loss_sum", column.losses(logits, targets).double().sum())
            if (key := f"{name}/confusion") in self.totals:
                matrix = self.totals[key] = self.totals[key].to(targets.device)
                rows = targets.where(targets >= 0, len(matrix) - 1)
                add_confusion(matrix, rows, column.predicted(logits))

    def _add(self, name: str, value: Tensor) -> None:
        self.totals[name] = self.totals[name] + value.double()

    def compute(self) -> dict[str, float]:
        """Raises DataError where no label at all was met."""
        total = {name: value.item() for name, value in self.totals.items() if value.ndim == 0}
        met = {n: column for n, column in self.columns.items() if total[f"{n}/samples"]}
        if not met:
            names = ", ".join(self.columns)
            fix = "type eval.max_batches=null, or other data"
            raise DataError(f"no evaluated sample counts for {names}", "eval", fix)
        weights = {name: column.weight for name, column in met.items()}
        if not any(weights.values()):
            weights = dict.fromkeys(met, 1.0)
        errors = {n: 100 * total[f"{n}/wrong"] / total[f"{n}/samples"] for n in met}
        loss = {n: total[f"{n}/loss_sum"] / total[f"{n}/samples"] for n in met}
        return {
            "loss": sum(met[name].weight * loss[name] for name in met),
            "err": sum(weights[n] * errors[n] for n in met) / sum(weights.values()),
            **{f"{name}_err": error for name, error in errors.items()},
        }

    # What there is to show

    def matrix(self, name: str) -> np.ndarray | None:
        """int64 `[K, K]` of a head: rows are labels, columns predictions. None if too large."""
        counts = self.totals.get(f"{name}/confusion")
        return None if counts is None else counts[:-1, :-1].cpu().long().numpy()

    def kept(self) -> None:
        """All is in the totals."""

    def merge(self, kept: list[Any]) -> None:
        pass

    def report(self, source: Any) -> dict[str, Any]:
        """`heads`: of each the errors by class and, if it is small, the confusion matrix."""
        heads: dict[str, Any] = {}
        for name, column in self.columns.items():
            heads[name] = {"samples": int(self.totals[f"{name}/samples"].item())}
            if (matrix := self.matrix(name)) is not None:
                heads[name]["per_class"] = per_class(matrix, column.classes)
                if len(matrix) <= MOST_LISTED:
                    heads[name]["confusion"] = matrix.tolist()
        return {"heads": heads}

    def pictures(self, source: Any, split: str) -> dict[str, Picture]:
        """`confusion_<head>` of the first heads that met a sample."""
        matrices = {name: self.matrix(name) for name in self.columns}
        drawn = [(n, m) for n, m in matrices.items() if m is not None and m.any()][:MOST_DRAWN]
        return {
            "confusion_" + re.sub(r"[^\w-]+", "_", name): draw_confusion(
                matrix, self.columns[name].classes
            )
            for name, matrix in drawn
        }
