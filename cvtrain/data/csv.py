"""Images that a CSV file lists with their labels, one or several of each image."""

import hashlib
import logging
from collections import Counter, defaultdict
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from cvtrain.data.batch import DataInfo, LabelsBatch
from cvtrain.data.image_folder import ImageFiles, ImageSource
from cvtrain.data.images import shown
from cvtrain.data.scan import LISTED, Scan, judge, look
from cvtrain.data.source import Augmentations
from cvtrain.data.split import split_scan
from cvtrain.data.table import Table, classes_of, read_table
from cvtrain.errors import ConfigError, DataError

log = logging.getLogger(__name__)

MISSING = -1  # the label of an empty cell


class CsvSource(ImageSource):
    """A table for training, one for validation or none: then the first is split by shares.

    Its column `path` is relative to `root`, the others' values are classes. Raises DataError.
    """

    labels_key = "labels"  # what names the columns of classes

    def __init__(
        self,
        *,
        root: str,
        mean: list[float],
        std: list[float],
        train_csv: str = "train.csv",
        val_csv: str | None = "val.csv",
        path: str = "path",
        split: list[float] | None = None,
        split_seed: int = 0,
        crop_fraction: float = 0.875,
        max_pixels: int = 100_000_000,
        on_bad: str = "error",
    ) -> None:
        super().__init__(root=root, mean=mean, std=std, crop_fraction=crop_fraction, on_bad=on_bad)
        self.path, self.max_pixels, self.on_bad = str(path), max_pixels, on_bad
        table = self._read(train_csv)
        self.columns = {
            name: classes_of(table, name, self.labels_key) for name in self.label_columns(table)
        }
        found = self._look(table)
        if val_csv and (self.root / val_csv).exists():
            if split is not None:
                raise ConfigError(
                    f"data.split={split}, but {shown(self.root)} has {val_csv}",
                    "",
                    "type data.split=null, or data.val_csv=null to leave that table alone",
                )
            splits = {"train": found, "val": self._look(self._read(val_csv))}
        else:
            if val_csv:
                log.info("%s: no table %s, %s is split", shown(self.root), val_csv, train_csv)
            splits = split_scan(found, self._groups(found), split, split_seed)
        train = self._keep(splits)
        self._check_filled(train)
        digest = hashlib.sha256(f"{self.columns}{train.fingerprint()}".encode())
        self.info = self.describe(train, digest.hexdigest()[:16])
        self._say(", ".join(f"{shown(name)} of {len(c)}" for name, c in self.columns.items()))

    # What a kind of table says

    def label_columns(self, table: Table) -> list[str]:
        """The names of those whose values are classes."""
        raise NotImplementedError

    def targets(self, table: Table, codes: list[tuple[int, ...]], found: Scan) -> list[Any]:
        """What is to be learnt of each image found; its label so far is its place in the table."""
        raise NotImplementedError

    def describe(self, train: Scan, fingerprint: str) -> DataInfo:
        raise NotImplementedError

    # Tables and their images

    def _read(self, name: str) -> Table:
        file = self.root / name
        if not file.exists():
            others = sorted(f.name for f in self.root.glob("*.csv"))[:LISTED]
            beside = f" beside {', '.join(map(shown, others))}" if others else ""
            raise DataError(
                f"no table {shown(name)}{beside}",
                shown(self.root.absolute()),
                "type data.root=FOLDER or data.train_csv=NAME of a CSV file in it",
                name="NO-DATA",
            )
        return read_table(file, path=self.path)

    def _look(self, table: Table) -> Scan:
        """Every image of a table, looked at as those of a folder are."""
        found, seen = Scan(self.root, []), set()
        for number, cell in enumerate(table.columns[self.path]):
            if not cell or cell in seen:
                what = f"{shown(cell)} is listed twice" if cell else "there is no path"
                raise table.wrong(what, number, self.path, "list each image in one row")
            seen.add(cell)
            look(found, self.root / cell, number, max_pixels=self.max_pixels)
        codes = [*zip(*(self._codes(table, name) for name in self.columns), strict=True)]
        emptied = self._present(codes) - self._present([codes[i] for i in found.labels])
        judge(found, self.on_bad, emptied=emptied)
        found.labels = self.targets(table, codes, found)
        return found

    def _codes(self, table: Table, name: str) -> list[int]:
        """Of each row the class in a column, MISSING where the cell is empty."""
        known = {"": MISSING} | {value: code for code, value in enumerate(self.columns[name])}
        cells = table.column(name, self.labels_key)
        for number, cell in enumerate(cells):
            if cell not in known:
                listed = ", ".join(map(shown, self.columns[name][:LISTED]))
                what = f"{shown(cell)} is no class of the training table, which has {listed}"
                raise table.wrong(what, number, name)
        return [known[cell] for cell in cells]

    def _present(self, codes: list[tuple[int, ...]]) -> set[str]:
        """The classes that there are, each with its column."""
        return {
            f"{self.columns[name][code]} of column {name}"
            for name, column in zip(self.columns, zip(*codes, strict=True), strict=False)
            for code in set(column) - {MISSING}
        }

    def _groups(self, found: Scan) -> dict[str, list[int]]:
        """By the rarest class of each image: a share of every class comes into each part."""
        codes = [
            [pair for pair in enumerate(target[: len(self.columns)]) if pair[1] != MISSING]
            for target in found.labels
        ]
        counts, columns = Counter(chain(*codes)), list(self.columns.items())
        groups = defaultdict(list)
        for number, pairs in enumerate(codes):
            place, code = min(pairs, key=counts.__getitem__, default=(0, MISSING))
            name, classes = columns[place]
            groups[f"{name}={'' if code == MISSING else classes[code]}"].append(number)
        return groups

    def _check_filled(self, train: Scan) -> None:
        for place, (name, classes) in enumerate(self.columns.items()):
            present = {target[place] for target in train.labels}
            if empty := [c for code, c in enumerate(classes) if code not in present]:
                raise DataError(
                    f"column {shown(name)} has classes without a training image: "
                    + ", ".join(map(shown, empty[:LISTED])),
                    shown(self.root),
                    "list more images, or type data.split_seed=1 for another split",
                    name="CLASSES",
                )


class LabelFiles(ImageFiles):
    @property
    def labels(self) -> Tensor | None:
        labels = torch.tensor(self.found.labels)
        single = labels.shape[1] == 1 and bool((labels != MISSING).all())
        return labels[:, 0] if single else None

    @staticmethod
    def collate(samples: list[tuple[Tensor, Any, int]]) -> LabelsBatch:
        return LabelsBatch(*ImageFiles.collate(samples))


class CsvImages(CsvSource):
    """`labels` are the columns to learn, null for all but the path; empty cells are not learnt."""

    files = LabelFiles

    def __init__(self, *, labels: list[str] | None = None, **table: Any) -> None:
        if labels is not None and (not isinstance(labels, list) or not labels):
            raise ConfigError(
                f"data.labels={labels} is no list of columns", "", "type data.labels=[NAME,NAME]"
            )
        self._labels = None if labels is None else list(dict.fromkeys(map(str, labels)))
        super().__init__(**table)

    def train(self, size: int, augmentations: Augmentations) -> ImageFiles:
        """Raises ConfigError for mixes of images."""
        if augmentations.mixes:
            raise ConfigError(
                f"{type(augmentations.mixes[0]).__name__} mixes images of one label each",
                "data.augment",
                "type augment= without it, as augment=[random_resized_crop,flip]",
            )
        return super().train(size, augmentations)

    def label_columns(self, table: Table) -> list[str]:
        names = self._labels or [name for name in table.columns if name != self.path]
        if not names or self.path in names:
            raise DataError(
                f"the column {self.path} holds paths, and is no label",
                shown(table.file),
                "add a column of labels, or type data.labels=[...] for others",
                name="TABLE",
            )
        return names

    def targets(self, table: Table, codes: list[tuple[int, ...]], found: Scan) -> list[Any]:
        return [codes[number] for number in found.labels]

    def describe(self, train: Scan, fingerprint: str) -> DataInfo:
        return DataInfo(
            name=type(self).__name__,
            classes=tuple(self.columns),
            channels=3,
            image_size=self.native_size,
            fingerprint=fingerprint,
            columns=self.columns,
        )
