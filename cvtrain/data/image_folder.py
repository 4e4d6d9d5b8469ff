"""Image folders: `train/<class>/*.jpg` and `val/<class>/*.jpg`, or one folder that is split.

An image is read by a worker, which decodes no more than the crop needs and hands over uint8; the
rest of augmentation is a matter of whole batches on the device.
"""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from cvtrain.data.augment import Augment
from cvtrain.data.batch import ClassificationBatch, DataInfo
from cvtrain.data.crops import CenterCrop, Crop
from cvtrain.data.images import read_box, shown
from cvtrain.data.scan import (
    Scan,
    check_classes,
    check_same_classes,
    class_folders,
    scan,
)
from cvtrain.data.source import Augmentations, Source
from cvtrain.errors import ConfigError, DataError
from cvtrain.seeding import seed_for

log = logging.getLogger(__name__)


class ImageFiles(Dataset):
    """Cropped images uint8 `[size, size, 3]` of a scan, each with its label and number."""

    def __init__(
        self,
        found: Scan,
        *,
        size: int,
        crop: Crop,
        images: list[Any] | None = None,
        augment: Augment | None = None,
    ) -> None:
        self.found, self.size, self.crop, self.augment = found, size, crop, augment
        self.transform = v2.Compose(images) if images else None

    @property
    def labels(self) -> Tensor:
        """int64 `[N]`."""
        return torch.tensor(self.found.labels)

    def __len__(self) -> int:
        return len(self.found.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        """Raises DataError (BAD-IMAGE). Draws from torch's generator, which the loader seeds."""
        header, label = self.found.headers[index], self.found.labels[index]
        uniforms = torch.rand(self.crop.draws).tolist()
        box = self.crop.box(uniforms, header.width, header.height)
        pixels = read_box(self.found.files[index], header, box, self.size)
        if self.transform:
            pixels = self.transform(pixels.permute(2, 0, 1)).permute(1, 2, 0)
        return pixels, label, index

    @staticmethod
    def collate(samples: list[tuple[Tensor, int, int]]) -> ClassificationBatch:
        """Images in the order in which they were decoded, which is channels_last."""
        pixels, labels, ids = zip(*samples, strict=True)
        images = torch.stack(pixels).permute(0, 3, 1, 2)
        return ClassificationBatch(images, torch.tensor(labels), torch.tensor(ids))


class ImageFolder(Source):
    """Classes are the folders' names, matched by name between the splits. Raises DataError.

    With neither `train_dir` nor `val_dir` below `root`, `root` holds the classes, and `split` their
    shares of training, validation and test, drawn class by class from `split_seed`.
    """

    native_size = 224  # pixels, of a network that takes any

    def __init__(
        self,
        *,
        root: str,
        mean: list[float],
        std: list[float],
        train_dir: str = "train",
        val_dir: str = "val",
        split: list[float] | None = None,
        split_seed: int = 0,
        crop_fraction: float = 0.875,
        max_pixels: int = 100_000_000,
        on_bad: str = "error",
        allow_one_class: bool = False,
        allow_empty: bool = False,
        allow_other_classes: bool = False,
    ) -> None:
        if on_bad not in ("error", "skip"):
            raise ConfigError(f"data.on_bad={on_bad}", "", "type data.on_bad=error or =skip")
        self.mean, self.std, self.root = mean, std, Path(root)
        self.eval_crop = CenterCrop(fraction=crop_fraction)
        self._scan = partial(scan, max_pixels=max_pixels, on_bad=on_bad)
        self._splits = self._look(train_dir, val_dir, split, split_seed, allow_other_classes)
        train = self._splits["train"]
        check_classes(train, allow_one_class=allow_one_class, allow_empty=allow_empty)
        bad = [line for found in self._splits.values() for line in found.bad]
        self.bad = tuple(f"{shown(file)}\t{reason}" for file, reason in dict(bad).items())
        self.info = DataInfo(
            name=type(self).__name__,
            classes=tuple(train.classes),
            channels=3,
            image_size=self.native_size,
            fingerprint=train.fingerprint(),
            counts=tuple(np.bincount(train.labels, minlength=len(train.classes)).tolist()),
            names=self.class_names(train.classes),
        )
        counts = ", ".join(f"{len(s.files)} {name}" for name, s in self._splits.items())
        log.info("%s: %d classes, %s images", shown(self.root), len(train.classes), counts)

    def class_names(self, classes: list[str]) -> tuple[str, ...]:
        """How the classes are shown, where the folders' names are codes."""
        return ()

    def _look(
        self, train_dir: str, val_dir: str, split: list[float] | None, seed: int, allow: bool
    ) -> dict[str, Scan]:
        if not any((self.root / name).is_dir() for name in (train_dir, val_dir)):
            return self._one_folder(split or [0.75, 0.15, 0.10], seed)
        if split is not None:
            raise ConfigError(
                f"data.split={split}, but {shown(self.root)} has {train_dir}/ or {val_dir}/",
                "",
                "type data.split=null, or data.root=FOLDER for one that is not split yet",
            )
        return self._two_folders(train_dir, val_dir, allow)

    def _two_folders(self, train_dir: str, val_dir: str, allow: bool) -> dict[str, Scan]:
        train, val = self.root / train_dir, self.root / val_dir
        for folder, key in ((train, "train_dir"), (val, "val_dir")):
            if not folder.is_dir():
                others = sorted(f.name for f in self.root.iterdir() if f.is_dir())
                raise DataError(
                    f"no folder {folder.name} beside {', '.join(map(shown, others))}",
                    shown(self.root.absolute()),
                    f"type data.{key}=NAME for the one that serves as it",
                    name="NO-DATA",
                )
        classes = class_folders(train)
        check_same_classes(train, val, classes, allow=allow)
        return {
            "train": self._scan(train, classes),
            "val": self._scan(val, classes),
        }

    def _one_folder(self, shares: list[float], seed: int) -> dict[str, Scan]:
        whole = all(0 < share < 1 for share in shares) and abs(sum(shares) - 1) < 1e-6
        if not 2 <= len(shares) <= 3 or not whole:
            raise ConfigError(
                f"data.split={shares} are no shares",
                "",
                "type those of train, val and test, that add up to 1: data.split=[0.75,0.15,0.10]",
            )
        found = self._scan(self.root, class_folders(self.root))
        labels = np.array(found.labels, dtype=np.int64)
        parts: dict[str, list[int]] = {name: [] for name in ("train", "val", "test")[: len(shares)]}
        for label, name in enumerate(found.classes):
            rng = np.random.default_rng(seed_for(seed, "split", name))
            members = rng.permutation(np.flatnonzero(labels == label))
            # Cut at the rounded sums of the shares, so that no image is lost or used twice.
            cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(int)
            for part, chosen in zip(parts.values(), np.split(members, cuts), strict=True):
                part.extend(sorted(chosen.tolist()))
        return {name: _part(found, chosen) for name, chosen in parts.items()}

    def train(self, size: int, augmentations: Augmentations) -> ImageFiles:
        crop = augmentations.crop or self.eval_crop
        augment = Augment(augmentations.batches, augmentations.mixes)
        images = augmentations.images
        return ImageFiles(
            self._splits["train"], size=size, crop=crop, images=images, augment=augment
        )

    def val(self, size: int) -> ImageFiles:
        return ImageFiles(self._splits["val"], size=size, crop=self.eval_crop)

    def name_of(self, index: int, split: str = "train") -> str:
        return shown(self._splits[split].files[index])

    def image_of(self, index: int, split: str = "val") -> Tensor:
        found = self._splits[split]
        size = min(self.info.image_size, 160)  # to look at, not to train on
        return ImageFiles(found, size=size, crop=self.eval_crop)[index][0].permute(2, 0, 1)


def _part(found: Scan, chosen: list[int]) -> Scan:
    return replace(
        found,
        files=[found.files[i] for i in chosen],
        labels=[found.labels[i] for i in chosen],
        headers=[found.headers[i] for i in chosen],
    )
