"""Fast R-CNN: the published size, what is learnt, what is found; each by hand."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cvtrain.errors import ConfigError
from cvtrain.models.detection.bodies import padded
from cvtrain.models.detection.boxes import STDS, encode
from cvtrain.models.detection.fast_rcnn import FastRCNN
from cvtrain.models.detection.regions import Said, tidy

TINY = {"body": {"name": "tiny"}, "num_classes": 4, "samples": 8, "roi_size": 3}
OBJECTS = torch.tensor([[10.0, 10, 50, 50], [60, 20, 90, 80]])
TARGET = {"boxes": OBJECTS, "labels": torch.tensor([2, 3])}
EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def tiny(**arguments: object) -> FastRCNN:
    torch.manual_seed(0)
    return FastRCNN(**TINY | arguments)


def count(model: torch.nn.Module, *, trained: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def test_parameters_with_vgg16() -> None:
    with torch.device("meta"):
        model = FastRCNN(num_classes=21)
    assert count(model) == 134_690_729
    assert count(model, trained=True) == 134_430_569  # conv1 and conv2 stand still
    with torch.device("meta"):
        assert count(FastRCNN(body={"name": "vgg16", "frozen_stages": 0}), trained=True) == (
            134_690_729
        )


def test_initial_weights() -> None:
    model = tiny(num_classes=21)
    for layer, std in ((model.cls_score, 0.01), (model.bbox_pred, 0.001)):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
        assert not layer.bias.any()


def test_images_are_padded_right_and_below() -> None:
    images = [torch.ones(3, 20, 33), torch.ones(3, 25, 30)]
    batch = padded(images, 16)
    assert batch.shape == (2, 3, 32, 48)
    assert torch.equal(batch[0, :, :20, :33], images[0])
    assert batch.sum() == 3 * (20 * 33 + 25 * 30)
    assert padded([torch.ones(3, 32, 48)], 16).shape == (1, 3, 32, 48)


def test_what_is_learnt_of_an_image() -> None:
    model = tiny(samples=40)
    near, far = OBJECTS + 4, torch.tensor([[0.0, 60, 30, 90]])  # IoU over a half, and none
    some = torch.tensor([[10.0, 10, 50, 25]])  # IoU 15 / 40
    regions = model.choose(torch.cat([near, far, some]), TARGET)
    found = {
        tuple(box): (label, tuple(aim))
        for box, label, aim in zip(*(part.tolist() for part in regions), strict=True)
    }
    expected = {tuple(box): label for box, label in zip(near.tolist(), [2, 3], strict=True)}
    expected |= {tuple(box): label for box, label in zip(OBJECTS.tolist(), [2, 3], strict=True)}
    assert {box: label for box, (label, _) in found.items()} == {**expected, (10, 10, 50, 25): 0}
    for box, (label, aim) in found.items():
        if label:
            assert aim == tuple(OBJECTS[label - 2].tolist()), box
    # The fourth, of no overlap, is background where `background` is 0.
    regions = tiny(samples=40, background=0.0).choose(torch.cat([near, far, some]), TARGET)
    assert regions.labels.tolist().count(0) == 2
    # A quarter of 8 at most are objects.
    regions = tiny(background=0.0).choose(torch.cat([near, *[far + i for i in range(9)]]), TARGET)
    assert (regions.labels > 0).sum() == 2
    assert len(regions.labels) == 8


def test_losses_by_hand() -> None:
    """Logits 0: log 4 for each region; offsets 0: smooth L1 of those that are wanted."""
    model = tiny(box_weight=2.0)
    torch.nn.init.zeros_(model.cls_score.weight)
    torch.nn.init.zeros_(model.bbox_pred.weight)
    images = [torch.randn(3, 96, 96)] * 2
    near = OBJECTS + 4
    proposals = [torch.cat([near[:1], torch.zeros(0, 4)]), torch.tensor([[10.0, 10, 50, 25]])]
    target = {"boxes": OBJECTS[:1], "labels": torch.tensor([2])}
    losses = model.train()(images, [target, target], proposals)
    # Regions: near and the object itself; the background and the object itself.
    assert losses["cls"][0].item() == pytest.approx(4 * math.log(4), rel=1e-5)
    wanted = encode(OBJECTS[:1], near[:1], STDS)  # -4/40 / 0.1 = -1, twice
    torch.testing.assert_close(wanted, torch.tensor([[-1.0, -1, 0, 0]]))
    assert losses["box"][0].item() == pytest.approx(2.0 * 2 * 0.5, rel=1e-4)
    assert losses["cls"][1] == losses["box"][1] == 16
    assert model.loss_counts(2) == {"cls": 16.0, "box": 16.0}


def test_the_box_is_that_of_the_objects_class() -> None:
    model = tiny(samples=40).train()
    images = [torch.randn(3, 96, 96)]
    model(images, [TARGET], [OBJECTS + 4])["box"][0].backward()
    rows = model.bbox_pred.weight.grad.view(4, 4, -1).abs().sum((1, 2))
    assert (rows > 0).tolist() == [False, False, True, True]


def test_detections_by_hand() -> None:
    model = tiny(detections=3).eval()
    proposals = torch.tensor([[0.0, 0, 20, 20], [1, 1, 21, 21], [30, 30, 60, 60], [30, 30, 50, 50]])
    chances = torch.tensor(
        [
            [0.1, 0.9, 0.0, 0.0],
            [0.2, 0.5, 0.3, 0.0],
            [0.3, 0.04, 0.06, 0.6],
            [0.97, 0.01, 0.01, 0.01],
        ]
    )
    offsets = torch.zeros(4, 4, 4)
    offsets[2, 3, :2] = 10.0  # a whole width and height away, cut off at the image's edge
    found = model.pick(Said((chances + 1e-9).log(), offsets), proposals, (70, 80))
    assert found["labels"].tolist() == [1, 3, 2]  # the second is suppressed but for class 2
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.6, 0.3]))
    expected = torch.tensor([[0.0, 0, 20, 20], [60, 60, 80, 70], [1, 1, 21, 21]])
    torch.testing.assert_close(found["boxes"], expected)
    nothing = Said(chances.new_zeros(0, 4), offsets[:0])
    assert model.pick(nothing, proposals[:0], (70, 80))["boxes"].shape == (0, 4)


def picked(**arguments: object) -> dict[str, Tensor]:
    """Of three proposals of class 1, whose IoUs with the first are 2/3 and 1/4, and one of 2."""
    proposals = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [6, 0, 16, 10], [0, 0, 10, 10]])
    chances = torch.tensor([[0.1, 0.9, 0.0], [0.2, 0.8, 0.0], [0.3, 0.7, 0.0], [0.4, 0.0, 0.6]])
    model = tiny(num_classes=3, nms=0.5, **arguments).eval()
    return model.pick(Said((chances + 1e-9).log(), torch.zeros(4, 3, 4)), proposals, (40, 40))


def test_overlapping_detections_go_or_lose_score() -> None:
    """Soft-NMS by hand: the third, of IoU 3/7 with the second and 1/4 with the first."""
    hard = picked()
    assert hard["labels"].tolist() == [1, 1, 2]
    assert hard["scores"].tolist() == pytest.approx([0.9, 0.7, 0.6])
    linear = picked(nms_method="linear")
    assert linear["labels"].tolist() == [1, 1, 2, 1]
    assert linear["scores"].tolist() == pytest.approx([0.9, 0.7, 0.6, 0.8 / 3])
    assert linear["boxes"][:, 0].tolist() == [0, 6, 0, 2]
    assert picked(nms_method="linear", final_score=0.3)["boxes"][:, 0].tolist() == [0, 6, 0]
    assert picked(nms_method="linear", detections=2)["scores"].tolist() == pytest.approx([0.9, 0.7])

    def kept(iou: float) -> float:
        return math.exp(-(iou**2) / 0.4)

    gaussian = picked(nms_method="gaussian", sigma=0.4)
    third = 0.7 * kept(1 / 4)
    second = 0.8 * kept(2 / 3) * kept(3 / 7)
    assert gaussian["scores"].tolist() == pytest.approx(sorted([0.9, 0.6, third, second])[::-1])


def test_the_plain_method_has_one_threshold() -> None:
    scores = picked(score=0.0, final_score=0.99)["scores"]
    assert scores.tolist()[:3] == pytest.approx([0.9, 0.7, 0.6])
    assert scores.min() < 1e-6


@torch.no_grad()
def test_evaluation() -> None:
    model = tiny(score=0.0).eval()
    images, proposals = [torch.randn(3, 60, 90), torch.randn(3, 96, 96)], [OBJECTS, OBJECTS[:0]]
    one, other = model(images, None, proposals)
    assert len(one["boxes"]) > 0
    assert len(other["boxes"]) == 0
    assert one["boxes"][:, 2].max() <= 90
    assert one["boxes"][:, 3].max() <= 60
    assert set(one["labels"].tolist()) <= {1, 2, 3}
    assert all(a >= b for a, b in pairwise(one["scores"].tolist()))


@torch.no_grad()
def test_images_of_one_size_do_not_see_each_other() -> None:
    model = tiny(score=0.0).eval()
    images, proposals = torch.randn(3, 3, 96, 96), [OBJECTS + i for i in range(3)]
    together = model(list(images), None, proposals)
    alone = [
        model([image], None, [boxes])[0] for image, boxes in zip(images, proposals, strict=True)
    ]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one["scores"], other["scores"], atol=1e-5, rtol=1e-4)


def test_proposals_that_are_no_boxes() -> None:
    boxes = [[0.0, 0, 10, 10], [-5, -5, 200, 5], [math.nan, 0, 5, 5], [7, 7, 7, 9], [9, 9, 2, 2]]
    boxes += [[0, 0, math.inf, 4], [150, 150, 160, 160]]
    assert tidy(torch.tensor(boxes), (50, 60)).tolist() == [
        [0, 0, 10, 10],
        [0, 0, 60, 5],
        [0, 0, 60, 4],
    ]


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="faster_rcnn"):
        tiny()([torch.zeros(3, 64, 64)], [TARGET])
    with pytest.raises(ConfigError, match=r"model\.roi_pool=mean"):
        tiny(roi_pool="mean")
    with pytest.raises(ConfigError, match=r"model\.nms_method=soft; .*hard, linear, gaussian"):
        tiny(nms_method="soft")
    with pytest.raises(ConfigError, match=r"model\.sigma=0"):
        tiny(nms_method="gaussian", sigma=0.0)
    with pytest.raises(ConfigError, match=r"model\.body\.name=vgg"):
        tiny(body={"name": "vgg"})
    with pytest.raises(ConfigError, match=r"roi_pool=spp"):
        tiny(body={"name": "resnet"}, roi_pool="spp")


@pytest.mark.parametrize("roi_pool", ["max", "align", "spp"])
def test_a_step(roi_pool: str) -> None:
    model = tiny(roi_pool=roi_pool).train()
    losses = model([torch.randn(3, 96, 96)], [TARGET], [OBJECTS + 4])
    sum(total / number for total, number in losses.values()).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("targets", [[EMPTY, EMPTY], [EMPTY, TARGET]], ids=["none", "one"])
@pytest.mark.parametrize("background", [0.0, 0.1])
def test_without_objects(targets: list[dict[str, Tensor]], background: float) -> None:
    """Every parameter keeps a gradient, which processes that train together wait for."""
    model = tiny(background=background).train()
    proposals = [OBJECTS + 4, torch.zeros(0, 4)]
    losses = model([torch.randn(3, 96, 96)] * 2, targets, proposals)
    sum(total / number for total, number in losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert F.relu(losses["box"][0]).isfinite()
