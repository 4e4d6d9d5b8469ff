"""The splits of a data set as lists of images with their labels, whatever the source is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cvtrain.data.arrays import Arrays
from cvtrain.data.batch import DataInfo
from cvtrain.data.detection import DetectionSource
from cvtrain.data.image_folder import ImageSource
from cvtrain.data.images import shown
from cvtrain.data.objects import Objects, Rows
from cvtrain.data.scan import Scan
from cvtrain.data.source import Augmentations, Source
from cvtrain.errors import DataError

CLASS = "class"  # the one column of labels of data that have no columns


class Found(NamedTuple):
    """Something to look at: its kind, where it is, what is to be said of it, another place."""

    kind: str
    where: str
    what: str = ""
    other: str = ""


@dataclass
class Part:
    """A split: files, or `images` in memory; of a source of the user's own, neither."""

    name: str
    count: int
    files: Sequence[Path] = ()
    images: Tensor | None = None  # uint8 [N, C, H, W]
    labels: dict[str, NDArray[np.int64]] = field(default_factory=dict)  # by column; -1: none
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of each column
    objects: Objects | None = None
    bad: dict[Path, str] = field(default_factory=dict)  # what the source has left out, and why

    def name_of(self, index: int) -> str:
        return str(self.files[index]) if self.files else f"{self.name}[{index}]"

    def label(self, index: int) -> str:
        """The classes of an image, in words."""
        codes = {name: int(column[index]) for name, column in self.labels.items()}
        names = {name: self.classes[name][code] for name, code in codes.items() if code >= 0}
        plain = list(names) == [CLASS]
        return ", ".join(shown(c if plain else f"{name} {c}") for name, c in names.items())


def parts_of(source: Source) -> tuple[list[Part], list[DataError]]:
    """Of a source that could be made; and why a split could not be read."""
    if isinstance(source, ImageSource):
        return [_of_scan(n, found, source.info) for n, found in source._splits.items()], []
    if isinstance(source, DetectionSource):
        classes = {CLASS: source.info.shown}
        splits = source._splits.items()
        return [_of_files(n, s.found, classes=classes, objects=s.objects) for n, s in splits], []
    parts, errors = [], []
    for name in ("train", "val"):
        try:
            split = source.train(0, Augmentations()) if name == "train" else source.val(0)
            parts.append(_of_arrays(name, split, source.info))
        except DataError as error:
            errors.append(error)
    return parts, errors


def _of_arrays(name: str, split: Any, info: DataInfo) -> Part:
    """Of a user's own source nothing but the number of samples may be known."""
    if not isinstance(split, Arrays):
        return Part(name, len(split))
    labels, classes = {CLASS: split.labels.numpy()}, {CLASS: info.shown}
    return Part(name, len(split), images=split.images, labels=labels, classes=classes)


def _of_files(name: str, found: Scan, **more: Any) -> Part:
    bad = {file: str(why) for file, why in found.bad}
    return Part(name, len(found.files), files=found.files, bad=bad, **more)


def _of_scan(name: str, found: Scan, info: DataInfo) -> Part:
    """Labels are a class, one in each of several columns, or a class and a box."""
    labels, objects = found.labels, None
    if info.columns:
        codes = np.array(labels, np.int64).reshape(len(labels), len(info.columns))
        columns = dict(zip(info.columns, codes.T, strict=True))
        return _of_files(name, found, labels=columns, classes=info.columns)
    if labels and isinstance(labels[0], tuple):
        rows = Rows()
        for number, (label, box) in enumerate(labels):
            rows.add(number, box, label + 1)
        objects, labels = rows.sort(len(labels)), [label for label, _ in labels]
    column = {CLASS: np.array(labels, np.int64)}
    return _of_files(name, found, labels=column, classes={CLASS: info.shown}, objects=objects)
