"""Typed batches, what a data set says of itself, and the one transform from uint8 to floats."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class ClassificationBatch(NamedTuple):
    images: Tensor  # uint8 [N, C, H, W] (of views [N, V, C, H, W]); floats after Normalise
    labels: Tensor  # int64 [N]; of mixed images, float [N, classes]: a share for each class
    ids: Tensor  # int64 [N]: positions in the split, to name a sample by


class LabelsBatch(NamedTuple):
    """Several labels for each image."""

    images: Tensor  # as above
    labels: Tensor  # int64 [N, columns]: the class in each column of DataInfo; -1 where missing
    ids: Tensor  # int64 [N]


class BoxBatch(NamedTuple):
    """One object in each image."""

    images: Tensor  # as above
    labels: Tensor  # int64 [N]
    boxes: Tensor  # float32 [N, 4]: left, top, right, bottom, as shares (0..1) of width and height
    ids: Tensor  # int64 [N]


class DetectionBatch(NamedTuple):
    """Any number of objects in each image, which need not be of one size."""

    images: list[Tensor]  # [3, H, W]: uint8 from a loader, normalised floats after its transform
    # `boxes` float32 [n, 4]: left, top, right, bottom in pixels of that image; `labels` int64 [n],
    # 1 to the number of classes (0 is the background); where the data have them `masks` uint8
    # [n, H, W]. Never crowds. `draw` int64 []: seeds what is sampled of the image in training.
    targets: list[dict[str, Tensor]]
    # Of the image as it is in its file: `size` int64 [2] (height, width); of all objects `boxes`,
    # `labels`, `crowd` bool [m], `area` float32 [m], `difficult` bool [m]; with masks `rles`, m
    # compressed run lengths (bytes).
    truths: list[dict[str, Any]]
    proposals: list[Tensor] | None  # float32 [P, 4], for methods that take outside ones
    ids: Tensor  # int64 [N]


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
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of several labels: classes

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


def scale_and_shift(
    mean: list[float], std: list[float], device: torch.device
) -> tuple[Tensor, Tensor]:
    """`[C, 1, 1]` each: (x/255 - mean)/std as one multiply-add."""
    scale = (1 / (255 * torch.tensor(std))).view(-1, 1, 1).to(device)
    shift = (-torch.tensor(mean) / torch.tensor(std)).view(-1, 1, 1).to(device)
    return scale, shift


class Normalise:
    """uint8 `[N, C, H, W]` to floats of the network's size and channels, on the batch's device.

    Of several views `[N, V, C, H, W]`, each is treated as an image.
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
        self.scale, self.shift = scale_and_shift(mean, std, device)
        self.size = (image_size, image_size)
        self.channels = channels
        self.format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, batch: Any) -> Any:
        images = torch.addcmul(self.shift, batch.images, self.scale).flatten(0, -4)
        if images.shape[-2:] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        if images.shape[1] != self.channels:
            images = images.expand(-1, self.channels, -1, -1)
        images = images.contiguous(memory_format=self.format)
        return batch._replace(images=images.unflatten(0, batch.images.shape[:-3]))
