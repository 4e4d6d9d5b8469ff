"""Masks of objects: kept as their file has them, decoded image by image."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

Numbers = NDArray[np.float64]  # exact for pixels; coordinates of 32 bits round to other ones
# Polygons (x, y, x, y, ...), or the lengths of runs, column by column, the first of them outside.
Mask = list[Numbers] | Numbers


@dataclass(frozen=True)
class Masks:
    """Of object `i` the parts `parts[i]` to `parts[i + 1]`: polygons, or its runs as the only one.

    Of part `j` the numbers `starts[j]` to `starts[j + 1]`.
    """

    numbers: Numbers
    starts: NDArray[np.int64]  # [parts + 1]
    parts: NDArray[np.int64]  # [objects + 1]
    runs: NDArray[np.bool_]  # [objects]

    @classmethod
    def of(cls, masks: Sequence[Mask]) -> "Masks":
        parts = [mask if isinstance(mask, list) else [mask] for mask in masks]
        flat = [part for each in parts for part in each]
        return cls(
            np.concatenate([np.zeros(0), *flat]),
            _offsets(map(len, flat)),
            _offsets(map(len, parts)),
            np.array([not isinstance(mask, list) for mask in masks], bool),
        )

    def __getitem__(self, row: int) -> Mask:
        first, last = self.parts[row : row + 2].tolist()
        ends = self.starts[first : last + 1].tolist()
        parts = [self.numbers[a:b] for a, b in pairwise(ends)]
        return parts[0] if self.runs[row] else parts

    def codes(self, rows: slice, height: int, width: int) -> list[bytes]:
        """COCO's compressed run lengths, of some objects of an image of that size."""
        return [_code(self[row], height, width) for row in range(rows.start, rows.stop)]


def _offsets(counts: Iterable[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(list(counts))]).astype(np.int64)


def _code(mask: Mask, height: int, width: int) -> bytes:
    from pycocotools import mask as coco

    if isinstance(mask, list):
        code = coco.merge(coco.frPyObjects(mask, height, width))
    else:
        code = coco.frPyObjects({"size": [height, width], "counts": mask}, height, width)
    return bytes(code["counts"])


def decoded(codes: list[bytes], size: tuple[int, int], shown: tuple[int, int]) -> tv_tensors.Mask:
    """uint8 `[n, *shown]` of masks that are `size` (both are height and width in pixels).

    At that size there is one at a time: of a large photo they may be gigabytes together.
    """
    from pycocotools import mask as coco

    masks = torch.empty(len(codes), *shown, dtype=torch.uint8)
    for row, code in enumerate(codes):
        whole = torch.from_numpy(coco.decode({"size": list(size), "counts": code}))
        masks[row] = resized(whole[None], list(shown))
    return tv_tensors.Mask(masks)


def resized(masks: Tensor, size: list[int]) -> tv_tensors.Mask:
    """Of `[n, H, W]`; each pixel as what was in its middle: torchvision's own are half a pixel off,
    where images become smaller.
    """
    plain = masks.as_subclass(Tensor)
    return tv_tensors.Mask(F.resize(plain, size, interpolation=InterpolationMode.NEAREST_EXACT))
