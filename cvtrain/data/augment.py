"""Augmentation: pure functions of (images, uniforms), a whole batch at a time on the device.

The uniforms come from a table made once an epoch from (seed, epoch), so what happens to a sample
depends on nothing else: not on the batch, the process or an interruption. Transforms of torchvision
work one image at a time, and mix (MixUp, CutMix) a batch at a time.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

MIXES = (v2.MixUp, v2.CutMix)


class BatchTransform:
    """uint8 `[N, C, H, W]` and uniforms in [0, 1) `[N, draws]` to uint8 `[N, C, H, W]`."""

    draws: int

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        raise NotImplementedError


class OneByOne(BatchTransform):
    """A transform that draws for itself, from generators seeded by the sample's uniform."""

    draws = 1

    def __init__(self, transform: nn.Module) -> None:
        self.transform = transform

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        done = []
        for image, uniform in zip(images, uniforms[:, 0].tolist(), strict=True):
            torch.default_generator.manual_seed(int(uniform * 2**53))
            done.append(self.transform(image))
        return torch.stack(done)


class Augment:
    """What training does to a batch after it is read: the transforms of `steps`, then one of
    `mixes`.
    """

    def __init__(self, steps: list[BatchTransform], mixes: list[Any] | None = None) -> None:
        self.steps, self.mixes = steps, mixes or []
        self.draws = sum(step.draws for step in steps)

    def __call__(self, batch: Any, uniforms: Tensor) -> Any:
        """The batch with its images changed; `uniforms` is `[N, draws]`."""
        images, column = batch.images, 0
        uniforms = uniforms.to(images.device, non_blocking=True)
        for step in self.steps:
            images = step(images, uniforms[:, column : column + step.draws])
            column += step.draws
        return batch._replace(images=images)

    def mix(self, batch: Any, seed: int) -> Any:
        """Images (floats of 0..255) and labels (shares, float `[N, classes]`) of two samples each.

        Which mix, its ratio and its box are drawn from `seed`; the partner is the sample before.
        """
        torch.default_generator.manual_seed(seed)
        chosen = self.mixes[int(torch.randint(len(self.mixes), ()))]
        images, labels = chosen(batch.images.float(), batch.labels)
        return batch._replace(images=images, labels=labels)


class PadCrop(BatchTransform):
    """Pad each side with zeros, crop the old size anywhere: He et al. 2015, section 4.2."""

    draws = 2

    def __init__(self, *, padding: int = 4) -> None:
        self.padding = padding

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        padded = F.pad(images, (self.padding,) * 4)
        top, left = (uniforms * (2 * self.padding + 1)).long().unbind(1)
        rows = top[:, None] + torch.arange(height, device=images.device)
        columns = left[:, None] + torch.arange(width, device=images.device)
        # Positions in an image that is one long row: a single gather.
        places = rows[:, :, None] * padded.shape[-1] + columns[:, None, :]
        places = places.view(count, 1, -1).expand(-1, channels, -1)
        return padded.reshape(count, channels, -1).gather(2, places).view(images.shape)


class HorizontalFlip(BatchTransform):
    """Mirror left and right with probability p."""

    draws = 1

    def __init__(self, *, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        return torch.where(uniforms[..., None, None] < self.p, images.flip(-1), images)


class Affine(BatchTransform):
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


class Lighting(BatchTransform):
    """Adds multiples of the principal components of ImageNet's RGB values, each drawn from a normal
    distribution of deviation `sigma`: Krizhevsky et al. 2012, section 4.1.

    `values` are the components' eigenvalues and `vectors` the matrix whose columns they belong to,
    of pixels scaled to 0..1 (the ones that Torch's own ImageNet training published).
    """

    draws = 3

    def __init__(self, *, sigma: float, values: list[float], vectors: list[list[float]]) -> None:
        self.basis = 255 * sigma * torch.tensor(vectors) * torch.tensor(values)

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        if images.shape[1] != 3:
            return images  # there is no colour to change
        # Uniforms to normal numbers; away from 0 and 1, where they would be infinite.
        normal = torch.special.ndtri(uniforms.double().clamp(1e-7, 1 - 1e-7)).float()
        shift = normal @ self.basis.T.to(images.device)
        return (images + shift[:, :, None, None]).round_().clamp_(0, 255).to(torch.uint8)
