"""Which part of an image the network sees: crops, as boxes in the image's own pixels.

File data decode no more than the box; array data are sampled at it, a whole batch at a time.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from cvtrain.data.augment import BatchTransform
from cvtrain.data.images import Box


class Crop(BatchTransform):
    """A box from `draws` uniforms in [0, 1) and the image's size alone."""

    def box(self, uniforms: list[float], width: int, height: int) -> Box:
        """Left, top, right, bottom in pixels of the image."""
        raise NotImplementedError

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        boxes = torch.tensor([self.box(row, width, height) for row in uniforms.tolist()])
        left, top, right, bottom = boxes.to(images.device).unbind(1)
        nothing = torch.zeros_like(left)
        # From -1..1 of the output to -1..1 of the input.
        across = ((right - left) / width, nothing, (left + right) / width - 1)
        down = (nothing, (bottom - top) / height, (top + bottom) / height - 1)
        theta = torch.stack([torch.stack(row, 1) for row in (across, down)], 1)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        seen = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
        return seen.round_().to(torch.uint8)


class CenterCrop(Crop):
    """The middle: the short side is resized to `size / fraction`, a square of `size` is cut out."""

    draws = 0

    def __init__(self, *, fraction: float = 0.875) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"a fraction of {fraction} is not in 0..1; 0.875 is 224 of 256")
        self.fraction = fraction

    def box(self, uniforms: list[float], width: int, height: int) -> Box:
        side = self.fraction * min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side


def view_boxes(share: float, width: int, height: int, *, corners: bool) -> list[Box]:
    """Squares whose side is a `share` of the short side: the middle, `corners` before it.

    These are the upper left, upper right, lower left and lower right one, torchvision's order.
    """
    side = share * min(width, height)
    right, bottom = width - side, height - side
    places = [(0, 0), (right, 0), (0, bottom), (right, bottom)] if corners else []
    places.append((right / 2, bottom / 2))
    return [(left, top, left + side, top + side) for left, top in places]


class ScaleJitter(Crop):
    """A square anywhere, of an image whose short side was resized to a random multiple of it.

    Multiples of 1.143 to 2.143 are the sides 256 to 480 of He et al. 2015, section 3.4; to 2.286
    the 256 to 512 of Simonyan and Zisserman 2014, section 3.1.
    """

    draws = 3

    def __init__(self, *, low: float = 1.143, high: float = 2.143) -> None:
        if not 1 <= low <= high:
            raise ValueError(f"the short side must be at least the crop: 1 <= low={low} <= {high}")
        self.low, self.high = low, high

    def box(self, uniforms: list[float], width: int, height: int) -> Box:
        side = min(width, height) / (self.low + uniforms[0] * (self.high - self.low))
        left, top = uniforms[1] * (width - side), uniforms[2] * (height - side)
        return left, top, left + side, top + side


class RandomResizedCrop(Crop):
    """A random share of the area at a random aspect ratio (Szegedy et al. 2014, section 6).

    Of ten tries, as torchvision has it, the first that fits; else the middle.
    """

    tries = 10
    draws = 2 * tries + 2

    def __init__(self, *, scale: list[float], ratio: list[float]) -> None:
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"scale={scale} and ratio={ratio} must be [low, high], scale in 0..1")
        self.scale, self.log_ratio = scale, [math.log(r) for r in ratio]

    def box(self, uniforms: list[float], width: int, height: int) -> Box:
        (smallest, largest), (low, high) = self.scale, self.log_ratio
        for k in range(self.tries):
            area = width * height * (smallest + uniforms[2 * k] * (largest - smallest))
            ratio = math.exp(low + uniforms[2 * k + 1] * (high - low))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left = int(uniforms[-2] * (width - w + 1))
                top = int(uniforms[-1] * (height - h + 1))
                return left, top, left + w, top + h
        ratio = min(max(width / height, math.exp(low)), math.exp(high))
        w = max(1, round(min(width, height * ratio)))
        h = max(1, round(min(height, width / ratio)))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h
