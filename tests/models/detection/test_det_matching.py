"""Matching and sampling, with IoUs worked out by hand."""

import pytest
import torch
from torch import Tensor

from cvtrain.models.detection import matching
from cvtrain.models.detection.matching import (
    draw,
    match_anchors,
    match_proposals,
    overlaps,
    sample,
)

# Squares of side 10 shifted by s overlap with IoU (10 - s) / (10 + s).
SQUARE = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
NONE = torch.zeros(0, 4)


def shifted(*by: float) -> Tensor:
    return torch.cat([SQUARE + torch.tensor([[s, 0.0, s, 0.0]]) for s in by])


def test_overlaps_by_hand() -> None:
    objects = torch.cat([SQUARE, shifted(20)])
    found = overlaps(objects, shifted(0, 2, 5, 18, 40))
    expected = [1, 8 / 12, 5 / 15, 8 / 12, 0]
    torch.testing.assert_close(found.iou, torch.tensor(expected))
    assert found.object.tolist() == [0, 0, 0, 1, 0]
    assert found.best.tolist() == [True, False, False, True, False]


def test_ties_are_all_best() -> None:
    assert overlaps(SQUARE, shifted(-3, 3, 4)).best.tolist() == [True, True, False]


def test_anchors() -> None:
    """IoU 1/3 is neither; 1/4 negative, unless no anchor does better for that object."""
    labels = match_anchors(torch.cat([SQUARE, shifted(100)]), shifted(1, 5, 6, 50, 106)).labels
    assert labels.tolist() == [1, -1, 0, 0, 1]
    # IoU 0.7 exactly is not above it: squares of 10 and 7 x 10.
    labels = match_anchors(SQUARE, torch.tensor([[0.0, 0, 10, 10], [0, 0, 7, 10], [0, 0, 3, 10]]))
    assert labels.labels.tolist() == [1, -1, -1]


def test_proposals() -> None:
    proposals = torch.tensor([[0.0, 0, 5, 10], [0, 0, 4.9, 10], [0, 0, 1, 10], [0, 0, 0.9, 10]])
    assert match_proposals(SQUARE, proposals, background=0.1).labels.tolist() == [1, 0, 0, -1]
    assert match_proposals(SQUARE, proposals, background=0.0).labels.tolist() == [1, 0, 0, 0]


def test_without_objects_or_boxes() -> None:
    assert match_anchors(NONE, shifted(0, 5)).labels.tolist() == [0, 0]
    assert match_proposals(NONE, shifted(0, 5), background=0.0).labels.tolist() == [0, 0]
    assert match_proposals(NONE, shifted(0, 5), background=0.1).labels.tolist() == [-1, -1]
    assert match_anchors(SQUARE, NONE).labels.tolist() == []


def test_parts_give_what_all_at_once_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    corners = 100 * torch.rand(300, 2)
    everything = torch.cat([corners, corners + 5 + 40 * torch.rand(300, 2)], dim=1)
    objects, anchors = everything[:100], everything[100:]
    whole = overlaps(objects, anchors)
    monkeypatch.setattr(matching, "AT_ONCE", 7)
    for one, other in zip(whole, overlaps(objects, anchors), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [(40, 500, (16, 48)), (3, 500, (3, 61)), (0, 500, (0, 64)), (40, 10, (16, 10)), (0, 0, (0, 0))],
)
def test_samples(positives: int, negatives: int, expected: tuple[int, int]) -> None:
    labels = torch.tensor([1] * positives + [-1] * 7 + [0] * negatives)
    labels = labels[torch.randperm(len(labels))]
    chosen, others = sample(labels, 64, share=0.25)
    assert (len(chosen), len(others)) == expected
    assert (labels[chosen] == 1).all()
    assert (labels[others] == 0).all()
    assert len({*chosen.tolist(), *others.tolist()}) == sum(expected)


def test_draws_are_fair_and_of_the_global_generator() -> None:
    mask = torch.arange(10) % 2 == 0
    torch.manual_seed(3)
    drawn = [draw(mask, 2).tolist() for _ in range(500)]
    torch.manual_seed(3)
    assert drawn == [draw(mask, 2).tolist() for _ in range(500)]
    counts = torch.tensor(drawn).flatten().bincount(minlength=10)
    assert counts[1::2].tolist() == [0] * 5
    assert counts[::2].min() > 150  # of 200 expected, 11 standard deviation
