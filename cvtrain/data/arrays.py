"""Array data: a whole split as one uint8 tensor on the training device, no workers, no PIL."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cvtrain.data.augment import ArrayTransform
from cvtrain.data.batch import ClassificationBatch, DataInfo
from cvtrain.data.source import Source


class Arrays:
    """Images uint8 `[N, C, H, W]` and labels int64 `[N]`; batches are gathered by index."""

    def __init__(
        self, images: Tensor, labels: Tensor, augment: list[ArrayTransform] | None = None
    ) -> None:
        assert images.dtype == torch.uint8
        self.images, self.labels = images, labels
        self.augment = augment or []
        self.draws = sum(transform.draws for transform in self.augment)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Arrays":
        return Arrays(self.images.to(device), self.labels.to(device), self.augment)

    def padded(self, image_size: int) -> "Arrays":
        """Centred in a frame of zeros, as the 28x28 digits of 1998 are in 32x32."""
        spare = image_size - self.images.shape[-1]
        frame = (spare // 2, spare - spare // 2) * 2
        return Arrays(F.pad(self.images, frame), self.labels, self.augment)

    def batch(self, index: Tensor, uniforms: Tensor | None) -> ClassificationBatch:
        images = self.images[index]
        column = 0
        if uniforms is not None:
            uniforms = uniforms.to(images.device, non_blocking=True)
            for transform in self.augment:
                images = transform(images, uniforms[:, column : column + transform.draws])
                column += transform.draws
        return ClassificationBatch(images, self.labels[index], index)

    def fingerprint(self) -> str:
        """Of every label and of a thousand images spread over the split."""
        stride = max(1, len(self) // 1000)
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.labels.numpy().tobytes())
        digest.update(self.images[::stride].contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


class ArraySource(Source):
    """A data set that is read whole from files below `root`; a subclass says how."""

    classes: tuple[str, ...]
    channels: int
    image_size: int  # pixels

    def __init__(self, *, root: str, mean: list[float], std: list[float]) -> None:
        self.mean, self.std, self.root = mean, std, Path(root)
        self._train = self.read("train")
        self.info = DataInfo(
            name=type(self).__name__,
            classes=self.classes,
            channels=self.channels,
            image_size=self.image_size,
            fingerprint=self._train.fingerprint(),
        )

    def train(self, augment: list[Any]) -> Arrays:
        return Arrays(self._train.images, self._train.labels, augment)

    def val(self) -> Arrays:
        return self.read("val")

    def read(self, split: str) -> Arrays:
        """The split `train` or `val`. Raises DataError."""
        raise NotImplementedError
