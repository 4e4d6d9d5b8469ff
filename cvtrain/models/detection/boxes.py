"""Boxes as offsets from other boxes: what the detectors learn (R-CNN, appendix C).

A box is left, top, right, bottom in pixels; right and bottom lie just outside, so that a width is
right - left (the Caffe code counted the last pixel in: right - left + 1). Offsets are
((x - x_r) / w_r, (y - y_r) / h_r, log(w / w_r), log(h / h_r)) of the centre x, y and the size w, h
of the box and its reference, each divided by `stds` to be of about variance 1. All of it is fp32.
"""

import math

import torch
from torch import Tensor

NO_STDS = (1.0, 1.0, 1.0, 1.0)
STDS = (0.1, 0.1, 0.2, 0.2)  # of the offsets of objects from the proposals that hit them
MOST = math.log(1000 / 16)  # of a log-size: a box of 16 px grows to 1000 px, and no further
LEAST = 1e-3  # pixels: what has no width has this one, for its logarithm


def centre(boxes: Tensor) -> Tensor:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def extent(boxes: Tensor) -> Tensor:
    """Width and height, [..., 2]."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=LEAST)


def encode(boxes: Tensor, references: Tensor, stds: tuple[float, ...] = NO_STDS) -> Tensor:
    """float32 [..., 4], the offsets of `boxes` [..., 4] from `references` [..., 4]."""
    boxes, references = boxes.float(), references.float()
    shift = (centre(boxes) - centre(references)) / extent(references)
    growth = torch.log(extent(boxes) / extent(references))
    return torch.cat([shift, growth], dim=-1) / boxes.new_tensor(stds)


def decode(offsets: Tensor, references: Tensor, stds: tuple[float, ...] = NO_STDS) -> Tensor:
    """float32 [..., 4], the boxes at `offsets` from `references`: the inverse of `encode`."""
    references = references.float()
    shift, growth = (offsets.float() * references.new_tensor(stds)).split(2, dim=-1)
    middle = centre(references) + shift * extent(references)
    half = extent(references) * growth.clamp(max=MOST).exp() / 2
    return torch.cat([middle - half, middle + half], dim=-1)
