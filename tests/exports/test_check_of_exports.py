"""A difference between a file and its network is found, and what is none is not."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cvtrain.exports.check import check
from cvtrain.exports.subject import Subject, classifier, detector

IMAGES = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
MORE: dict[str, Any] = {"about": {}, "fresh": nn.Identity}


class Sums(nn.Module):
    """Each channel's sum, `times` so much."""

    def __init__(self, times: float = 1.0) -> None:
        super().__init__()
        self.times = times

    def forward(self, images: Tensor) -> Tensor:
        return images.sum((2, 3)) * self.times


class Finds(nn.Module):
    """What it is told to find, in the form of torchvision's detectors."""

    def __init__(self, found: list[tuple[list[float], int, float]]) -> None:
        super().__init__()
        boxes, labels, scores = zip(*found, strict=True) if found else ((), (), ())
        self.found = {
            "boxes": torch.tensor(boxes).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "scores": torch.tensor(scores),
        }

    def forward(self, images: list[Tensor], targets: None = None) -> list[dict[str, Tensor]]:
        return [self.found for _ in images]


def wrong(subject: Subject, run: Callable[..., Any], inputs: Tensor = IMAGES) -> str:
    [line] = check(run, subject, [(inputs,)])
    return line.wrong


@pytest.mark.parametrize("times", [1.0, 1e4])
def test_logits(times: float) -> None:
    subject = classifier(Sums(times), IMAGES, box=False, any_size=True, **MORE)
    right = Sums(times)(IMAGES)
    allowed = 1e-4 * max(1.0, float(right.abs().max()))
    assert not wrong(subject, lambda x: (right,))
    assert not wrong(subject, lambda x: (right + 0.9 * allowed,))
    off = right.clone()
    off[1, 2] += 1.2 * allowed
    assert "logits" in wrong(subject, lambda x: (off,))
    off[1, 2] = torch.nan
    assert "nan" in wrong(subject, lambda x: (off,))
    assert "[1, 3] in place of [2, 3]" in wrong(subject, lambda x: (right[:1],))


def test_a_file_that_does_not_run() -> None:
    def run(_: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("mat1 and mat2\ncannot be multiplied")

    subject = classifier(Sums(), IMAGES, box=False, any_size=True, **MORE)
    assert wrong(subject, run) == "it does not run (mat1 and mat2 cannot be multiplied)"


BOX = [1.0, 2.0, 30.0, 40.0]
FOUND = [(BOX, 1, 0.9), ([5.0, 5.0, 9.0, 9.0], 2, 0.8), ([0.0, 0.0, 9.0, 5.0], 1, 0.1)]


def moved(by: float) -> list[float]:
    return [BOX[0], BOX[1] + by, *BOX[2:]]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (FOUND, ""),
        ([FOUND[1], FOUND[0], FOUND[2]], ""),
        ([(moved(0.09), 1, 0.9), *FOUND[1:]], ""),
        ([(moved(0.2), 1, 0.9), *FOUND[1:]], "2 without a counterpart"),
        ([(BOX, 2, 0.9), *FOUND[1:]], "2 without a counterpart"),
        ([(BOX, 1, 0.898), *FOUND[1:]], "scores by 2.0e-03"),
        (FOUND[:2], ""),  # the least sure one may fall under the threshold
        (FOUND[1:], "scores up to 0.9"),
        ([], "3 without a counterpart"),
        ([([float("nan")] * 4, 1, 0.9), *FOUND[1:]], "2 without a counterpart"),
    ],
)
def test_detections(given: list[tuple[list[float], int, float]], says: str) -> None:
    image = torch.rand(3, 50, 50)
    subject = detector(Finds(FOUND), (image,), **MORE)
    other = detector(Finds(given), (image,), **MORE)
    found = wrong(subject, other.module, image)
    assert says in found
    assert bool(found) == bool(says)


def test_labels_count_from_zero_and_the_background_is_left_out() -> None:
    network = Finds([(BOX, 0, 0.9), (BOX, 3, 0.8)])
    subject = detector(network, (torch.rand(3, 50, 50),), **MORE)
    boxes, labels, scores = subject.module(*subject.example)
    assert (boxes.tolist(), labels.tolist()) == ([BOX], [2])
    assert scores.tolist() == [pytest.approx(0.8)]
    assert partial(check, subject.module, subject)([subject.example])[0].wrong == ""
