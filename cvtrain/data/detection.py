"""Images with any number of objects: what a worker reads of them, and what all sources share."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from cvtrain.data.batch import DataInfo, DetectionBatch
from cvtrain.data.box_transforms import SIZING, keep_size, of_samples
from cvtrain.data.images import read_image, shown
from cvtrain.data.objects import Mistakes, Objects, check_choice
from cvtrain.data.scan import Scan, judge, look
from cvtrain.data.source import Augmentations, Source
from cvtrain.errors import ConfigError

log = logging.getLogger(__name__)

Sample = tuple[Tensor, dict[str, Tensor], dict[str, Tensor], int]


@dataclass(frozen=True)
class Fit:
    """How large an image is given to the network.

    Its short side becomes `size` pixels, or less where the long one would be over `long_side`;
    with `square` both become that, whatever they were.
    """

    size: int
    long_side: int | None = None
    square: int | None = None

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        """The new height and width."""
        if self.square:
            return self.square, self.square
        scale = self.size / min(height, width)
        if self.long_side and scale * max(height, width) > self.long_side:
            scale = self.long_side / max(height, width)
        return max(1, round(scale * height)), max(1, round(scale * width))


class DetectionFiles(Dataset):
    """Images uint8 `[3, H, W]` of a scan, their targets and their truths, as in DetectionBatch.

    `transforms` (of torchvision, seeing boxes) come after resizing if they leave the size alone;
    else before it, at the size of the file, and one that decides on the size has the last word
    unless the image is to be a square. Targets of less than `min_box` pixels a side are left out.
    """

    def __init__(
        self,
        found: Scan,
        objects: Objects,
        *,
        fit: Fit,
        min_box: float = 1.0,
        transforms: list[v2.Transform] | None = None,
    ) -> None:
        self.found, self.objects, self.fit = found, objects, fit
        self.transforms = transforms or []
        self.sanitize = v2.SanitizeBoundingBoxes(min_size=min_box)
        self.fit_first = keep_size(self.transforms)
        sized = any(isinstance(transform, SIZING) for transform in self.transforms)
        self.fit_last = not self.fit_first and (bool(fit.square) or not sized)

    @property
    def groups(self) -> Tensor | None:
        """int64 `[N]`: 1 where an image is wide, 0 where it is tall; None if all become square."""
        if self.fit.square:
            return None
        return torch.tensor([int(h.width >= h.height) for h in self.found.headers])

    def __len__(self) -> int:
        return len(self.found.files)

    def __getitem__(self, index: int) -> Sample:
        """Raises DataError (BAD-IMAGE). Draws from torch's generator, which the loader seeds."""
        header, rows = self.found.headers[index], self.objects.rows(index)
        size = header.height, header.width
        height, width = self.fit(*size) if self.fit_first else size
        pixels = read_image(self.found.files[index], header, height, width).permute(2, 0, 1)
        learnt = self.objects.learnt[rows]
        scale = torch.tensor([width / header.width, height / header.height] * 2)
        boxes = torch.from_numpy(self.objects.boxes[rows][learnt]) * scale
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "labels": torch.from_numpy(self.objects.labels[rows][learnt]),
        }
        image, target = self._changed(tv_tensors.Image(pixels), target)
        truth = {
            "size": torch.tensor(size),
            "boxes": torch.from_numpy(self.objects.boxes[rows]),
            "labels": torch.from_numpy(self.objects.labels[rows]),
            "area": torch.from_numpy(self.objects.area[rows]),
            "crowd": torch.from_numpy(self.objects.crowd[rows]),
            "difficult": torch.from_numpy(self.objects.difficult[rows]),
        }
        return image, target, truth, index

    def _changed(
        self, image: Tensor, target: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        for transform in self.transforms:
            image, target = transform(image, target)
        if self.fit_last:
            size = list(self.fit(*image.shape[-2:]))
            image = F.resize(image, size, antialias=True)
            target = {**target, "boxes": F.resize(target["boxes"], size)}
        # What rounding puts outside is not to be left out for it.
        target = {**target, "boxes": F.clamp_bounding_boxes(target["boxes"])}
        image, target = self.sanitize(image, target)
        plain = {key: value.as_subclass(Tensor) for key, value in target.items()}
        return image.as_subclass(Tensor), plain

    @staticmethod
    def collate(samples: list[Sample]) -> DetectionBatch:
        images, targets, truths, ids = zip(*samples, strict=True)
        flat = _together([image.flatten() for image in images])
        return DetectionBatch(
            [rows.view(image.shape) for rows, image in zip(flat, images, strict=True)],
            _by_key(targets),
            _by_key(truths),
            None,
            torch.tensor(ids),
        )


def _together(tensors: list[Tensor]) -> list[Tensor]:
    """The same tensors in one storage: each costs the processes that share it an open file."""
    return list(torch.cat(tensors).split([len(tensor) for tensor in tensors]))


def _by_key(dicts: tuple[dict[str, Tensor], ...]) -> list[dict[str, Tensor]]:
    columns = {key: _together([each[key] for each in dicts]) for key in dicts[0]}
    return [{key: columns[key][i] for key in columns} for i in range(len(dicts))]


class NormaliseEach:
    """The images of a DetectionBatch, uint8 `[3, H, W]`, to floats, on the device they are on."""

    def __init__(self, *, mean: list[float], std: list[float], device: torch.device) -> None:
        # (x/255 - mean)/std as one multiply-add.
        self.scale = (1 / (255 * torch.tensor(std))).view(-1, 1, 1).to(device)
        self.shift = (-torch.tensor(mean) / torch.tensor(std)).view(-1, 1, 1).to(device)

    def __call__(self, batch: DetectionBatch) -> DetectionBatch:
        images = [torch.addcmul(self.shift, image, self.scale) for image in batch.images]
        return batch._replace(images=images)


class DetectionSource(Source):
    """What all sources of images with boxes share: of each split a scan and its objects."""

    native_size = 800  # pixels of the short side, of a network that takes any

    def __init__(
        self,
        *,
        root: str,
        mean: list[float],
        std: list[float],
        long_side: int | None = 1333,
        square: int | None = None,
        min_box: float = 1.0,
        max_pixels: int = 100_000_000,
        on_bad: str = "error",
        on_bad_boxes: str = "error",
    ) -> None:
        check_choice("on_bad", on_bad, ("error", "skip"))
        check_choice("on_bad_boxes", on_bad_boxes, ("error", "drop"))
        for key, value in (("long_side", long_side), ("square", square), ("min_box", min_box)):
            if value is not None and value < 1:
                raise ConfigError(f"data.{key}={value}", "", "type a number of pixels, at least 1")
        self.root, self.mean, self.std = Path(root), mean, std
        self.long_side, self.square, self.min_box = long_side, square, min_box
        self.max_pixels, self.on_bad, self.on_bad_boxes = max_pixels, on_bad, on_bad_boxes
        self._splits: dict[str, tuple[Scan, Objects]] = {}

    def _look(self, files: list[Path], mistakes: Mistakes, places: list[str]) -> Scan:
        """Every image's header. Raises DataError for one that is not there.

        `places` is where the annotations speak of an image.
        """
        for file, place in zip(files, places, strict=True):
            if not file.exists():
                mistakes.add(place, f"is {shown(file)}, which is not there")
        mistakes.refuse("put the images there, or type data.root=FOLDER for the one they are in")
        found = Scan(self.root, [])
        for number, file in enumerate(files):
            look(found, file, number, max_pixels=self.max_pixels)
        return found

    def _keep(self, split: str, found: Scan, objects: Objects) -> None:
        """Raises DataError: BAD-IMAGE, IMAGE-TOO-LARGE; or leaves bad images out."""
        judge(found, self.on_bad, emptied=set())
        if found.bad:
            objects = objects.of_images(found.labels)
        self._splits[split] = found, objects

    def _describe(self, classes: tuple[str, ...]) -> None:
        """What is known once all splits are."""
        bad = dict(line for found, _ in self._splits.values() for line in found.bad)
        self.bad = tuple(f"{shown(file)}\t{reason}" for file, reason in bad.items())
        found, objects = self._splits["train"]
        digest = hashlib.sha256(f"{classes!a}{found.fingerprint()}".encode())
        for array in (objects.offsets, objects.boxes, objects.labels, objects.learnt):
            digest.update(array.tobytes())
        self.info = DataInfo(
            name=type(self).__name__,
            classes=classes,
            channels=3,
            image_size=self.native_size,
            fingerprint=digest.hexdigest()[:16],
            counts=objects.counts(len(classes)),
        )
        counts = ", ".join(
            f"{len(f.files)} {name} images with {int(o.learnt.sum())} boxes"
            for name, (f, o) in self._splits.items()
        )
        log.info("%s: %d classes, %s", shown(self.root), len(classes), counts)

    def _files(self, split: str, size: int, transforms: list[v2.Transform]) -> DetectionFiles:
        found, objects = self._splits[split]
        fit = Fit(size, self.long_side, self.square)
        return DetectionFiles(found, objects, fit=fit, min_box=self.min_box, transforms=transforms)

    def train(self, size: int, augmentations: Augmentations) -> DetectionFiles:
        """Raises ConfigError for what moves an object and not its box."""
        return self._files("train", size, of_samples(augmentations))

    def val(self, size: int) -> DetectionFiles:
        return self._files("val", size, [])

    def transform(
        self, *, image_size: int, channels: int, device: torch.device, channels_last: bool
    ) -> NormaliseEach:
        return NormaliseEach(mean=self.mean, std=self.std, device=device)

    def name_of(self, index: int, split: str = "train") -> str:
        return shown(self._splits[split][0].files[index])

    def image_of(self, index: int, split: str = "val") -> Tensor:
        """The whole image at the size of its file, so that its boxes fit."""
        found = self._splits[split][0]
        header = found.headers[index]
        return read_image(found.files[index], header, header.height, header.width).permute(2, 0, 1)
