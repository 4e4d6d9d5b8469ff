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

from cvtrain.errors import ConfigError

MIXES = (v2.MixUp, v2.CutMix)
# Those of torchvision that leave an object where it is.
STILL = (
    *(v2.ColorJitter, v2.Grayscale, v2.RandomGrayscale, v2.RandomPhotometricDistort),
    *(v2.RandomChannelPermutation, v2.GaussianBlur, v2.GaussianNoise, v2.RandomAdjustSharpness),
    *(v2.RandomAutocontrast, v2.RandomEqualize, v2.RandomInvert, v2.RandomPosterize),
    *(v2.RandomSolarize, v2.RandomErasing),
)


class BatchTransform:
    """uint8 `[N, C, H, W]` and uniforms in [0, 1) `[N, draws]` to uint8 `[N, C, H, W]`."""

    draws: int
    keeps_boxes = False  # whether `move_boxes` says where an object is afterwards

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        raise NotImplementedError

    def move_boxes(self, boxes: Tensor, uniforms: Tensor) -> Tensor:
        """Those of a BoxBatch `[N, 4]`; here of a transform that leaves objects in their places."""
        return boxes


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
        """The batch with its images changed, and boxes moved; `uniforms` is `[N, draws]`."""
        images, column = batch.images, 0
        uniforms = uniforms.to(images.device, non_blocking=True)
        for step in self.steps:
            drawn = uniforms[:, column : column + step.draws]
            images = step(images, drawn)
            if hasattr(batch, "boxes"):
                batch = batch._replace(boxes=step.move_boxes(batch.boxes, drawn))
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


def check_boxes(transforms: list[Any]) -> None:
    """Raises ConfigError for the first of them that moves pixels and not the boxes around them."""
    for transform in transforms:
        if not getattr(transform, "keeps_boxes", isinstance(transform, STILL)):
            raise ConfigError(
                f"{type(transform).__name__} does not say where it moves the boxes of objects",
                "data.augment",
                "type augment= without it, as augment=[flip,color_jitter]",
            )


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
    keeps_boxes = True

    def __init__(self, *, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        return torch.where(uniforms[..., None, None] < self.p, images.flip(-1), images)

    def move_boxes(self, boxes: Tensor, uniforms: Tensor) -> Tensor:
        left, top, right, bottom = boxes.unbind(1)
        mirrored = torch.stack([1 - right, top, 1 - left, bottom], 1)
        return torch.where(uniforms < self.p, mirrored, boxes)


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
    keeps_boxes = True

    def __init__(self, *, sigma: float, values: list[float], vectors: list[list[float]]) -> None:
        self.basis = 255 * sigma * torch.tensor(vectors) * torch.tensor(values)

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        if images.shape[1] != 3:
            return images  # there is no colour to change
        # Uniforms to normal numbers; away from 0 and 1, where they would be infinite.
        normal = torch.special.ndtri(uniforms.double().clamp(1e-7, 1 - 1e-7)).float()
        shift = normal @ self.basis.T.to(images.device)
        return (images + shift[:, :, None, None]).round_().clamp_(0, 255).to(torch.uint8)
