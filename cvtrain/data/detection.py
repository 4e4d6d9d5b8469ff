"""Images with any number of objects: what a worker reads of them, and what all sources share."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.ops import remove_small_boxes
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from cvtrain.data.batch import DataInfo, DetectionBatch, scale_and_shift
from cvtrain.data.box_transforms import SIZING, Fit, keep_size, of_samples
from cvtrain.data.images import read_image, shown
from cvtrain.data.masks import decoded, resized
from cvtrain.data.objects import Mistakes, Objects, check_choice
from cvtrain.data.proposals import Boxes, Proposer, Split
from cvtrain.data.scan import Scan, judge, look
from cvtrain.data.source import Augmentations, Source
from cvtrain.errors import ConfigError

log = logging.getLogger(__name__)

Sample = tuple[Tensor, dict[str, Tensor], dict[str, Any], int]


class DetectionFiles(Dataset):
    """Images uint8 `[3, H, W]` of a scan, their targets and their truths, as in DetectionBatch.

    `transforms` (of torchvision, seeing boxes) come after resizing if they leave the size alone;
    else before it, at the size of the file, and one that decides on the size has the last word
    unless the image is to be a square. Targets of less than `min_box` pixels a side are left out.
    `proposals` are those of a target until they are collated; they have at least one pixel a side.
    """

    def __init__(
        self,
        found: Scan,
        objects: Objects,
        *,
        fit: Fit,
        min_box: float = 1.0,
        transforms: list[v2.Transform] | None = None,
        proposals: Boxes | None = None,
    ) -> None:
        self.found, self.objects, self.fit = found, objects, fit
        self.proposals = proposals
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
        headers = self.found.headers
        return torch.from_numpy(np.greater_equal(headers.width, headers.height).astype(np.int64))

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
        target = {
            "boxes": _scaled(self.objects.boxes[rows][learnt], scale, height, width),
            "labels": torch.from_numpy(self.objects.labels[rows][learnt]),
        }
        if self.proposals is not None:  # after the boxes, of which some transforms take the first
            target["proposals"] = _scaled(self.proposals.of(index), scale, height, width)
        codes = self.objects.masks.codes(rows, *size) if self.objects.masks else None
        if codes is not None:
            own = [code for code, one in zip(codes, learnt, strict=True) if one]
            target["masks"] = decoded(own, size, (height, width))
        image, target = self._changed(tv_tensors.Image(pixels), target)
        target["draw"] = torch.randint(2**62, ())  # what its network samples, whoever computes it
        truth: dict[str, Any] = {
            "size": torch.tensor(size),
            "boxes": torch.from_numpy(self.objects.boxes[rows]),
            "labels": torch.from_numpy(self.objects.labels[rows]),
            "area": torch.from_numpy(self.objects.area[rows]),
            "crowd": torch.from_numpy(self.objects.crowd[rows]),
            "difficult": torch.from_numpy(self.objects.difficult[rows]),
        }
        if codes is not None:
            truth["rles"] = codes
        return image, target, truth, index

    def _changed(
        self, image: Tensor, target: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        for transform in self.transforms:
            image, target = transform(image, target)
        if self.fit_last:
            size = list(self.fit(*image.shape[-2:]))
            image = F.resize(image, size, antialias=True)
            for key in target.keys() & {"boxes", "proposals"}:
                target[key] = F.resize(target[key], size)
            if "masks" in target:
                target["masks"] = resized(target["masks"], size)
        # What rounding puts outside is not to be left out for it.
        target = {**target, "boxes": F.clamp_bounding_boxes(target["boxes"])}
        proposals = target.pop("proposals", None)  # of which the objects' flaws say nothing
        image, target = self.sanitize(image, target)
        plain = {key: value.as_subclass(Tensor) for key, value in target.items()}
        if proposals is not None:
            boxes = F.clamp_bounding_boxes(proposals).as_subclass(Tensor)
            plain["proposals"] = boxes[remove_small_boxes(boxes, 1)]
        return image.as_subclass(Tensor), plain

    @staticmethod
    def collate(samples: list[Sample]) -> DetectionBatch:
        images, targets, truths, ids = zip(*samples, strict=True)
        together = _by_key(targets)
        proposals = [target.pop("proposals") for target in together if "proposals" in target]
        return DetectionBatch(
            _together([*images]),
            together,
            _by_key(truths),
            proposals or None,
            torch.tensor(ids),
        )


def _scaled(boxes: NDArray[np.float32], scale: Tensor, height: int, width: int) -> Tensor:
    resized = torch.from_numpy(boxes) * scale
    return tv_tensors.BoundingBoxes(resized, format="XYXY", canvas_size=(height, width))


def _together(tensors: list[Tensor]) -> list[Tensor]:
    """The same tensors in one storage: each costs the processes that share it an open file."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _by_key(dicts: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    columns = {key: [each[key] for each in dicts] for key in dicts[0]}
    for key, values in columns.items():
        if isinstance(values[0], Tensor):
            columns[key] = _together(values)
    return [{key: columns[key][i] for key in columns} for i in range(len(dicts))]


class NormaliseEach:
    """The images of a DetectionBatch, uint8 `[3, H, W]`, to floats, on the device they are on."""

    def __init__(self, *, mean: list[float], std: list[float], device: torch.device) -> None:
        self.scale, self.shift = scale_and_shift(mean, std, device)

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
        proposals: str | None = None,
        proposals_count: int = 2000,
        proposals_min: int = 20,
    ) -> None:
        check_choice("on_bad", on_bad, ("error", "skip"))
        check_choice("on_bad_boxes", on_bad_boxes, ("error", "drop"))
        for key, value in (("long_side", long_side), ("square", square), ("min_box", min_box)):
            if value is not None and value < 1:
                raise ConfigError(f"data.{key}={value}", "", "type a number of pixels, at least 1")
        self.root, self.mean, self.std = Path(root), mean, std
        self.long_side, self.square, self.min_box = long_side, square, min_box
        self.max_pixels, self.on_bad, self.on_bad_boxes = max_pixels, on_bad, on_bad_boxes
        self._splits: dict[str, Split] = {}
        self.proposer = proposals and Proposer(proposals, proposals_count, proposals_min)
        self._proposals: dict[str, Boxes] = {}

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

    def _keep(
        self, split: str, found: Scan, objects: Objects, ids: list[int] | None = None
    ) -> None:
        """Raises DataError: BAD-IMAGE, IMAGE-TOO-LARGE; or leaves bad images out.

        `ids` are how results name the images; else it is by their files, without the suffix.
        """
        judge(found, self.on_bad, emptied=set())
        if found.bad:
            objects = objects.of_images(found.labels)
        names = [ids[i] for i in found.labels] if ids else [f.stem for f in found.files]
        self._splits[split] = Split(split, found, objects, names)

    def _describe(self, classes: tuple[str, ...]) -> None:
        """What is known once all splits are."""
        bad = dict(line for split in self._splits.values() for line in split.found.bad)
        self.bad = tuple(f"{shown(file)}\t{reason}" for file, reason in bad.items())
        train, objects = self._splits["train"], self._splits["train"].objects
        digest = hashlib.sha256(f"{classes!a}{train.found.fingerprint()}".encode())
        for array in (objects.offsets, objects.boxes, objects.labels, objects.learnt):
            digest.update(array.tobytes())
        if objects.masks is not None:
            digest.update(objects.masks.numbers.tobytes())
        if self.proposer:
            digest.update(self.proposer.fingerprint(train).encode())
        self.info = DataInfo(
            name=type(self).__name__,
            classes=classes,
            channels=3,
            image_size=self.native_size,
            fingerprint=digest.hexdigest()[:16],
            counts=objects.counts(len(classes)),
        )
        counts = ", ".join(
            f"{len(split.found.files)} {name} images with {int(split.objects.learnt.sum())} boxes"
            for name, split in self._splits.items()
        )
        log.info("%s: %d classes, %s", shown(self.root), len(classes), counts)

    def _files(self, split: str, size: int, transforms: list[v2.Transform]) -> DetectionFiles:
        if self.proposer and split not in self._proposals:  # not before: it may take hours
            self._proposals[split] = self.proposer.boxes(split, self._splits)
        fit = Fit(size, self.long_side, self.square)
        return DetectionFiles(
            self._splits[split].found,
            self._splits[split].objects,
            fit=fit,
            min_box=self.min_box,
            transforms=transforms,
            proposals=self._proposals.get(split),
        )

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
        return shown(self._splits[split].found.files[index])

    def image_of(self, index: int, split: str = "val") -> Tensor:
        """The whole image at the size of its file, so that its boxes fit."""
        found = self._splits[split].found
        header = found.headers[index]
        return read_image(found.files[index], header, header.height, header.width).permute(2, 0, 1)
