"""Augmentation of images with boxes: torchvision's transforms, one sample at a time.

Of ours, those of whole batches, a flip is understood as torchvision's, and colours may change.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from cvtrain.data.augment import STILL, BatchTransform, HorizontalFlip, check_boxes
from cvtrain.data.source import Augmentations
from cvtrain.errors import ConfigError

FLIPS = (v2.RandomHorizontalFlip, v2.RandomVerticalFlip)


class LargeScaleJitter(v2.Compose):
    """An image resized at random, a square of `size` pixels of it (Ghiasi et al. 2021).

    The resizing is by `low` to `high` times what would fit the image into the square; a smaller
    image lies anywhere in it, on the colour `fill`.
    """

    def __init__(self, *, size: int, low: float, high: float, fill: list[int]) -> None:
        if not 0 < low <= high or size < 1:
            raise ValueError(f"size={size} low={low} high={high}: must be 0 < low <= high")
        jitter = v2.ScaleJitter((size, size), (low, high))
        outside = {tv_tensors.Image: fill, "others": 0}  # where no mask is
        super().__init__([jitter, v2.RandomCrop(size, pad_if_needed=True, fill=outside)])


# What decides on the size of the image that the network sees.
SIZING = (v2.ScaleJitter, v2.RandomShortestSize, v2.RandomResize, v2.Resize, LargeScaleJitter)
# Those of torchvision that take the boxes along.
MOVING = (
    *(*FLIPS, *SIZING, v2.RandomIoUCrop, v2.RandomZoomOut, v2.RandomCrop, v2.RandomResizedCrop),
    *(v2.CenterCrop, v2.Pad, v2.RandomAffine, v2.RandomRotation, v2.RandomPerspective),
)


class OfOneImage(v2.Transform):
    """A batch transform that leaves every object where it is, of one image."""

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, step: BatchTransform) -> None:
        super().__init__()
        self.step = step

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        changed = self.step(inpt.as_subclass(torch.Tensor)[None], torch.rand(1, self.step.draws))
        return tv_tensors.wrap(changed[0], like=inpt)


class IoUCrop(v2.Transform):
    """A crop that depends on the objects, which are the first boxes; others are cut alike."""

    def __init__(self, crop: v2.RandomIoUCrop) -> None:
        super().__init__()
        self.crop = crop

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        params = self.crop.make_params(flat_inputs)
        return {**params, "objects": v2.get_bounding_boxes(flat_inputs)} if params else {}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if params and isinstance(inpt, tv_tensors.BoundingBoxes) and inpt is not params["objects"]:
            place = (params[key] for key in ("top", "left", "height", "width"))
            return F.clamp_bounding_boxes(F.crop(inpt, *place))
        return self.crop.transform(inpt, params)


def of_samples(augmentations: Augmentations) -> list[v2.Transform]:
    """Transforms of (image, {boxes, ...}), in their order. Raises ConfigError for others."""
    crops = [] if augmentations.crop is None else [augmentations.crop]
    given = [*crops, *augmentations.images, *augmentations.batches, *augmentations.mixes]
    check_boxes([transform for transform in given if not _takes_boxes(transform)])
    for transform in given:
        if not isinstance(transform, v2.Transform | BatchTransform):
            raise ConfigError(
                f"{type(transform).__name__} takes no boxes along",
                "data.augment",
                "type augment= without it, or with one of torchvision.transforms.v2",
            )
    return [_one(transform) for transform in given]


def _takes_boxes(transform: Any) -> bool:
    """One of a user's own is trusted to."""
    theirs = type(transform).__module__.partition(".")[0] not in ("cvtrain", "torchvision")
    return isinstance(transform, MOVING) or (theirs and isinstance(transform, v2.Transform))


def _one(transform: Any) -> v2.Transform:
    if isinstance(transform, HorizontalFlip):
        return v2.RandomHorizontalFlip(transform.p)
    if isinstance(transform, v2.RandomIoUCrop):
        return IoUCrop(transform)
    if hasattr(transform, "_fill"):  # of torchvision's: the colour outside is no mask's
        transform._fill = {**transform._fill, tv_tensors.Mask: 0}
    return OfOneImage(transform) if isinstance(transform, BatchTransform) else transform


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


def keep_size(transforms: list[v2.Transform]) -> bool:
    """Whether an image is as large after all of them as it was before."""
    return all(isinstance(t, (*STILL, *FLIPS, OfOneImage)) for t in transforms)
