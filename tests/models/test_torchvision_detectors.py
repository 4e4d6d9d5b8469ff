"""torchvision's detectors behind our task: the same losses, detections and figures as without."""

import contextlib
import io
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from cvtrain import build
from cvtrain.compose import compose_config
from cvtrain.data.batch import DataInfo, DetectionBatch
from cvtrain.data.source import Source
from cvtrain.errors import ConfigError
from cvtrain.models.zoo import ELSEWHERE, torchvision_detector
from cvtrain.tasks.detection import Detection
from cvtrain.verbs.summary import measure

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"
CLASSES = 3
# A data set that is for detection, wherever its files are.
DETECTION = ["data=shapes", "data.task=detection", "task=detection", "recipe=none"]


# The number of parameters, as torchvision publishes it for 91 outputs, and that of a live norm.
PUBLISHED = [
    ("fasterrcnn_resnet50_fpn", 41_755_286, 41_808_406),
    ("maskrcnn_resnet50_fpn", 44_401_393, 44_454_513),
    ("retinanet_resnet50_fpn", 34_014_999, 34_068_119),
    ("fcos_resnet50_fpn", 32_269_600, 32_322_720),
    ("fasterrcnn_mobilenet_v3_large_fpn", 19_386_354, None),
    (SMALL, 19_386_354, None),
    ("fasterrcnn_resnet50_fpn_v2", None, 43_712_278),
    ("maskrcnn_resnet50_fpn_v2", None, 46_359_409),
    ("retinanet_resnet50_fpn_v2", None, 38_198_935),
    ("ssd300_vgg16", 35_641_826, 35_641_826),
    ("ssdlite320_mobilenet_v3_large", None, 3_440_060),
]


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("name", "frozen", "live"), PUBLISHED, ids=[n for n, *_ in PUBLISHED])
def test_parameters(name: str, frozen: int | None, live: int | None) -> None:
    with torch.device("meta"):
        for count, option in ((frozen, True), (live, False)):
            if count is not None:
                assert parameters(torchvision_detector(name=name, frozen_norm=option)) == count


@pytest.mark.parametrize(
    ("name", "outputs", "count"),
    [
        ("fasterrcnn_resnet50_fpn", 81, 41_757_156),
        ("fasterrcnn_resnet50_fpn", 21, 41_449_656),
        ("maskrcnn_resnet50_fpn", 81, 44_400_693),
        ("maskrcnn_resnet50_fpn", 21, 44_077_773),
    ],
)
def test_parameters_for_other_classes(name: str, outputs: int, count: int) -> None:
    with torch.device("meta"):
        assert parameters(torchvision_detector(name=name, num_classes=outputs)) == count


@pytest.mark.parametrize("name", [name for name, *_ in PUBLISHED])
def test_names_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        ours = torchvision_detector(name=name, num_classes=4).state_dict()
        theirs = torchvision.models.get_model(
            name, weights=None, weights_backbone=None, num_classes=4
        ).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_a_published_file_has_295_tensors_and_fits_either_norm() -> None:
    torch.manual_seed(0)
    frozen, live = (
        torchvision_detector(name="fasterrcnn_resnet50_fpn", frozen_norm=f) for f in (1, 0)
    )
    assert (len(frozen.state_dict()), len(live.state_dict())) == (295, 348)
    live.load_state_dict(frozen.state_dict())
    assert torch.equal(live.backbone.body.bn1.weight, frozen.backbone.body.bn1.weight)
    assert not any("bn" in name for name, _ in frozen.named_parameters())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"name": "fasterrcnn_resnet5_fpn"}, r"no such detector.*fasterrcnn_resnet50_fpn"),
        ({"name": "keypointrcnn_resnet50_fpn"}, "no such detector"),  # points, not boxes
        ({"name": SMALL, "box_score_tresh": 0.1}, "type box_score_thresh"),
        ({"name": "ssd300_vgg16", "score_tresh": 0.1}, "type score_thresh"),
        *(({"name": SMALL, key: 1}, rf"model\.{key}; type") for key in ELSEWHERE),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        torchvision_detector(**arguments)


# Through the task


def pictures(sizes: list[tuple[int, int]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


def batch_of(images: list[Tensor]) -> DetectionBatch:
    """Normalised, with an object in the first image, two in the second, none in the third."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    objects = [
        ([[10.0, 12, 60, 80]], [2]),
        ([[5.0, 5, 90, 60], [30, 30, 50, 90]], [1, 3]),
        ([], []),
    ]
    targets = [
        {
            "boxes": torch.tensor(boxes).view(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "masks": torch.ones(len(labels), *image.shape[-2:], dtype=torch.uint8),
        }
        for (boxes, labels), image in zip(objects, images, strict=True)
    ]
    normalised = [(image - mean) / std for image in images]
    return DetectionBatch(normalised, targets, [], None, torch.arange(len(images)))


def pair(name: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    """Ours, and torchvision's own, which normalises by itself; the same weights."""
    torch.manual_seed(0)
    ours = torchvision_detector(name=name, num_classes=CLASSES + 1, **options)
    if name.startswith("fcos"):
        nn.init.constant_(ours.head.regression_head.bbox_reg.bias, 2.0)  # else its boxes are empty
    # In training it would draw a size, which would change what its heads draw.
    own = {"image_mean": MEAN, "image_std": STD, "min_size": 100, "_skip_resize": True}
    theirs = torchvision.models.get_model(
        name,
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
        **{k: v for k, v in own.items() if "image" in k or not name.startswith("ssd")},
        **options,
    )
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


FAMILIES = [
    SMALL,
    "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn",
    "ssd300_vgg16",
    "maskrcnn_resnet50_fpn",
]
SIZES = [(100, 130), (120, 100), (100, 100)]  # the short side is what torchvision is told


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_are_those_of_calling_torchvision(name: str) -> None:
    ours, theirs = pair(name)
    images = pictures(SIZES)
    batch, task = batch_of(images), Detection(num_classes=CLASSES)
    torch.manual_seed(3)  # for the samples that its heads draw
    expected = theirs.train()(images, batch.targets)
    torch.manual_seed(3)
    pairs = task.losses(ours.train(), batch)
    assert pairs.keys() == expected.keys() == task.counts(ours, batch).keys()
    for key, (total, count) in pairs.items():
        assert count == task.counts(ours, batch)[key] == 3
        torch.testing.assert_close(total / count, expected[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [SMALL, "retinanet_resnet50_fpn"])
def test_half_precision(name: str) -> None:
    ours, _ = pair(name)
    batch, task = batch_of(pictures(SIZES)), Detection(num_classes=CLASSES)
    with torch.autocast("cpu", torch.bfloat16):
        pairs = task.losses(ours.train(), batch)
        predictions = task.predict(ours.eval(), batch)
    for total, _ in pairs.values():
        assert total.dtype == torch.float32
        assert total.isfinite()
    assert {p["boxes"].dtype for p in predictions} == {torch.float32}


def by_pycocotools(found: list[dict[str, Tensor]], truths: list[dict[str, Tensor]]) -> list[float]:
    """The twelve numbers, called as its own documentation does."""

    def rows(one: dict[str, Tensor], image: int) -> list[dict[str, Any]]:
        boxes = torchvision.ops.box_convert(one["boxes"].double(), "xyxy", "xywh").tolist()
        scores = one.get("scores", torch.ones(len(boxes))).tolist()
        return [
            {"image_id": image, "category_id": k, "bbox": b, "score": s, "area": b[2] * b[3]}
            for b, k, s in zip(boxes, one["labels"].tolist(), scores, strict=True)
        ]

    truth, number = [], 0
    for image, one in enumerate(truths):
        for row in rows(one, image):
            truth.append({**row, "id": (number := number + 1), "iscrowd": 0})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(len(truths))],
            "categories": [{"id": k} for k in range(1, CLASSES + 1)],
            "annotations": truth,
        }
        coco.createIndex()
        detections = [row for image, one in enumerate(found) for row in rows(one, image)]
        evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats)


OPTIONS: dict[str, dict[str, Any]] = {
    SMALL: {"box_score_thresh": 0.0},
    "retinanet_resnet50_fpn": {"score_thresh": 0.0, "detections_per_img": 30},
    "fcos_resnet50_fpn": {"score_thresh": 0.0, "detections_per_img": 30},
}


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_figures_are_pycocotools_own(name: str) -> None:
    """Of random weights; some of what they find is the truth, in files 1.5 and 2 times as large."""
    ours, theirs = pair(name, **OPTIONS[name])
    images = pictures(SIZES)
    large = torch.tensor([2.0, 1.5, 2.0, 1.5])
    found = [
        {k: v * large if k == "boxes" else v for k, v in one.items()}
        for one in theirs.eval()(images)
    ]
    assert all(len(one["boxes"]) > 5 for one in found)
    truths = []
    for image, one in zip(images, found, strict=True):
        real = (one["labels"] > 0).nonzero()[:, 0][1:14:4]  # FCOS has an output for the background
        height, width = image.shape[-2:]
        size = torch.tensor([round(1.5 * height), 2 * width])
        boxes = one["boxes"][real] + torch.tensor([0, 0, 3.0, 1])
        truths.append({"size": size, "boxes": boxes, "labels": one["labels"][real]})
    task = Detection(num_classes=CLASSES)
    evaluator = task.evaluator()
    batch = batch_of(images)._replace(truths=truths)
    evaluator.update(task.predict(ours.eval(), batch), batch)
    figures = evaluator.compute()
    expected = by_pycocotools(found, truths)
    assert expected[0] > 0.02
    names = ["mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large"]
    names += ["AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"]
    ours_in_order = [figures.get(n, -100) / 100 for n in names]
    assert ours_in_order == pytest.approx(expected, abs=1e-4)


# As the command builds them

YAMLS = [
    "torchvision_detector",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
]


class Boxes(Source):
    """What a network is sized by."""

    def __init__(self) -> None:
        self.info = DataInfo("x", ("a", "b", "c"), 3, 64, "")


@pytest.mark.parametrize("name", YAMLS)
def test_yaml_and_the_head(name: str) -> None:
    """K + 1 outputs; of the network's state, only what gives them depends on the classes."""
    config = compose_config([f"model={name}", *DETECTION]).config
    assert config.model.task == "detection"
    source, meta = Boxes(), torch.device("meta")
    size = build.size_of(config, source)
    assert size == {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}.get(name, 64)
    channels, network = build.build_model(config, source, size, device=meta)
    assert channels == 3
    head = build.head_of(config, source, network)
    assert head
    parts = ("box_predictor", "mask_fcn_logits", "classification_head")
    assert all(any(part in key for part in parts) for key in head)
    if "rcnn" in name:
        assert network.roi_heads.box_predictor.cls_score.out_features == 4
    assert network.needs_masks == name.startswith("maskrcnn")


def test_the_recipe_trains_what_torchvision_does() -> None:
    """Of 91 outputs; conv1, layer1 and the batch norm stand still."""
    config = compose_config(["model=fasterrcnn_resnet50_fpn", "data=coco"]).config
    source = Boxes()
    source.info = replace(source.info, classes=tuple(map(str, range(90))))
    _, network = build.build_model(config, source, 800, device=torch.device("meta"))
    build._frozen(config, source, network, steps=1).apply(network, 0)
    trained = {n: p.numel() for n, p in network.named_parameters() if p.requires_grad}
    still = {n.split(".")[2] for n, p in network.named_parameters() if not p.requires_grad}
    assert still == {"conv1", "layer1"}
    assert sum(trained.values()) == 41_532_886
    assert not any(".bn" in n or "downsample.1" in n for n in trained)


@pytest.mark.parametrize(
    ("name", "size", "billions"),
    [("ssd300_vgg16", 300, 34.858), ("ssdlite320_mobilenet_v3_large", 320, 0.583)],
)
def test_multiply_adds_are_torchvisions(name: str, size: int, billions: float) -> None:
    """As `cvtrain summary` counts them, of a detector that always does the same to an image."""
    config = compose_config([f"model={name}", *DETECTION]).config
    source = Boxes()
    source.info = replace(source.info, classes=tuple(map(str, range(90))))
    costs, _ = measure(config, source, size)
    assert round(costs.multiply_adds / 1e9, 3) == billions


# Of torchvision's references/detection, on eight GPUs together: batch, rate, decay, epochs, drops;
# and the mAP of the weights that came of it.
RECIPES = {
    "fasterrcnn_resnet50_fpn": (16, 0.02, 1e-4, "26ep", ["16ep", "22ep"], 37.0),
    "maskrcnn_resnet50_fpn": (16, 0.02, 1e-4, "26ep", ["16ep", "22ep"], 37.9),
    "retinanet_resnet50_fpn": (16, 0.01, 1e-4, "26ep", ["16ep", "22ep"], 36.4),
    "fcos_resnet50_fpn": (16, 0.01, 1e-4, "26ep", ["16ep", "22ep"], 39.2),
    "ssd300_vgg16": (32, 0.002, 5e-4, "120ep", ["80ep", "110ep"], 25.1),
    "ssdlite320_mobilenet_v3_large": (192, 0.15, 4e-5, "660ep", None, 21.3),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_torchvisions(name: str) -> None:
    composed = compose_config([f"model={name}", "data=coco"])
    assert composed.choices["recipe"] == f"{name}_coco"
    config = composed.config
    sgd, drops = config.optimizer.args, config.scheduler.args.get("milestones")
    ours = (config.data.batch_size, sgd["lr"], sgd["weight_decay"], config.trainer.duration, drops)
    assert (*ours, config.published["mAP"]) == RECIPES[name]
    assert sgd["momentum"] == 0.9
    assert not sgd["nesterov"]
