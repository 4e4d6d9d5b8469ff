"""The region proposal network: sizes, losses and proposals by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cvtrain.models.detection.anchors import anchor_grid
from cvtrain.models.detection.boxes import encode
from cvtrain.models.detection.rpn import RPN

SIZE = (48, 64)  # a map of 3 x 4 cells of 16 px
TARGET = {"boxes": torch.tensor([[16.0, 16, 32, 32]]), "labels": torch.tensor([3])}
EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def small(**arguments: object) -> RPN:
    """One anchor of 16 px a cell: the cells themselves."""
    torch.manual_seed(0)
    own = {"sizes": [16], "ratios": [1.0], "channels": 8, "samples": 6, "min_size": 1}
    return RPN(5, 16, **own | arguments)


def grid(rpn: RPN) -> Tensor:
    return anchor_grid(rpn.get_buffer("base"), 16, 3, 4)


@pytest.mark.parametrize(("softmax", "expected"), [(True, 2_387_510), (False, 2_382_893)])
def test_parameters(softmax: bool, expected: int) -> None:
    """Of Faster R-CNN less Fast R-CNN, both with VGG-16."""
    with torch.device("meta"):
        rpn = RPN(512, 16, softmax=softmax)
    assert sum(p.numel() for p in rpn.parameters()) == expected


def test_initial_weights() -> None:
    torch.manual_seed(0)
    for layer in RPN(64, 16).children():
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert not layer.bias.any()


def test_scores_belong_to_their_anchors() -> None:
    """A weight that only answers to one anchor of one cell answers at that anchor's place."""
    rpn = RPN(1, 16, sizes=[16, 32], ratios=[1.0], channels=1, softmax=True)
    maps = torch.zeros(1, 1, 3, 4)
    maps[0, 0, 1, 2] = 1
    with torch.no_grad():
        for parameter in rpn.parameters():
            parameter.zero_()
        rpn.conv.weight[0, 0, 1, 1] = 1
        rpn.cls.weight[:, 0, 0, 0] = torch.tensor([0, 0, 2, 7])  # not, yes of each anchor
        rpn.reg.weight[:, 0, 0, 0] = torch.arange(8)
        scores, offsets = rpn.scores(maps)
    place = 2 * (4 * 1 + 2) + 1  # two anchors a cell, row by row
    assert scores[0].nonzero().flatten().tolist() == [place]
    assert scores[0, place] == 5
    assert offsets[0, place].tolist() == [4, 5, 6, 7]
    assert offsets[0, place - 1].tolist() == [0, 1, 2, 3]


def test_proposals_by_hand() -> None:
    rpn = small(post_nms=(3, 2)).eval()
    anchors, scores, offsets = grid(rpn), torch.linspace(0, 1, 12), torch.zeros(12, 4)
    # All is as the anchors, best first.
    assert torch.equal(rpn.propose(anchors, scores, offsets, SIZE), anchors[[11, 10]])
    assert len(rpn.train().propose(anchors, scores, offsets, SIZE)) == 3
    # The best moves onto the second best and suppresses it; the third grows out of the image.
    offsets[11] = torch.tensor([-1.0, 0, 0, 0])
    offsets[9] = torch.tensor([0.0, 0, 0, math.log(4)])
    found = rpn.propose(anchors, scores, offsets, SIZE)
    expected = torch.tensor([[32.0, 32, 48, 48], [16, 8, 32, 48], [0, 32, 16, 48]])
    torch.testing.assert_close(found, expected)


def test_only_the_best_and_the_large_are_proposed() -> None:
    rpn = small(pre_nms=(4, 4), min_size=10).eval()
    anchors, scores, offsets = grid(rpn), torch.linspace(0, 1, 12), torch.zeros(12, 4)
    offsets[11, 2:] = -1.0  # 6 px
    assert torch.equal(rpn.propose(anchors, scores, offsets, SIZE), anchors[[10, 9, 8]])
    offsets[10] = math.nan
    offsets[9] = math.inf
    assert torch.equal(rpn.propose(anchors, scores, offsets, SIZE), anchors[[8]])


@pytest.mark.parametrize("softmax", [True, False])
def test_losses_by_hand(softmax: bool) -> None:
    """All logits and offsets 0: log 2 for each of the anchors drawn."""
    rpn = small(softmax=softmax)
    torch.nn.init.zeros_(rpn.cls.weight)
    torch.nn.init.zeros_(rpn.reg.weight)
    moved = {**TARGET, "boxes": TARGET["boxes"] + 2.0}  # IoU (14 * 14) / (512 - 196) = 0.62
    _, losses = rpn(torch.randn(2, 5, 3, 4), [SIZE, SIZE], [moved, EMPTY])
    cls, count = losses["rpn_cls"]
    assert count == 12  # 6 anchors of each image
    assert cls.item() == pytest.approx(12 * math.log(2), rel=1e-5)
    wanted = encode(moved["boxes"], torch.tensor([[16.0, 16, 32, 32]]))  # 2/16, 2/16, 0, 0
    assert wanted.tolist() == [[0.125, 0.125, 0, 0]]
    box, count = losses["rpn_box"]
    assert count == 12
    # Smooth L1 with sigma 3 below 1/9: 0.5 * 9 * x^2; 0.125 is above: |x| - 0.5 / 9.
    assert box.item() == pytest.approx(2 * (0.125 - 0.5 / 9), rel=1e-5)


def test_two_scores_are_a_softmax() -> None:
    rpn = small()
    maps = torch.randn(1, 5, 3, 4)
    pairs = rpn.cls(F.relu(rpn.conv(maps))).permute(0, 2, 3, 1).reshape(12, 2)
    scores, _ = rpn.scores(maps)
    labels = torch.arange(12) % 2
    torch.testing.assert_close(
        F.binary_cross_entropy_with_logits(scores[0], labels.float()),
        F.cross_entropy(pairs, labels),
    )


def test_anchors_across_the_border() -> None:
    """32 px around each cell: only those of the two inner cells of a 48 x 64 image lie within."""
    outer = {"boxes": torch.tensor([[0.0, 0, 24, 24]]), "labels": torch.tensor([1])}
    for cross, drawn in ((False, 2), (True, 6)):
        rpn = small(sizes=[32], cross_boundary=cross)
        torch.nn.init.zeros_(rpn.cls.weight)
        _, losses = rpn(torch.zeros(1, 5, 3, 4), [SIZE], [outer])
        assert losses["rpn_cls"][0].item() == pytest.approx(drawn * math.log(2), rel=1e-5)
    # An image that is smaller than every anchor uses them all; here all are negative.
    rpn = small(sizes=[100])
    torch.nn.init.zeros_(rpn.cls.weight)
    _, losses = rpn(torch.zeros(1, 5, 3, 4), [SIZE], [EMPTY])
    assert losses["rpn_cls"][0].item() == pytest.approx(6 * math.log(2), rel=1e-5)


def test_the_padding_is_not_the_image() -> None:
    """Of a map for 48 x 64, an image of 32 x 32 has 2 x 2 anchors within, and its boxes too."""
    rpn = small()
    torch.nn.init.zeros_(rpn.cls.weight)
    proposals, losses = rpn(torch.randn(1, 5, 3, 4), [(32, 32)], [TARGET])
    assert losses["rpn_cls"][0].item() == pytest.approx(4 * math.log(2), rel=1e-5)
    assert proposals[0].max() <= 32
    assert not proposals[0].requires_grad  # approximate joint training
