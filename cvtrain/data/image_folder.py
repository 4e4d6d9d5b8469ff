"""Image folders: `train/<class>/*.jpg` and `val/<class>/*.jpg`, or one folder that is split.

An image is read by a worker, which decodes no more than the crop needs and hands over uint8; the
rest of augmentation is a matter of whole batches on the device.
"""

import logging
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
from cvtrain.data.crops import CenterCrop, Crop, view_boxes
from cvtrain.data.images import Box, read_box, read_boxes, shown
from cvtrain.data.scan import (
    Scan,
    check_classes,
    check_same_classes,
    class_folders,
    scan,
)
from cvtrain.data.source import Augmentations, Source
from cvtrain.data.split import split_scan
from cvtrain.errors import ConfigError, DataError

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
    def labels(self) -> Tensor | None:
        """int64 `[N]`; None where a sample has no label, or several."""
        return torch.from_numpy(np.array(self.found.labels, np.int64))

    def __len__(self) -> int:
        return len(self.found.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Any, int]:
        """Raises DataError (BAD-IMAGE). Draws from torch's generator, which the loader seeds."""
        header = self.found.headers[index]
        uniforms = torch.rand(self.crop.draws).tolist()
        box = self.crop.box(uniforms, header.width, header.height)
        pixels = read_box(self.found.files[index], header, box, self.size)
        if self.transform:
            pixels = self.transform(pixels.permute(2, 0, 1)).permute(1, 2, 0)
        return pixels, self.target(index, box), index

    def target(self, index: int, box: Box) -> Any:
        """What is to be learnt of an image of which `box` is seen."""
        return self.found.labels[index]

    @staticmethod
    def collate(samples: list[tuple[Tensor, Any, int]]) -> Any:
        """Images in the order in which they were decoded, which is channels_last."""
        pixels, labels, ids = zip(*samples, strict=True)
        images = torch.stack(pixels).movedim(-1, -3)
        return ClassificationBatch(images, torch.tensor(labels), torch.tensor(ids))


class ImageViews(ImageFiles):
    """Several views of each image, uint8 `[views, size, size, 3]`.

    At each of the `shares` of its short side the middle; with `ten_crop` the four corners, too,
    and the mirror images of all.
    """

    def __init__(self, found: Scan, *, size: int, shares: list[float], ten_crop: bool) -> None:
        super().__init__(found, size=size, crop=CenterCrop(fraction=shares[0]))
        self.shares, self.ten_crop = shares, ten_crop
        self.views = len(shares) * (10 if ten_crop else 1)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        """Raises DataError (BAD-IMAGE)."""
        header, label = self.found.headers[index], self.found.labels[index]
        boxes = [
            box
            for share in self.shares
            for box in view_boxes(share, header.width, header.height, corners=self.ten_crop)
        ]
        pixels = torch.stack(read_boxes(self.found.files[index], header, boxes, self.size))
        if self.ten_crop:
            pixels = torch.cat([pixels, pixels.flip(2)])
        return pixels, label, index


class ImageSource(Source):
    """What all sources of image files share: a scan of each split, read by `files`."""

    files: type[ImageFiles] = ImageFiles
    native_size = 224  # pixels, of a network that takes any

    def __init__(
        self, *, root: str, mean: list[float], std: list[float], crop_fraction: float, on_bad: str
    ) -> None:
        if on_bad not in ("error", "skip"):
            raise ConfigError(f"data.on_bad={on_bad}", "", "type data.on_bad=error or =skip")
        self.mean, self.std, self.root = mean, std, Path(root)
        self.eval_crop = CenterCrop(fraction=crop_fraction)

    def _keep(self, splits: dict[str, Scan]) -> Scan:
        """Returns the training split's."""
        self._splits = splits
        bad = dict(line for found in splits.values() for line in found.bad)
        self.bad = tuple(f"{shown(file)}\t{reason}" for file, reason in bad.items())
        return splits["train"]

    def _say(self, what: str) -> None:
        counts = ", ".join(f"{len(s.files)} {name}" for name, s in self._splits.items())
        log.info("%s: %s, %s images", shown(self.root), what, counts)

    def train(self, size: int, augmentations: Augmentations) -> ImageFiles:
        crop = augmentations.crop or self.eval_crop
        augment = Augment(augmentations.batches, augmentations.mixes)
        images = augmentations.images
        return self.files(
            self._splits["train"], size=size, crop=crop, images=images, augment=augment
        )

    def val(self, size: int) -> ImageFiles:
        return self.files(self._splits["val"], size=size, crop=self.eval_crop)

    def part(self, split: str, size: int) -> ImageFiles:
        """Any split as the validation split is seen. Raises ConfigError for one that is not."""
        if split not in self._splits:
            there = " or ".join(f"eval.split={name}" for name in self._splits)
            what = f"{shown(self.root)} has no split {split}"
            raise ConfigError(what, f"eval.split={split}", f"type {there}")
        return self.files(self._splits[split], size=size, crop=self.eval_crop)

    def name_of(self, index: int, split: str = "train") -> str:
        return shown(self.file_of(index, split))

    def file_of(self, index: int, split: str = "train") -> Path:
        return self._splits[split].files[index]

    def image_of(self, index: int, split: str = "val") -> Tensor:
        found = self._splits[split]
        size = min(self.info.image_size, 160)  # to look at, not to train on
        return self.files(found, size=size, crop=self.eval_crop)[index][0].permute(2, 0, 1)


class ImageFolder(ImageSource):
    """Classes are the folders' names, matched by name between the splits. Raises DataError.

    With neither `train_dir` nor `val_dir` below `root`, `root` holds the classes, and `split` their
    shares of training, validation and test, drawn class by class from `split_seed`; `all` is a
    split, too, which only an evaluation asks for. So is a folder `test` beside the other two.
    """

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
        super().__init__(root=root, mean=mean, std=std, crop_fraction=crop_fraction, on_bad=on_bad)
        self._scan = partial(scan, max_pixels=max_pixels, on_bad=on_bad)
        self._whole: Scan | None = None  # of a folder that is not split
        self._other_classes = allow_other_classes
        splits = self._look(train_dir, val_dir, split, split_seed, allow_other_classes)
        train = self._keep(splits)
        check_classes(train, allow_one_class=allow_one_class, allow_empty=allow_empty)
        self.info = DataInfo(
            name=type(self).__name__,
            classes=tuple(train.classes),
            channels=3,
            image_size=self.native_size,
            fingerprint=train.fingerprint(),
            counts=tuple(np.bincount(train.labels, minlength=len(train.classes)).tolist()),
            names=self.class_names(train.classes),
        )
        self._say(f"{len(train.classes)} classes")

    def class_names(self, classes: list[str]) -> tuple[str, ...]:
        """How the classes are shown, where the folders' names are codes."""
        return ()

    def _look(
        self, train_dir: str, val_dir: str, split: list[float] | None, seed: int, allow: bool
    ) -> dict[str, Scan]:
        if not any((self.root / name).is_dir() for name in (train_dir, val_dir)):
            return self._one_folder(split, seed)
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

    def _one_folder(self, shares: list[float] | None, seed: int) -> dict[str, Scan]:
        self._whole = found = self._scan(self.root, class_folders(self.root))
        labels = np.array(found.labels, np.int64)
        groups = {name: np.flatnonzero(labels == label) for label, name in enumerate(found.classes)}
        return split_scan(found, groups, shares, seed)

    def part(self, split: str, size: int) -> ImageFiles:
        """Raises ConfigError, DataError: what nobody asked for before is looked at now."""
        if split == "all" and self._whole is not None:
            self._splits["all"] = self._whole
        folder = self.root / "test"
        if split == "test" and split not in self._splits and folder.is_dir():
            train = self._splits["train"]
            check_same_classes(train.root, folder, train.classes, allow=self._other_classes)
            self._splits["test"] = self._scan(folder, train.classes)
        return super().part(split, size)

    @property
    def is_split(self) -> bool:
        """Whether it came in parts."""
        return self._whole is None

    def in_views(self, split: Any, views: str, scales: list[int] | None) -> Any:
        ten_crop = views == "ten_crop"
        if type(split) is not ImageFiles or not (ten_crop or scales):
            return super().in_views(split, views, scales)
        size, found = split.size, split.found
        if scales and min(scales) < size:
            raise ConfigError(
                f"a short side of {min(scales)} px holds no view of the network's {size} px",
                "eval.scales",
                f"type sides of at least {size}: eval.scales=[{size}]",
            )
        shares = [size / scale for scale in scales or []] or [self.eval_crop.fraction]
        if len(shares) == 1 and not ten_crop:
            return ImageFiles(found, size=size, crop=CenterCrop(fraction=shares[0]))
        return ImageViews(found, size=size, shares=shares, ten_crop=ten_crop)
