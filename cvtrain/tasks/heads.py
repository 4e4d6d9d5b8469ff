"""Several labels per image: a head for each, over one backbone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvtrain.data.batch import DataInfo, LabelsBatch
from cvtrain.metrics.sheet import fits, sheet
from cvtrain.tasks.base import Head, Metric, Picture, Task
from cvtrain.tasks.heads_config import read_heads
from cvtrain.tasks.heads_evaluator import HeadsEvaluator
from cvtrain.tasks.shown import as_seen
from cvtrain.tasks.told import View, Wanted, check_finite, one

MOST_LINES = 4  # of a caption


class Heads(Task):
    """Of each head its weighted loss, `<name>`, and its error in per cent, `<name>_err`.

    The network gives logits `[N, outputs]` by head. A head of one output is judged by binary
    cross-entropy, with class 1 of its column as the positive one; of more by cross-entropy over
    them. Labels are int64 `[N, columns]`; -1, which is a missing one, counts nowhere, nor does for
    a head with `when` a sample whose label there is not class 1. Each loss is divided by the
    samples that count for it. `err` is the mean of the errors by the heads' weights.
    """

    primary = Metric("err", higher_is_better=False)

    def __init__(self, *, info: DataInfo, heads: dict[str, Any] | None = None) -> None:
        self.columns, _ = read_heads(heads, info.columns)

    @classmethod
    def outputs(cls, info: DataInfo, arguments: dict[str, Any]) -> dict[str, Head]:
        columns, kept = read_heads(arguments.get("heads"), info.columns)
        new = {name: Head(column.outputs, column.hidden) for name, column in columns.items()}
        return new | {name: Head(classes, pretrained=True) for name, classes in kept.items()}

    def losses(self, model: nn.Module, batch: LabelsBatch) -> dict[str, tuple[Tensor, Tensor]]:
        logits, pairs = self.predict(model, batch), {}
        for name, column in self.columns.items():
            targets, own = column.targets(batch.labels), logits[name]
            count = column.count(targets)
            wrong = column.wrong(own.detach(), targets)
            pairs[name] = (column.weight * column.losses(own, targets).sum(), count)
            pairs[f"{name}_err"] = (100 * wrong.sum(), count)
        return pairs

    def counts(self, model: nn.Module, batch: LabelsBatch) -> dict[str, Tensor]:
        counts = {}
        for name, column in self.columns.items():
            counts[name] = counts[f"{name}_err"] = column.count(column.targets(batch.labels))
        return counts

    def predict(self, model: nn.Module, batch: LabelsBatch) -> dict[str, Tensor]:
        """float32 logits of each head."""
        outputs = model(batch.images)
        return {name: outputs[name].float() for name in self.columns}

    def evaluator(self) -> HeadsEvaluator:
        return HeadsEvaluator(self.columns)

    def told(
        self, predictions: dict[str, Tensor], seen: Sequence[View], wanted: Wanted
    ) -> list[dict[str, Any]]:
        """`columns`: the class of each; one with `when` only where that one is found in class 1."""
        check_finite(torch.cat([*predictions.values()], 1))
        found = {c.number: c.predicted(predictions[n]).tolist() for n, c in self.columns.items()}
        said: list[dict[str, Any]] = [{"columns": []} for _ in seen]
        for name, column in self.columns.items():
            logits, classes = predictions[name], found[column.number]
            if column.outputs == 1:
                logits = torch.cat([torch.zeros_like(logits), logits], 1)
            shares = logits.softmax(1).tolist()
            for row, index in enumerate(classes):
                if column.when is None or found[column.when][row] == 1:
                    entry = one(column.classes, index, shares[row][index])
                    said[row]["columns"].append({"column": name, **entry})
        return said

    def pictures(self, batch: LabelsBatch, source: Any) -> dict[str, Picture]:
        """`samples`: images as the network sees them, but for the normalisation, and labels."""
        captions = [self.caption(labels) for labels in batch.labels.cpu()]
        return {"samples": sheet([*as_seen(batch.images, source)], captions, columns=8)}

    def caption(self, labels: Tensor) -> list[str]:
        """`main 1, level 2`: what counts of one sample's labels, int64 `[columns]`."""
        lines: list[str] = []
        for name, column in self.columns.items():
            target = int(column.targets(labels[None]))
            if target < 0:
                continue
            text = f"{name} {column.classes[target]}"
            if lines and fits(f"{lines[-1]}, {text}"):
                lines[-1] += f", {text}"
            else:
                lines.append(text)
        return lines[:MOST_LINES]
