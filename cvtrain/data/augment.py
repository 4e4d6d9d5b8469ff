"""Augmentation of array data: pure functions of (images, uniforms), a whole batch at a time.

The uniforms come from a table made once an epoch from (seed, epoch), so what happens to a sample
depends on nothing else: not on the batch, the process or an interruption.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


class ArrayTransform:
    """uint8 `[N, C, H, W]` and uniforms in [0, 1) `[N, draws]` to uint8 `[N, C, H, W]`."""

    draws: int

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        raise NotImplementedError


class PadCrop(ArrayTransform):
    """Pad each side with zeros, crop the old size anywhere: He et al. 2015, section 4.2."""

    draws = 2

    def __init__(self, *, padding: int = 4) -> None:
        self.padding = padding

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        device = images.device
        padded = F.pad(images, (self.padding,) * 4)
        top, left = (uniforms * (2 * self.padding + 1)).long().unbind(1)
        rows = top[:, None] + torch.arange(height, device=device)
        columns = left[:, None] + torch.arange(width, device=device)
        sample = torch.arange(count, device=device)
        channel = torch.arange(channels, device=device)
        return padded[
            sample[:, None, None, None],
            channel[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]


class HorizontalFlip(ArrayTransform):
    """Mirror left and right with probability p."""

    draws = 1

    def __init__(self, *, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        return torch.where(uniforms[..., None, None] < self.p, images.flip(-1), images)


class Affine(ArrayTransform):
    """Shift, scale, squeeze and shear: the planar distortions of LeCun et al. 1998, section III-B.

    Each number is drawn evenly between minus and plus its argument: rotation and horizontal shear
    in degrees, shifts in pixels, the two scales as 1 +- `scale` each (unequal ones squeeze).
    Bilinear; what comes in from outside is 0.
    """

    draws = 6

    def __init__(
        self, *, degrees: float = 0, shift: float = 0, scale: float = 0, shear: float = 0
    ) -> None:
        self.reach = torch.tensor([degrees, shift, shift, scale, scale, shear])

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        drawn = (2 * uniforms - 1) * self.reach.to(uniforms.device)
        degrees, shift_x, shift_y, scale_x, scale_y, shear = drawn.unbind(1)
        angle, lean = degrees * (math.pi / 180), torch.tan(shear * (math.pi / 180))
        cos, sin = torch.cos(angle), torch.sin(angle)
        # From an output position to the input position it shows, both in -1..1 of their own side.
        wide, high, ratio = 1 / (1 + scale_x), 1 / (1 + scale_y), height / width
        rows = (
            (cos * wide, (lean * cos - sin) * wide * ratio, shift_x * 2 / width),
            (sin * high / ratio, (lean * sin + cos) * high, shift_y * 2 / height),
        )
        theta = torch.stack([torch.stack(row, 1) for row in rows], 1)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        moved = F.grid_sample(images.float(), grid, padding_mode="zeros", align_corners=False)
        return moved.round_().to(torch.uint8)
