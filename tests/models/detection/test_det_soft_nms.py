"""Soft-NMS: the paper's two rules, against a plain loop over one class and by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from cvtrain.models.detection.nms import METHODS, soft_nms, suppress


def plain(
    boxes: Tensor, scores: Tensor, method: str, iou: float, sigma: float, least: float
) -> dict[int, float]:
    """Algorithm 1 of the paper, for one class: place to final score."""
    left = dict(enumerate(scores))  # scalars of float32
    overlaps, final = box_iou(boxes, boxes), {}
    while left:
        best = max(left, key=lambda place: float(left[place]))
        score = left.pop(best)
        if score >= least:
            final[best] = float(score)
        for place in left:
            overlap = overlaps[best, place]
            if method == "gaussian":
                left[place] = left[place] * torch.exp(-(overlap**2) / sigma)
            elif overlap > iou:
                left[place] = left[place] * (1 - overlap)
    return final


def drawn(count: int, *, seed: int, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes in a few heaps: most of them overlap some others."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(50, 350, (6, 2))[rng.integers(0, 6, count)] + rng.normal(
        0, 12, (count, 2)
    )
    sides = rng.uniform(20, 60, (count, 2))
    boxes = torch.from_numpy(np.concatenate([centres - sides, centres + sides], 1)).float()
    scores = torch.from_numpy(rng.permutation(count) / count).float()
    labels = torch.from_numpy(rng.integers(1, classes + 1, count))
    labels[: count // 3] = 2  # many of one, few of the others
    return boxes, scores, labels


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("seed", range(4))
def test_against_a_plain_loop(method: str, seed: int) -> None:
    boxes, scores, labels = drawn(150, seed=seed)
    options = {"iou": 0.3, "sigma": 0.5, "least": 0.0213}
    places, rescored = soft_nms(boxes, scores, labels, method=method, **options)
    expected = {}
    for label in labels.unique():
        mine = torch.nonzero(labels == label)[:, 0]
        kept = plain(boxes[mine], scores[mine], method, **options)
        expected.update({int(mine[place]): score for place, score in kept.items()})
    assert len(expected) < 150  # some have fallen below the least
    assert places.dtype == torch.int64
    found = dict(zip(places.tolist(), rescored.tolist(), strict=True))
    assert found == pytest.approx(expected, rel=1e-6)
    assert rescored.tolist() == sorted(rescored.tolist(), reverse=True)


def test_by_hand() -> None:
    """An overlap of one half, and one of 0.25, below the threshold of the linear rule."""
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 5], [0, 6, 10, 16.0]])  # IoU 1/2, 1/4
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.ones(3)
    places, linear = soft_nms(boxes, scores, labels, method="linear")
    assert places.tolist() == [0, 2, 1]
    assert linear.tolist() == pytest.approx([0.9, 0.7, 0.8 * 0.5])
    places, gaussian = soft_nms(boxes, scores, labels, method="gaussian")
    assert gaussian.tolist() == pytest.approx(
        [0.9, 0.7 * math.exp(-(0.25**2) / 0.5), 0.8 * math.exp(-(0.5**2) / 0.5)]
    )
    _, apart = soft_nms(boxes, scores, torch.tensor([1, 2, 3]))
    assert apart.tolist() == pytest.approx([0.9, 0.8, 0.7])  # other classes do not matter


def test_a_rescored_detection_is_taken_in_its_new_turn() -> None:
    """The second falls below the third: it no longer weakens that one, but is weakened by it."""
    boxes = torch.tensor([[0, 0, 10, 10], [0, 1, 10, 11], [0, 4, 10, 14.0]])
    scores = torch.tensor([0.9, 0.8, 0.75])  # IoU 9/11 and 6/14 with the first, 7/13 between them
    places, rescored = soft_nms(boxes, scores, torch.ones(3), iou=0.45)
    assert places.tolist() == [0, 2, 1]
    assert rescored.tolist() == pytest.approx([0.9, 0.75, 0.8 * (1 - 9 / 11) * (1 - 7 / 13)])


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_the_same_box_twice_and_empty_boxes(method: str) -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 5, 5], [5, 5, 5, 5.0]])
    scores, labels = torch.tensor([0.9, 0.9, 0.5, 0.5]), torch.ones(4, dtype=torch.int64)
    places, rescored = soft_nms(boxes, scores, labels, method=method, sigma=0.001)
    assert places.tolist() == [0, 2, 3]
    assert torch.isfinite(rescored).all()
    assert rescored.tolist() == pytest.approx([0.9, 0.5, 0.5])


@pytest.mark.parametrize("method", METHODS)
def test_nothing_found(method: str) -> None:
    places, scores = suppress(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), method=method
    )
    assert places.shape == scores.shape == (0,)
    assert places.dtype == torch.int64


def test_half_precision_comes_out_as_single() -> None:
    boxes, scores, labels = drawn(40, seed=0)
    places, rescored = soft_nms(boxes.half(), scores.half(), labels)
    assert rescored.dtype == torch.float32
    same, exact = soft_nms(boxes.half().float(), scores.half().float(), labels)
    assert places.equal(same)
    assert rescored.equal(exact)


def test_plain_suppression_is_torchvisions() -> None:
    boxes, scores, labels = drawn(150, seed=1)
    places, kept = suppress(boxes, scores, labels, iou=0.4, least=0.1)
    expected = batched_nms(boxes, scores, labels, 0.4)
    assert places.equal(expected[scores[expected] >= 0.1])
    assert kept.equal(scores[places])


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(ValueError, match="linear or gaussian, not quadratic"):
        soft_nms(*drawn(3, seed=0), method="quadratic")
