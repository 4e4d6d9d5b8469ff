"""Images that a CSV file lists with the one object in each: its class and the box around it."""

import logging
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvtrain.data.augment import check_boxes
from cvtrain.data.batch import BoxBatch, DataInfo
from cvtrain.data.csv import MISSING, CsvSource
from cvtrain.data.image_folder import ImageFiles
from cvtrain.data.images import Box, Header, shown
from cvtrain.data.scan import Scan
from cvtrain.data.source import Augmentations
from cvtrain.data.table import Table
from cvtrain.errors import ConfigError

log = logging.getLogger(__name__)


class BoxFiles(ImageFiles):
    @property
    def labels(self) -> Tensor:
        return torch.tensor([label for label, _ in self.found.labels])

    def target(self, index: int, box: Box) -> tuple[int, list[float]]:
        """The class, and the object's box as shares of what is seen, clipped to it."""
        label, (x1, y1, x2, y2) = self.found.labels[index]
        left, top, right, bottom = box
        across, down = right - left, bottom - top
        shares = ((x1 - left) / across, (y1 - top) / down, (x2 - left) / across, (y2 - top) / down)
        return label, [min(max(share, 0.0), 1.0) for share in shares]

    @staticmethod
    def collate(samples: list[tuple[Tensor, Any, int]]) -> BoxBatch:
        boxes = torch.tensor([box for _, (_, box), _ in samples])
        plain = [(pixels, label, index) for pixels, (label, _), index in samples]
        images, labels, ids = ImageFiles.collate(plain)
        return BoxBatch(images, labels, boxes, ids)


class CsvBoxes(CsvSource):
    """`label` is the column of classes, `box` those of left, top, right and bottom.

    These are pixels of the upright image, from its upper left corner.
    """

    files = BoxFiles
    labels_key = "label"

    def __init__(self, *, label: str = "class", box: list[str] | None = None, **table: Any) -> None:
        box = ["x1", "y1", "x2", "y2"] if box is None else box
        if not isinstance(box, list) or len(box) != 4:
            raise ConfigError(
                f"data.box={box} is not four columns", "", "type data.box=[x1,y1,x2,y2]"
            )
        self.label, self.box = str(label), list(map(str, box))
        super().__init__(**table)

    def train(self, size: int, augmentations: Augmentations) -> ImageFiles:
        """Raises ConfigError for what moves an object and not its box."""
        check_boxes([*augmentations.images, *augmentations.batches, *augmentations.mixes])
        return super().train(size, augmentations)

    def label_columns(self, table: Table) -> list[str]:
        for name in self.box:
            table.column(name, "box")
        table.column(self.label, "label")
        return [self.label]

    def targets(self, table: Table, codes: list[tuple[int, ...]], found: Scan) -> list[Any]:
        boxes = [self._box(table, number) for number in range(len(codes))]
        if max(max(box) for box in boxes) <= 1:
            raise table.wrong("boxes are in pixels, these are shares", 0, self.box[2])
        for number, (code,) in enumerate(codes):
            if code == MISSING:
                raise table.wrong("there is no class", number, self.label)
        pairs = list(zip(found.labels, found.headers, strict=True))
        inside = [self._clipped(table, number, boxes[number], header) for number, header in pairs]
        if cut := sum(boxes[n] != box for (n, _), box in zip(pairs, inside, strict=True)):
            log.info("%s: %d boxes reach out of their images and are clipped", table.file.name, cut)
        return [(codes[n][0], box) for (n, _), box in zip(pairs, inside, strict=True)]

    def _box(self, table: Table, number: int) -> Box:
        values = []
        for name in self.box:
            cell = table.columns[name][number]
            try:
                values.append(float(cell))
            except ValueError:
                values.append(math.nan)
            if not math.isfinite(values[-1]):
                raise table.wrong(f"{shown(cell) or 'an empty cell'} is no pixel", number, name)
        x1, y1, x2, y2 = values
        for low, high, name in ((x1, x2, self.box[2]), (y1, y2, self.box[3])):
            if not low < high:
                raise table.wrong(f"the box ends at {high:g} and begins at {low:g}", number, name)
        return x1, y1, x2, y2

    def _clipped(self, table: Table, number: int, box: Box, header: Header) -> Box:
        x1, y1, x2, y2 = box
        width, height = header.width, header.height
        for low, high, end, place in ((x1, x2, width, 0), (y1, y2, height, 1)):
            if low >= end or high <= 0:
                image = f"{shown(table.columns[self.path][number])}, {width}x{height} pixels"
                what = f"the box from {low:g} to {high:g} lies outside {image}"
                raise table.wrong(what, number, self.box[place])
        return max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)

    def describe(self, train: Scan, fingerprint: str) -> DataInfo:
        classes = self.columns[self.label]
        labels = [label for label, _ in train.labels]
        return DataInfo(
            name=type(self).__name__,
            classes=classes,
            channels=3,
            image_size=self.native_size,
            fingerprint=fingerprint,
            counts=tuple(np.bincount(labels, minlength=len(classes)).tolist()),
        )
