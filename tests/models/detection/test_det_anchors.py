"""Anchors: the nine of the authors' code, and where they lie."""

import torch

from cvtrain.models.detection.anchors import anchor_grid, base_anchors, within

# Of the authors' code at stride 16, by ratio and size; its last pixels are counted in.
NINE = [
    *((-84, -40, 99, 55), (-176, -88, 191, 103), (-360, -184, 375, 199)),
    *((-56, -56, 71, 71), (-120, -120, 135, 135), (-248, -248, 263, 263)),
    *((-36, -80, 51, 95), (-80, -168, 95, 183), (-168, -344, 183, 359)),
]


def test_the_papers_nine() -> None:
    anchors = base_anchors([128, 256, 512], [0.5, 1, 2], 16)
    inclusive = anchors - torch.tensor([0, 0, 1, 1])
    assert inclusive.tolist() == [list(anchor) for anchor in NINE]
    middles = (inclusive[:, :2] + inclusive[:, 2:]) / 2
    assert (middles == 7.5).all()


def test_other_sizes_and_strides() -> None:
    assert base_anchors([8], [1], 8).tolist() == [[0, 0, 8, 8]]
    assert base_anchors([32], [1], 8).tolist() == [[-12, -12, 20, 20]]
    sides = base_anchors([64], [0.5, 2], 8)[:, 2:] - base_anchors([64], [0.5, 2], 8)[:, :2]
    assert sides.tolist() == [[88, 48], [48, 96]]  # 11 x 6 and 6 x 12 cells' pixels, 8 times


def test_a_grid_goes_row_by_row() -> None:
    base = torch.tensor([[0.0, 0, 4, 4], [-2.0, -2, 6, 6]])
    grid = anchor_grid(base, 10, 2, 3)
    assert grid.shape == (12, 4)
    assert grid[0].tolist() == [0, 0, 4, 4]
    assert grid[1].tolist() == [-2, -2, 6, 6]
    assert grid[2].tolist() == [10, 0, 14, 4]  # the next column
    assert grid[6].tolist() == [0, 10, 4, 14]  # the next row
    assert grid[-1].tolist() == [18, 8, 26, 16]


def test_which_lie_within() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 20], [0, 0, 11, 20], [-1, 0, 5, 5], [0, 0, 10, 21]])
    assert within(anchors, (20, 10)).tolist() == [0]
    assert within(anchors, (21, 11)).tolist() == [0, 1, 3]
    assert within(anchors, (3, 3)).tolist() == [0, 1, 2, 3]  # none would: all are used


def test_those_of_a_600_by_1000_image() -> None:
    """About 20,000 anchors, of which the paper keeps about 6,000 in training."""
    grid = anchor_grid(base_anchors([128, 256, 512], [0.5, 1, 2], 16), 16, 37, 62)
    assert len(grid) == 20_646
    assert 5_500 < len(within(grid, (600, 1000))) < 8_500
