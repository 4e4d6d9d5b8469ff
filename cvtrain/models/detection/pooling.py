"""From boxes of any size on a map to features of one size for each."""

from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import roi_align, roi_pool

Kind = Literal["max", "align", "spp"]
KINDS = ("max", "align", "spp")
PYRAMID = (4, 2, 1)  # bins a side of each level of spatial pyramid pooling
SAMPLES = 2  # a side, in each bin of RoIAlign: four in all


def pooled_shape(kind: str, size: int) -> tuple[int, int]:
    """Bins down and across that `pool_regions` makes of each box."""
    return (sum(side**2 for side in PYRAMID), 1) if kind == "spp" else (size, size)


def pool_regions(maps: Tensor, boxes: list[Tensor], *, kind: str, size: int, stride: int) -> Tensor:
    """[R, C, bins down, bins across] of `boxes` (pixels, [R_n, 4] an image) on `maps` [N, C, h, w].

    `max` is the maximum in each of size x size bins, whose edges are rounded to cells (Fast R-CNN);
    `align` the mean of four points in each, interpolated, nothing rounded (Mask R-CNN); `spp` the
    maxima of 4x4, 2x2 and 1x1 bins, one after the other (He et al. 2014).
    """
    maps, scale = maps.float(), 1 / stride
    if kind == "align":
        return roi_align(maps, boxes, size, scale, sampling_ratio=SAMPLES, aligned=True)
    if kind == "max":
        return roi_pool(maps, boxes, size, scale)
    levels = [roi_pool(maps, boxes, side, scale).flatten(2) for side in PYRAMID]
    return torch.cat(levels, dim=2).unsqueeze(3)
