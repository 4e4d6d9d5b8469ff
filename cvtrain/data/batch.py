"""Typed batches, what a data set says of itself, and the one transform from uint8 to floats."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class ClassificationBatch(NamedTuple):
    images: Tensor  # uint8 [N, C, H, W] from a loader; normalised floats after Normalise
    labels: Tensor  # int64 [N]; of mixed images, float [N, classes]: a share for each class
    ids: Tensor  # int64 [N]: positions in the split, to name a sample by


@dataclass(frozen=True)
class DataInfo:
    """What sizes a network and names its outputs."""

    name: str
    classes: tuple[str, ...]
    channels: int
    image_size: int  # native height and width, pixels
    fingerprint: str  # of the training split: a resumed run must meet the same data
    names: tuple[str, ...] = ()  # how classes are shown, where that is not how they are stored
    counts: tuple[int, ...] = ()  # training samples of each class, where there are classes

    @property
    def shown(self) -> tuple[str, ...]:
        """The classes as a reader wants to see them."""
        return self.names or self.classes


def to_device(batch: Any, device: torch.device) -> Any:
    """The same batch with every tensor on `device`; asynchronous from pinned memory."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


class Normalise:
    """uint8 `[N, C, H, W]` to floats of the network's size and channels, on the batch's device.

    `mean` and `std` are of the pixels scaled to 0..1. Images that are not of `image_size` are
    resized (bilinear, antialiased); grey ones are repeated to `channels`.
    """

    def __init__(
        self,
        *,
        mean: list[float],
        std: list[float],
        image_size: int,
        channels: int,
        device: torch.device,
        channels_last: bool = False,
    ) -> None:
        # (x/255 - mean)/std as one multiply-add.
        self.scale = (1 / (255 * torch.tensor(std))).view(-1, 1, 1).to(device)
        self.shift = (-torch.tensor(mean) / torch.tensor(std)).view(-1, 1, 1).to(device)
        self.size = (image_size, image_size)
        self.channels = channels
        self.format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, batch: Any) -> Any:
        images = torch.addcmul(self.shift, batch.images, self.scale)
        if images.shape[-2:] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        if images.shape[1] != self.channels:
            images = images.expand(-1, self.channels, -1, -1)
        return batch._replace(images=images.contiguous(memory_format=self.format))
