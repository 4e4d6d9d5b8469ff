"""The boxes that a region proposal network starts from, the same at every place of its map."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def base_anchors(sizes: Sequence[float], ratios: Sequence[float], stride: int) -> Tensor:
    """float32 [ratios * sizes, 4], those of the map's first cell; ratios are height / width.

    As the paper's code makes them: a cell's square is brought to each ratio, in whole pixels, and
    then enlarged to each size. That code gives (-56, -56, 71, 71) for 128 px and ratio 1 at stride
    16, its last pixels counted in; here right and bottom lie outside: (-56, -56, 72, 72).
    """
    anchors = []
    for ratio in ratios:
        width = round(math.sqrt(stride**2 / ratio))
        height = round(width * ratio)
        for size in sizes:
            x, y = (side * size / stride / 2 for side in (width, height))
            anchors.append((stride / 2 - x, stride / 2 - y, stride / 2 + x, stride / 2 + y))
    return torch.tensor(anchors)


def anchor_grid(base: Tensor, stride: int, rows: int, columns: int) -> Tensor:
    """[rows * columns * A, 4]: `base` [A, 4] at each cell, row by row."""
    y = stride * torch.arange(rows, device=base.device)
    x = stride * torch.arange(columns, device=base.device)
    corners = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)  # [rows, columns, 2]
    return (corners.repeat(1, 1, 2)[:, :, None] + base).view(-1, 4)


def within(anchors: Tensor, size: tuple[int, int]) -> Tensor:
    """int64: which of `anchors` [A, 4] lie wholly in an image of (height, width); all, if none."""
    height, width = size
    left, top, right, bottom = anchors.unbind(1)
    inside = (left >= 0) & (top >= 0) & (right <= width) & (bottom <= height)
    found = inside.nonzero().squeeze(1)
    return found if len(found) else torch.arange(len(anchors), device=anchors.device)
