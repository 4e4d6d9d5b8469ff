"""Offsets by hand; RoI pooling against arithmetic and torchvision's operators."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import roi_align, roi_pool

from cvtrain.models.detection.boxes import STDS, decode, encode
from cvtrain.models.detection.pooling import pool_regions, pooled_shape


def boxes(number: int, *, side: float = 600.0) -> Tensor:
    corners = side * torch.rand(number, 2)
    return torch.cat([corners, corners + 1 + side * torch.rand(number, 2)], dim=1)


def test_offsets_by_hand() -> None:
    """From (10, 20, 50, 100), 40 x 80 around (30, 60), to (26, 40, 106, 80), 80 x 40 around
    (66, 60)."""
    reference, box = torch.tensor([[10.0, 20, 50, 100]]), torch.tensor([[26.0, 40, 106, 80]])
    expected = torch.tensor([[36 / 40, 0.0, math.log(2), -math.log(2)]])
    torch.testing.assert_close(encode(box, reference), expected)
    torch.testing.assert_close(
        encode(box, reference, STDS), expected * torch.tensor([10, 10, 5, 5])
    )
    torch.testing.assert_close(decode(expected, reference), box)


@pytest.mark.parametrize("stds", [(1.0, 1.0, 1.0, 1.0), STDS])
def test_as_torchvision_and_back(stds: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    references, wanted = boxes(200), boxes(200)
    coder = BoxCoder(weights=tuple(1 / std for std in stds))
    offsets = encode(wanted, references, stds)
    torch.testing.assert_close(
        offsets, coder.encode_single(wanted, references), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(decode(offsets, references, stds), wanted, rtol=1e-4, atol=1e-2)
    some = torch.randn(200, 3, 4)  # three classes' offsets from one reference each
    theirs = coder.decode_single(some.flatten(1), references).view(200, 3, 4)
    ours = decode(some, references[:, None], stds)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-3)


def test_extremes_stay_finite() -> None:
    reference = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    [[left, _, right, _]] = decode(torch.tensor([[0.0, 0.0, 90.0, 90.0]]), reference).tolist()
    assert right - left == pytest.approx(1000)
    flat = torch.tensor([[5.0, 5.0, 5.0, 9.0]])
    assert encode(flat, reference).isfinite().all()
    assert encode(reference, flat).isfinite().all()


def test_arithmetic_is_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    references, wanted = boxes(50), boxes(50)
    with torch.autocast("cpu", torch.bfloat16):
        offsets = encode(wanted, references, STDS)
        again = decode(offsets, references, STDS)
    assert offsets.dtype == again.dtype == torch.float32
    torch.testing.assert_close(again, wanted, rtol=1e-4, atol=1e-2)
    assert decode(offsets.bfloat16(), references, STDS).dtype == torch.float32


MAPS = torch.arange(64.0).view(1, 1, 8, 8)  # row r, column c: 8 r + c


def test_max_by_hand() -> None:
    """Of cells 0 to 7: with two bins a side, the last cell of each quarter."""
    pooled = pool_regions(MAPS, [torch.tensor([[0.0, 0, 28, 28]])], kind="max", size=2, stride=4)
    assert pooled.flatten().tolist() == [27, 31, 59, 63]


def test_align_by_hand() -> None:
    """One bin over cells 2 to 5, edges not rounded: on this plane the value at the middle."""
    box = torch.tensor([[9.0, 9.0, 23.0, 23.0]])  # cells 2.25 to 5.75: the middle of 4, less a half
    pooled = pool_regions(MAPS, [box], kind="align", size=1, stride=4)
    assert pooled.item() == pytest.approx(8 * 3.5 + 3.5)


def test_pooling_is_torchvisions() -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 20, 30)
    regions = [boxes(4, side=100.0), boxes(5, side=100.0)]
    for kind, size, theirs in (
        ("max", 7, roi_pool(maps, regions, 7, 1 / 16)),
        ("align", 7, roi_align(maps, regions, 7, 1 / 16, 2, True)),
    ):
        ours = pool_regions(maps, regions, kind=kind, size=size, stride=16)
        assert torch.equal(ours, theirs)
        assert ours.shape[2:] == pooled_shape(kind, size)
    pyramid = pool_regions(maps, regions, kind="spp", size=7, stride=16)
    assert pyramid.shape[2:] == pooled_shape("spp", 7) == (21, 1)
    for side, part in zip((4, 2, 1), pyramid.split([16, 4, 1], dim=2), strict=True):
        assert torch.equal(part.flatten(2), roi_pool(maps, regions, side, 1 / 16).flatten(2))
    assert torch.equal(pyramid[..., :16, 0].amax(2), pyramid[..., 20, 0])  # of the same cells
