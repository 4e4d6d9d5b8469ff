"""What a data set is to the rest: an info record, splits, and the transform of its batches."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cvtrain.data.augment import MIXES, BatchTransform, OneByOne
from cvtrain.data.batch import DataInfo, Normalise
from cvtrain.data.crops import Crop
from cvtrain.errors import ConfigError


@dataclass
class Augmentations:
    """`data.augment`, sorted by what each works on; in a kind, the order is that of the YAML."""

    crop: Crop | None = None  # which part of an image is seen; None: the middle, or all of an array
    images: list[nn.Module] = field(default_factory=list)  # torchvision's: one image at a time
    batches: list[BatchTransform] = field(default_factory=list)  # ours: a batch on the device
    mixes: list[Any] = field(default_factory=list)  # torchvision's: between images of a batch

    @classmethod
    def sort(cls, transforms: list[Any]) -> "Augmentations":
        """Raises ConfigError for two crops: an image is read once."""
        sorted_ = cls()
        for transform in transforms:
            if isinstance(transform, Crop):
                if sorted_.crop is not None:
                    names = (type(crop).__name__ for crop in (sorted_.crop, transform))
                    raise ConfigError(
                        f"two crops, {' and '.join(names)}", "data.augment", "type one of them"
                    )
                sorted_.crop = transform
            elif isinstance(transform, MIXES):
                sorted_.mixes.append(transform)
            elif isinstance(transform, BatchTransform):
                sorted_.batches.append(transform)
            else:
                sorted_.images.append(transform)
        return sorted_

    def as_batches(self) -> list[BatchTransform]:
        """All but the mixes as transforms of whole batches."""
        crops = [] if self.crop is None else [self.crop]
        return [*crops, *map(OneByOne, self.images), *self.batches]


class Split(Protocol):
    """Array data: everything in memory, a batch is an index. (File data: a torch `Dataset`.)

    In training `augment`, if it is not None, is called as `augment(batch, uniforms [N, draws])`.
    """

    augment: Any

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> "Split": ...

    def batch(self, index: Tensor) -> Any:
        """The typed batch of the samples `index` [N]."""


class Source:
    """Base of every data set. The constructor reads what `info` needs and refuses what is missing.

    A split is a torch `Dataset` (file data, read by workers) or a `Split` (array data).
    """

    info: DataInfo
    mean: list[float]
    std: list[float]
    bad: tuple[str, ...] = ()  # files that were left out, each with its reason

    def train(self, size: int, augmentations: Augmentations) -> Any:
        """The training split, for a network that takes images of `size` pixels."""
        raise NotImplementedError

    def val(self, size: int) -> Any:
        raise NotImplementedError

    def in_views(self, split: Any, views: str, scales: list[int] | None) -> Any:
        """A split that is not augmented, each sample in `views` (one_crop, ten_crop) at `scales`.

        Scales are short sides in pixels. A split of several views a sample has their number as
        `views`, its batches images `[N, V, C, H, W]`. Raises ConfigError where there is but one.
        """
        if views != "one_crop" or scales:
            raise ConfigError(
                f"{self.info.name} has one view of each sample; folders of images have more",
                "eval.scales" if scales else "eval.views",
                "type eval.views=one_crop eval.scales=null",
            )
        return split

    def transform(
        self, *, image_size: int, channels: int, device: torch.device, channels_last: bool
    ) -> Any:
        """From a loader's uint8 batch to what the task's network takes."""
        return Normalise(
            mean=self.mean,
            std=self.std,
            image_size=image_size,
            channels=channels,
            device=device,
            channels_last=channels_last,
        )

    def name_of(self, index: int, split: str = "train") -> str:
        """How a sample is named in an error or below its picture."""
        return f"{split}[{index}]"

    def image_of(self, index: int, split: str = "val") -> Tensor | None:
        """uint8 `[C, H, W]` of a sample to look at; None where there is no picture."""
        return None
