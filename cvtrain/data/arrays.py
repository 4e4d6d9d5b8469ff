"""Array data: a whole split as one uint8 tensor on the training device, no workers, no PIL."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from cvtrain.data.augment import Augment
from cvtrain.data.batch import ClassificationBatch, DataInfo
from cvtrain.data.download import fetch_all
from cvtrain.data.source import Augmentations, Source


class Arrays:
    """Images uint8 `[N, C, H, W]` and labels int64 `[N]`; batches are gathered by index."""

    def __init__(self, images: Tensor, labels: Tensor, augment: Augment | None = None) -> None:
        assert images.dtype == torch.uint8
        self.images, self.labels, self.augment = images, labels, augment

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Arrays":
        return Arrays(self.images.to(device), self.labels.to(device), self.augment)

    def padded(self, image_size: int) -> "Arrays":
        """Centred in a frame of zeros, as the 28x28 digits of 1998 are in 32x32."""
        spare = image_size - self.images.shape[-1]
        frame = (spare // 2, spare - spare // 2) * 2
        return Arrays(F.pad(self.images, frame), self.labels, self.augment)

    def batch(self, index: Tensor) -> ClassificationBatch:
        return ClassificationBatch(self.images[index], self.labels[index], index)

    def fingerprint(self) -> str:
        """Of every label and of a thousand images spread over the split."""
        stride = max(1, len(self) // 1000)
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.labels.numpy().tobytes())
        digest.update(self.images[::stride].contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


class ArraySource(Source):
    """A data set that is read whole from files below `root`; a subclass says how.

    What is missing is fetched from the address `url`, held against `sha256` (of each file).
    """

    classes: tuple[str, ...]
    channels: int
    image_size: int  # pixels

    def __init__(
        self,
        *,
        root: str,
        mean: list[float],
        std: list[float],
        url: str | None = None,
        sha256: dict[str, str] | None = None,
    ) -> None:
        self.mean, self.std, self.root = mean, std, Path(root)
        if url and (missing := self.missing(list(sha256 or ()))):
            fetch_all(url, {name: (sha256 or {})[name] for name in missing}, self.folder)
            self.unpack(missing)
        self._train = self.read("train")
        self._val: Arrays | None = None
        self.info = DataInfo(
            name=type(self).__name__,
            classes=self.classes,
            channels=self.channels,
            image_size=self.image_size,
            fingerprint=self._train.fingerprint(),
            counts=tuple(self._train.labels.bincount(minlength=len(self.classes)).tolist()),
        )

    def train(self, size: int, augmentations: Augmentations) -> Arrays:
        # A single tensor for all: whatever works on one image is made to work on each of a batch.
        augment = Augment(augmentations.as_batches(), augmentations.mixes)
        return Arrays(self._train.images, self._train.labels, augment)

    def val(self, size: int) -> Arrays:
        self._val = self._val or self.read("val")
        return self._val

    def image_of(self, index: int, split: str = "val") -> Tensor:
        return (self._train if split == "train" else self.val(0)).images[index]

    @property
    def folder(self) -> Path:
        """Where the files, or the archive that holds them, belong."""
        return self.root

    def missing(self, names: list[str]) -> list[str]:
        """Those of the files to fetch that are needed."""
        raise NotImplementedError

    def unpack(self, names: list[str]) -> None:
        """What was fetched, into the files that `read` wants."""

    def read(self, split: str) -> Arrays:
        """The split `train` or `val`. Raises DataError."""
        raise NotImplementedError
