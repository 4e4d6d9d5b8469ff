"""The recipes of detectors: the papers' settings, and the networks that their figures are of."""

import pytest
import torch
from torch import nn

from cvtrain import targets
from cvtrain.compose import compose_config
from cvtrain.config import Config, Duration, Unit

# Batch, first rate, weight decay, the steps at which the rate is divided by 10, and all steps; the
# published figures. Girshick 2015; Ren et al. 2015 and its authors' end-to-end code; He et al.
# 2015, appendix A; Detectron's baselines. What none of them says is None.
PAPERS = {
    "fast_rcnn_voc": (2, 1e-3, 5e-4, [30_000], 40_000, {"voc_mAP": 66.9}),
    "faster_rcnn_voc": (2, 1e-3, 5e-4, [50_000], 70_000, {"voc_mAP": 69.9}),
    "faster_rcnn_coco": (8, 3e-3, 5e-4, [240_000], 320_000, {"mAP": 21.2, "mAP50": 41.5}),
    "faster_rcnn_resnet101_c4_coco": (
        *(8, 1e-3, 5e-4, [240_000], 320_000),
        {"mAP": 27.2, "mAP50": 48.4},
    ),
    "faster_rcnn_resnet101_c4_voc": (None, 1e-3, 5e-4, None, None, {"voc_mAP": 76.4}),
    "faster_rcnn_resnet50_c4_coco": (8, 0.01, 1e-4, [120_000, 160_000], 180_000, {"mAP": 34.8}),
}


def steps(text: str) -> int:
    length = Duration.parse(text, "")
    assert length.unit is Unit.steps
    return int(length.value)


@pytest.mark.parametrize("name", PAPERS)
def test_settings_of_the_paper(name: str) -> None:
    config = compose_config([f"recipe={name}"]).config
    sgd, schedule = config.optimizer.args, config.scheduler.args
    drops = [steps(text) for text in schedule["milestones"]]
    ours = (config.data.batch_size, sgd["lr"], sgd["weight_decay"], drops)
    *wanted, figures = PAPERS[name]
    for found, expected in zip((*ours, steps(config.trainer.duration)), wanted, strict=True):
        assert expected is None or found == expected
    assert (sgd["momentum"], sgd["nesterov"], schedule["gamma"]) == (0.9, False, 0.1)
    assert {k: v for k, v in config.published.items() if k != "source"} == figures
    assert list(config.data.augment) == ["flip"]
    detectron = name == "faster_rcnn_resnet50_c4_coco"
    sides = (config.data.image_size, config.data.args["long_side"])
    assert sides == ((800, 1333) if detectron else (600, 1000))


def parameters(config: Config, classes: int, *, trained: bool = False) -> int:
    with torch.device("meta"):
        network = targets.make(
            config.model.args, nn.Module, key="model", trust=[], num_classes=classes + 1
        )
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not trained)


@pytest.mark.parametrize(
    ("typed", "classes", "count"),
    [
        ("recipe=fast_rcnn_voc", 20, 134_690_729),
        ("recipe=faster_rcnn_voc", 20, 137_078_239),
        ("recipe=faster_rcnn_coco", 80, 138_316_573),
        ("recipe=faster_rcnn_resnet101_c4_voc model.body.batch_norm=live", 20, 47_462_111),
    ],
)
def test_parameters(typed: str, classes: int, count: int) -> None:
    """The published sizes; a batch norm that stands still is live here, to count."""
    assert parameters(compose_config(typed.split()).config, classes) == count


def test_conv1_and_conv2_stand_still() -> None:
    config = compose_config(["recipe=fast_rcnn_voc"]).config
    assert parameters(config, 20, trained=True) == 134_690_729 - 260_160


@pytest.mark.parametrize("name", [n for n in PAPERS if n.endswith("_voc")])
def test_voc_is_measured_as_published(name: str) -> None:
    config = compose_config([f"recipe={name}"]).config
    assert config.task.args["voc"] == 2007
    assert config.data.args["val_sets"] == ["VOC2007/test"]


def test_settings_that_differ_from_the_models_own() -> None:
    """Ren et al.: 64 px, too, on COCO; Girshick's background is of IoU 0.1 on; Detectron's C4."""
    of = {n: compose_config([f"recipe={n}"]).config.model.args for n in PAPERS}
    assert of["faster_rcnn_coco"]["rpn"]["sizes"] == [64, 128, 256, 512]
    assert of["faster_rcnn_voc"]["rpn"]["sizes"] == [128, 256, 512]
    assert {n: a["background"] for n, a in of.items() if a["background"]} == {"fast_rcnn_voc": 0.1}
    c4 = of["faster_rcnn_resnet50_c4_coco"]
    assert (c4["roi_pool"], c4["nms"], c4["samples"]) == ("align", 0.5, 512)
    assert c4["rpn"]["sizes"] == [32, 64, 128, 256, 512]
    assert c4["rpn"]["pre_nms"] == [12000, 6000]
    assert c4["rpn"]["post_nms"] == [2000, 1000]
    assert not c4["rpn"]["cross_boundary"]


def test_the_tutorials_variant() -> None:
    config = compose_config(["model=faster_rcnn_resnet50_c5", "data=coco"]).config
    assert config.data.args["square"] == 800
    assert config.optimizer.args["_target_"] == "torch.optim.Adam"
    assert config.optimizer.args["lr"] == 1e-3
    assert config.scheduler.args["step_size"] == "3ep"
    assert config.scheduler.args["gamma"] == 0.1
    assert config.trainer.duration == "10ep"
    assert not config.published
