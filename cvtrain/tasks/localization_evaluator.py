"""What an evaluation of a localiser counts and shows."""

from typing import Any

import torch

from cvtrain.data.batch import ClassificationBatch
from cvtrain.metrics.boxes import decode, draw_boxes
from cvtrain.metrics.confusion import draw_confusion
from cvtrain.metrics.sheet import sheet
from cvtrain.metrics.worst import Worst
from cvtrain.tasks.base import Picture
from cvtrain.tasks.classification_evaluator import WORST, ClassificationEvaluator
from cvtrain.tasks.shown import as_rgb

TRUE, FOUND = "lime", "red"  # colours of boxes


class LocalizationEvaluator(ClassificationEvaluator):
    """Errors in whole samples, the rest in float64: exact over any batching."""

    def __init__(self, task: Any) -> None:
        super().__init__(task.classes)
        self.localization, self.least = task, Worst(WORST)
        self.rows: list[tuple[Any, ...]] = []
        for name in ("located", "iou_sum", "box_sum"):
            self.totals[name] = torch.zeros((), dtype=torch.float64)

    def update(self, predictions: Any, batch: Any) -> None:
        """A Prediction of a BoxBatch."""
        super().update(
            predictions.logits, ClassificationBatch(batch.images, batch.labels, batch.ids)
        )
        judged = self.localization.judge(predictions, batch)
        self._add("located", judged.located.sum())
        self._add("iou_sum", judged.iou.double().sum())
        self._add("box_sum", self.localization.box_losses(predictions, batch).double().sum())
        boxes = torch.cat([batch.boxes, decode(predictions.codes)], 1).unbind(1)
        predicted = predictions.logits.argmax(1)
        self.least.keep(-judged.iou, batch.ids, batch.labels, predicted, *boxes)

    def compute(self) -> dict[str, float]:
        total = {name: self.totals[name].item() for name in ("samples", "located", "iou_sum")}
        figures, samples = super().compute(), total["samples"]
        box = self.totals["box_sum"].item() / samples
        return {
            "loss": figures["loss"] + box,
            "box": box,
            "top1_err": figures["top1_err"],
            "loc_err": 100 * (samples - total["located"]) / samples,
            "iou": 100 * total["iou_sum"] / samples,
        }

    # What there is to show

    def kept(self) -> Any:
        return self.least.rows()

    def merge(self, kept: list[Any]) -> None:
        self.rows = sorted(row for rows in kept for row in rows)[::-1][:WORST]

    def pictures(self, source: Any, split: str) -> dict[str, Picture]:
        """`confusion`, and `boxes`: the samples of the lowest IoU, the true box green, ours red."""
        pictures, names = {}, source.info.shown
        if self.matrix is not None:
            pictures["confusion"] = draw_confusion(self.matrix, names)
        tiles: list[Picture | None] = []
        captions = []
        for worse, index, label, predicted, *corners in self.rows:
            image = source.image_of(index, split)
            boxes = [corners[:4], corners[4:]]
            tiles.append(None if image is None else draw_boxes(as_rgb(image), boxes, [TRUE, FOUND]))
            verdict = names[label] if label == predicted else f"{names[label]} → {names[predicted]}"
            captions.append([verdict, f"IoU {-100 * worse:.0f} %"])
        if tiles:
            pictures["boxes"] = sheet(tiles, captions, columns=4)
        return pictures
