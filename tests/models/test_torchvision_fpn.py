"""A ResNet of ours below torchvision's detectors: its numbers, its names, the weights of a run."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from tiny import TINY_DRAWN, command
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.misc import FrozenBatchNorm2d

from cvtrain import build
from cvtrain.compose import compose_config
from cvtrain.data.batch import DataInfo
from cvtrain.data.source import Source
from cvtrain.engine.checkpoint import best_of, read_checkpoint, weights_of
from cvtrain.errors import CheckpointError, ConfigError
from cvtrain.models.zoo import torchvision_detector
from cvtrain.pretrained import fit_body, origin_of, read_pretrained
from cvtrain.targets import make
from cvtrain.trained.start import Start

FASTER = "fasterrcnn_resnet50_fpn"
THEIRS = [
    *(FASTER, "fasterrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"),
    *("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn"),
]
AS_THEIRS = {"name": "resnet50", "stride_in": "3x3", "stem": "imagenet"}


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def learnt(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", THEIRS)
def test_fifty_layers_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        ours = torchvision_detector(name=name, num_classes=91, body=AS_THEIRS)
        theirs = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    assert shapes(ours) == shapes(theirs)
    assert learnt(ours) == learnt(theirs)


def outputs(network: nn.Module, images: list[Tensor]) -> list[Tensor]:
    """The maps of the pyramid, a batch normed by its own statistics."""
    with torch.no_grad():
        return list(network.backbone(torch.stack(images)).values())


def pictures(size: int = 96) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, size, size, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn_v2", "retinanet_resnet50_fpn_v2"])
def test_the_maps_of_fifty_layers_are_torchvisions(name: str) -> None:
    torch.manual_seed(0)
    ours = torchvision_detector(name=name, num_classes=4, body=AS_THEIRS)
    theirs = torchvision_detector(name=name, num_classes=4)
    theirs.load_state_dict(ours.state_dict())
    pairs = zip(outputs(ours, pictures()), outputs(theirs, pictures()), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("depth", [18, 34, 101])
def test_others_are_what_torchvisions_parts_make(depth: int) -> None:
    """Its own ResNet below its own pyramid and its own Faster R-CNN."""
    torch.manual_seed(0)
    build_resnet = getattr(resnet, f"resnet{depth}")
    theirs = FasterRCNN(_resnet_fpn_extractor(build_resnet(weights=None), 5), num_classes=4)
    ours = torchvision_detector(
        name=FASTER, num_classes=4, body=AS_THEIRS | {"name": f"resnet{depth}"}
    )
    assert learnt(ours) == learnt(theirs)
    ours.load_state_dict(theirs.state_dict())
    pairs = zip(outputs(ours, pictures()), outputs(theirs, pictures()), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", [FASTER, "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn"])
def test_losses_reach_every_weight(name: str) -> None:
    torch.manual_seed(0)
    body = {"name": "resnet18", "stride_in": "3x3", "stem": "imagenet"}
    network = torchvision_detector(name=name, num_classes=4, body=body)
    target = {"boxes": torch.tensor([[8.0, 8, 70, 60]]), "labels": torch.tensor([2])}
    losses = network(pictures(), [target, target])
    sum(losses.values()).backward()
    still = {n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    assert not {n for n in still if n.startswith("backbone.body")}
    assert all(loss.isfinite() for loss in losses.values())
    network.eval()
    with torch.no_grad():
        found = network(pictures())
    assert [set(f) for f in found] == [{"boxes", "labels", "scores"}] * 2


def test_the_recipe_freezes_the_same_layers() -> None:
    """conv1, layer1 and every batch norm, as torchvision trains three of its five layers."""
    overrides = [f"model={FASTER}", "data=coco", "model.body.name=resnet18"]
    config = compose_config(overrides).config
    source = Boxes()
    _, network = build.build_model(config, source, 800, device=torch.device("meta"))
    build._frozen(config, source, network, steps=1).apply(network, 0)
    trained = {n for n, p in network.named_parameters() if p.requires_grad}
    theirs = _resnet_fpn_extractor(resnet.resnet18(weights=None, norm_layer=FrozenBatchNorm2d), 3)
    expected = {f"backbone.{n}" for n, p in theirs.named_parameters() if p.requires_grad}
    assert {n for n in trained if n.startswith("backbone.")} == expected


class Boxes(Source):
    """What a network is sized by."""

    def __init__(self) -> None:
        self.info = DataInfo("x", ("a", "b", "c"), 3, 64, "")


@pytest.mark.parametrize(
    ("name", "body", "line"),
    [
        (
            FASTER,
            {"name": "resnet81"},
            r"model\.body\.name=resnet81; type model\.body\.name=resnet18$",
        ),
        (FASTER, {"name": "vgg16"}, "there are resnet18, resnet34"),
        (FASTER, {"name": "resnet50", "stride_in": "5x5"}, "choose from 1x1, 3x3"),
        (FASTER, {"name": "resnet50", "strides": 2}, r"model\.body\.strides"),
        ("ssd300_vgg16", {"name": "resnet18"}, "ssd300_vgg16 has no body that can be another"),
        ("fasterrcnn_mobilenet_v3_large_fpn", {"name": "resnet18"}, "has no body"),
    ],
)
def test_what_is_refused(name: str, body: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        torchvision_detector(name=name, body=body)


# Weights


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """resnet18 of this command, trained for two steps on images of 16 pixels."""
    root = tmp_path_factory.mktemp("resnet18")
    words = ["model=resnet18", "data=shapes", "data.batch_size=16", *TINY_DRAWN["shapes"]]
    done = command(
        *words,
        "trainer.duration=2st",
        "recipe=none",
        f"data_dir={root}",
        "hydra.run.dir=run",
        cwd=root,
    )
    assert done.returncode == 0, done.stderr
    return root / "run"


def detector(run: Path, *words: str) -> tuple[nn.Module, list[str]]:
    overrides = [f"model={FASTER}", "model.body.name=resnet18", f"model.pretrained_backbone={run}"]
    overrides += ["data=shapes_boxes", f"data_dir={run.parent}", *TINY_DRAWN["shapes_boxes"]]
    overrides += words
    start = Start.read(compose_config(overrides), overrides)
    config = start.composed.config
    source: Source = make(config.data.args, Source, key="data", trust=[])
    _, model = build.build_model(config, source, 64, device=torch.device("cpu"))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    start.load(model, source)
    changed = [n for n, t in model.state_dict().items() if not torch.equal(t, before[n])]
    return model, changed


def test_a_run_of_ours_lands_in_the_body(run: Path) -> None:
    model, changed = detector(run, "model.body.stem=small")
    theirs = weights_of(read_checkpoint(best_of(run)))
    ours = model.state_dict()
    body = {n: t for n, t in theirs.items() if not n.startswith("fc.") and "num_batches" not in n}
    assert len(body) == 100  # 20 convolutions, and of as many batch norms four tensors each
    assert all(torch.equal(ours[f"backbone.body.{n}"], t) for n, t in body.items())
    assert changed
    assert all(n.startswith("backbone.body.") for n in changed)


def test_the_stem_that_does_not_fit_is_named(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"type .*model\.body\.stem=small"):
        detector(run, "model.body.stem=imagenet")


def test_torchvisions_weights_land_in_the_body(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = resnet.resnet34(weights=None)
    torch.save(classifier.state_dict(), tmp_path / "w.pth")
    body = AS_THEIRS | {"name": "resnet34"}
    origin = origin_of(torchvision_detector, {"name": FASTER, "body": body})
    weights = read_pretrained(
        str(tmp_path / "w.pth"), target=origin.target, arguments=origin.arguments
    )
    model = torchvision_detector(name=FASTER, num_classes=4, body=body, frozen_norm=True)
    [line] = fit_body(model, weights, origin)
    assert "180 tensors loaded into backbone.body" in line
    ours = model.state_dict()
    for name, tensor in classifier.state_dict().items():
        if not name.startswith("fc.") and "num_batches" not in name:
            assert torch.equal(ours[f"backbone.body.{name}"], tensor), name


def test_two_steps_by_the_command(run: Path, tmp_path: Path) -> None:
    words = [f"model={FASTER}", "model.body.name=resnet18", "model.body.stem=small"]
    words += ["data=shapes_boxes", "data.size=32", "data.train=2", "data.val=2"]
    words += ["data.batch_size=2", "+model.box_detections_per_img=5"]
    words += [f"model.pretrained_backbone={run}", f"data_dir={tmp_path}", "debug=smoke"]
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "100 tensors loaded into backbone.body" in done.stdout + done.stderr
