"""Faster R-CNN: the published sizes, every variant's step and evaluation, hard images, learning."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d, box_iou

from cvtrain.models.detection.fast_rcnn import FastRCNN
from cvtrain.models.detection.faster_rcnn import FasterRCNN
from cvtrain.pretrained import origin_of

CONFIGS = Path(__file__).parents[3] / "configs" / "model"
NAMES = ["faster_rcnn", "faster_rcnn_resnet50_c4", "faster_rcnn_resnet101_c4"]
NAMES += ["faster_rcnn_resnet50_c5", "faster_rcnn_tiny", "fast_rcnn", "fast_rcnn_tiny"]
EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
SUMS = {"rpn_cls", "rpn_box", "cls", "box"}


def target(*boxes: tuple[float, float, float, float]) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(boxes), "labels": torch.arange(len(boxes)) % 3 + 1}


def build(name: str, *, num_classes: int = 4, **changes: Any) -> FastRCNN:
    arguments = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    kind = FasterRCNN if arguments.pop("_target_").endswith("FasterRCNN") else FastRCNN
    for key in ("task", "input"):
        del arguments[key]
    for key, value in changes.items():
        arguments[key] = arguments[key] | value if isinstance(value, dict) else value
    torch.manual_seed(0)
    return kind(num_classes=num_classes, **arguments)


def on_meta(name: str, **changes: Any) -> FastRCNN:
    with torch.device("meta"):
        return build(name, **changes)


def count(model: nn.Module, *, trained: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def loss_of(losses: Any) -> Tensor:
    return sum(total / number for total, number in losses.values())  # type: ignore[return-value]


def step(
    model: FastRCNN, images: list[Tensor], targets: list[dict[str, Tensor]]
) -> dict[str, float]:
    """The losses; asserts that they and the gradients of all that is trained are finite."""
    losses = model.train()(images, targets)
    loss_of(losses).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert losses.keys() == SUMS
    counts = {name: number.item() for name, (_, number) in losses.items()}
    assert counts == model.loss_counts(len(images))
    return {name: (total / number).item() for name, (total, number) in losses.items()}


# The published sizes


@pytest.mark.parametrize(
    ("num_classes", "rpn", "expected"),
    [
        (21, {}, 137_078_239),
        (21, {"softmax": False}, 137_073_622),
        (81, {"sizes": [64, 128, 256, 512]}, 138_316_573),
        (81, {"sizes": [64, 128, 256, 512], "softmax": False}, 138_310_417),
    ],
)
def test_parameters_with_vgg16(num_classes: int, rpn: dict[str, Any], expected: int) -> None:
    model = on_meta("faster_rcnn", num_classes=num_classes, rpn=rpn)
    assert count(model) == expected
    if expected == 137_078_239:
        assert count(model, trained=True) == 136_818_079


@pytest.mark.parametrize(("channels", "expected"), [(512, 47_462_111), (1024, 52_208_863)])
def test_parameters_with_resnet101_c4(channels: int, expected: int) -> None:
    changes = {"num_classes": 21, "rpn": {"channels": channels}}
    model = on_meta("faster_rcnn_resnet101_c4", body={"batch_norm": "live"}, **changes)
    assert count(model) == expected
    head = model.body.layer4
    assert count(head) == 14_964_736
    assert count(model.body) - count(head) == 27_535_424
    assert count(model.cls_score) + count(model.bbox_pred) == 215_145
    # Frozen, scales and shifts are no parameters.
    frozen = on_meta("faster_rcnn_resnet101_c4", **changes)
    norms = [m for m in frozen.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert count(frozen) + sum(2 * m.weight.numel() for m in norms) == expected
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())


@pytest.mark.parametrize("name", [name for name in NAMES if "tiny" not in name])
def test_imagenet_weights_find_their_places(name: str) -> None:
    """torchvision's network has every tensor of the body, in its shape, below one prefix."""
    arguments = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    origin = origin_of(FasterRCNN, arguments)
    published = origin.target.imagenet_weights(**origin.arguments)[0].partition("_Weights")[0]
    with torch.device("meta"):
        theirs = torchvision.models.get_model(published.lower(), weights=None).state_dict()
    assert (origin.theirs, origin.ours) == ("", "body.")
    ours = on_meta(name).body.state_dict()
    left = {n for n in theirs if n.startswith(("fc.", "classifier.6."))}
    left |= {n for n in theirs if n.endswith("num_batches_tracked")}
    new = {"hidden.weight", "hidden.bias"} if name.endswith("c5") else set()
    assert ours.keys() - new == theirs.keys() - left
    assert all(ours[n].shape == theirs[n].shape for n in ours.keys() - new)


def test_another_fc6_is_left_out() -> None:
    body = {"name": "vgg16"}
    assert FasterRCNN.classifier(body=body, roi_pool="spp")[2:] == ("features.", "body.features.")
    assert FasterRCNN.classifier(body={"name": "tiny"}) is None


def test_what_stands_still() -> None:
    for name, still in (("faster_rcnn", ("features",)), ("faster_rcnn_resnet50_c4", ("layer1",))):
        model = on_meta(name)
        frozen = [n for n, p in model.body.named_parameters() if not p.requires_grad]
        assert {n.partition(".")[0] for n in frozen} == {*still} | (
            {"conv1"} if "50" in name else set()
        )
        assert count(on_meta(name, body={"frozen_stages": 0}), trained=True) == count(model)
    assert [n for n, _ in on_meta("faster_rcnn").body.named_parameters()][:8] == [
        f"features.{layer}.{kind}" for layer in (0, 2, 5, 7) for kind in ("weight", "bias")
    ]


def test_strides_and_maps() -> None:
    images = torch.zeros(1, 3, 160, 192, device="meta")
    for name in NAMES:
        body = on_meta(name).body
        maps = body(images)
        assert maps.shape == (1, body.channels, 160 // body.stride, 192 // body.stride)
    assert {name: on_meta(name).body.stride for name in NAMES[:4]} == dict(
        zip(NAMES, (16, 16, 16, 32), strict=False)
    )


# Every variant


@pytest.mark.parametrize("name", NAMES)
def test_a_step_and_an_evaluation(name: str) -> None:
    few: dict[str, Any] = {"rpn": {"pre_nms": [100, 50], "post_nms": [20, 10]}}
    if name in ("faster_rcnn", "faster_rcnn_resnet50_c5"):
        few["roi_size"] = 2  # a hundred million weights less
    model = build(name, **({} if name.startswith("fast_") else few))
    images = [torch.randn(3, 64, 70), torch.randn(3, 90, 64)]
    targets = [target((5, 5, 40, 50), (20, 30, 64, 60)), target((10, 10, 60, 80))]
    proposals = [t["boxes"] + 2 for t in targets]
    losses = model.train()(images, targets, proposals)
    loss_of(losses).backward()
    for parameter_name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, parameter_name
        assert parameter.grad is None or parameter.grad.isfinite().all(), parameter_name
    assert losses.keys() == (SUMS if model.needs_proposals is False else {"cls", "box"})
    assert {n: c.item() for n, (_, c) in losses.items()} == model.loss_counts(2)
    assert all(0 < total / number < 10 for total, number in losses.values())  # nothing explodes
    with torch.no_grad():
        found = model.eval()(images, None, proposals)
    for image, one in zip(images, found, strict=True):
        limits = torch.tensor([image.shape[2], image.shape[1]] * 2)
        assert (one["boxes"] >= 0).all()
        assert (one["boxes"] <= limits).all()
        assert one["labels"].dtype == torch.int64
        assert len(one["boxes"]) == len(one["labels"]) == len(one["scores"]) <= 100
        assert not len(one["labels"]) or 1 <= one["labels"].min() <= one["labels"].max() <= 3


# Hard images

HARD = {
    "no object": [EMPTY, target((10, 10, 50, 50))],
    "no object anywhere": [EMPTY, EMPTY],
    "one pixel": [target((31, 31, 32, 32)), target((0, 0, 1, 1))],
    "on the border": [target((0, 0, 96, 96)), target((86, 86, 96, 96), (0, 40, 10, 50))],
    "no width": [target((31, 31, 31, 40)), EMPTY],
    "all the same": [target(*[(10.0, 10.0, 40.0, 40.0)] * 50), EMPTY],
}


@pytest.mark.parametrize("hard", HARD)
def test_hard_images(hard: str) -> None:
    step(build("faster_rcnn_tiny"), [torch.randn(3, 96, 96)] * 2, HARD[hard])


def test_five_thousand_objects() -> None:
    torch.manual_seed(0)
    corners = 90 * torch.rand(5000, 2)
    boxes = torch.cat([corners, corners + 1 + 5 * torch.rand(5000, 2)], dim=1)
    labels = torch.randint(1, 4, (5000,))
    step(build("faster_rcnn_tiny"), [torch.randn(3, 96, 96)], [{"boxes": boxes, "labels": labels}])


def test_the_smallest_images() -> None:
    step(build("faster_rcnn_tiny"), [torch.randn(3, 9, 8)], [target((1, 1, 7, 7))])
    step(build("faster_rcnn_tiny"), [torch.randn(3, 1, 1)], [EMPTY])  # nothing can be proposed


def test_bf16() -> None:
    model = build("faster_rcnn_tiny")
    images, targets = [torch.randn(3, 96, 96)] * 2, [target((5, 5, 40, 50)), EMPTY]
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()(images, targets)
        found = model.eval()(images)
    assert all(total.dtype == torch.float32 for total, _ in losses.values())
    loss_of(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert all(one["boxes"].dtype == one["scores"].dtype == torch.float32 for one in found)


def test_a_network_that_has_diverged_ends_no_process() -> None:
    """Boxes that are not finite would crash the operators: there are none; the loss says it."""
    model, images = build("faster_rcnn_tiny"), [torch.randn(3, 96, 96)]
    nn.init.constant_(model.rpn.reg.bias, float("nan"))
    losses = model.train()(images, [target((5, 5, 40, 50))])
    assert losses["rpn_box"][0].isnan()
    nn.init.constant_(model.bbox_pred.bias, float("inf"))
    with torch.no_grad():
        [found] = model.eval()(images)
    assert len(found["boxes"]) == 0


def test_the_same_seed_gives_the_same_bits() -> None:
    images, targets = [torch.randn(3, 96, 96)] * 2, [target((5, 5, 40, 50)), EMPTY]

    def bits(seed: int) -> list[Tensor]:
        model = build("faster_rcnn_tiny", samples=4, rpn={"samples": 8})
        torch.manual_seed(seed)
        losses = step(model, images, targets)
        return [torch.tensor(sorted(losses.values())), *(p.grad for p in model.parameters())]

    one, again, other = bits(1), bits(1), bits(2)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_no_gradient_through_proposals() -> None:
    """Approximate joint training: the detector's losses leave the proposals' offsets alone."""
    model = build("faster_rcnn_tiny")
    losses = model.train()([torch.randn(3, 96, 96)], [target((5, 5, 40, 50))])
    (losses["cls"][0] + losses["box"][0]).backward()
    assert model.rpn.reg.weight.grad is None
    assert model.body.layers[0].weight.grad.abs().sum() > 0


# Learning


def hand_drawn() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """On grey: a white square and a black bar; a white bar alone."""
    one, other = torch.zeros(2, 3, 96, 96)
    one[:, 10:42, 20:52] = 2
    one[:, 60:76, 30:78] = -2
    other[:, 20:36, 8:56] = 2
    boxes = ((20.0, 10, 52, 42), (30.0, 60, 78, 76)), ((8.0, 20, 56, 36),)
    targets = [target(*rows) for rows in boxes]
    targets[1]["labels"][:] = 3
    return [one, other], targets


def test_two_images_are_learnt() -> None:
    model, (images, targets) = build("faster_rcnn_tiny").train(), hand_drawn()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss_of(model(images, targets)).backward()
        optimizer.step()
    with torch.no_grad():
        found = model.eval()(images)
    for wanted, one in zip(targets, found, strict=True):
        sure = one["scores"] > 0.5
        iou = box_iou(one["boxes"][sure], wanted["boxes"])
        assert iou.shape[0] == len(wanted["boxes"])  # each once, and nothing else
        overlap, which = iou.max(1)
        assert (overlap > 0.8).all()
        assert one["labels"][sure].tolist() == wanted["labels"][which].tolist()
        assert sorted(which.tolist()) == list(range(len(wanted["boxes"])))
