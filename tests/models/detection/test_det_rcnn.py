"""R-CNN: the published size, crops by hand, a step and an evaluation."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from cvtrain.models.detection.rcnn import RCNN

CONFIGS = Path(__file__).parents[3] / "configs" / "model"
OBJECTS = torch.tensor([[10.0, 10, 50, 50], [60, 20, 90, 80]])
TARGET = {"boxes": OBJECTS, "labels": torch.tensor([2, 3])}
EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def build(name: str, **changes: Any) -> RCNN:
    arguments = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    kept = {k: v for k, v in arguments.items() if k not in ("_target_", "task", "input")}
    torch.manual_seed(0)
    return RCNN(**{"num_classes": 4} | kept | changes)


def crop_of(image: Tensor, box: list[float], **changes: int) -> Tensor:
    return build("rcnn_tiny", **changes).warp(image[None], torch.tensor([[0.0, *box]]))[0]


def test_parameters() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build("rcnn", num_classes=21).parameters()) == 56_954_261
        assert sum(p.numel() for p in build("rcnn", num_classes=201).parameters()) == 57_691_721


def test_a_crop_of_its_own_size_is_the_pixels() -> None:
    image = torch.randn(3, 40, 50)
    torch.testing.assert_close(
        crop_of(image, [5, 7, 21, 23], crop=16, context=0), image[:, 7:23, 5:21]
    )
    # With a context of 3 px, those around: the crop is again one pixel to one.
    torch.testing.assert_close(
        crop_of(image, [8, 10, 18, 20], crop=16, context=3), image[:, 7:23, 5:21]
    )


def test_a_crop_is_stretched() -> None:
    """16 px across become 32, 64 px down 32: two points for one, and the mean of two."""
    image = torch.arange(64.0)[None, :, None].expand(3, 64, 64)
    [rows, *_] = crop_of(image, [20, 0, 36, 64], crop=32, context=0)
    torch.testing.assert_close(rows[:, 5], torch.arange(32) * 2 + 0.5)


def test_outside_of_the_image_is_its_mean() -> None:
    crop = crop_of(torch.ones(3, 32, 32), [0, 0, 16, 32], crop=32, context=8)
    assert not crop[:, :6].any()
    assert not crop[:, :, :6].any()
    assert (crop[:, 8:24, 10:] == 1).all()


@pytest.mark.parametrize("name", ["rcnn", "rcnn_tiny"])
def test_a_step_and_an_evaluation(name: str) -> None:
    model = build(name, samples=6, score=0.0)
    images = [torch.randn(3, 96, 100), torch.randn(3, 90, 96)]
    proposals = [OBJECTS + 4, torch.tensor([[0.0, 0, 30, 30]])]
    losses = model.train()(images, [TARGET, EMPTY], proposals)
    assert list(losses) == ["cls"]
    assert losses["cls"][1] == 12 == model.loss_counts(2)["cls"]
    losses["cls"][0].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    one, other = model.eval()(images, None, proposals)
    assert {tuple(box) for box in one["boxes"].tolist()} == {*map(tuple, (OBJECTS + 4).tolist())}
    assert other["boxes"].tolist() == [[0, 0, 30, 30]] * 3  # as each of the three classes
    assert len(model([torch.randn(3, 64, 64)], None, [EMPTY["boxes"]])[0]["boxes"]) == 0


def test_without_a_region() -> None:
    losses = build("rcnn_tiny").train()([torch.randn(3, 64, 64)], [EMPTY], [EMPTY["boxes"]])
    losses["cls"][0].backward()
    assert losses["cls"][0] == 0


def test_a_square_is_learnt_from_a_bar() -> None:
    """On the crops of two classes and the ground; the boxes are the proposals."""
    image = torch.zeros(3, 64, 96)
    image[:, 8:40, 8:40] = 2
    image[:, 10:20, 50:90] = -2
    boxes = torch.tensor([[8.0, 8, 40, 40], [50, 10, 90, 20]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 2])}
    grounds = torch.tensor([[40.0, 30, 80, 60], [0, 44, 50, 60], [60, 30, 90, 64], [0, 0, 9, 60]])
    proposals = torch.cat([boxes, grounds])
    model = build("rcnn_tiny", samples=8, object_share=0.5).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        model([image], [target], [proposals])["cls"][0].backward()
        optimizer.step()
    [found] = model.eval()([image], None, [proposals])
    sure = found["scores"] > 0.5
    pairs = zip(found["boxes"][sure].tolist(), found["labels"][sure].tolist(), strict=True)
    assert sorted(pairs) == [([8, 8, 40, 40], 1), ([50, 10, 90, 20], 2)]
    assert F.relu(found["scores"]).isfinite().all()
