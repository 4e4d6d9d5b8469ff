"""Networks in every format, run by what the format is for: they say what the network says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small

from cvtrain.exports import FORMATS, format_module, quietly
from cvtrain.exports.subject import Subject, classifier, detector
from cvtrain.models.cnn import CNN
from cvtrain.models.detection.fast_rcnn import FastRCNN
from cvtrain.models.detection.faster_rcnn import FasterRCNN
from cvtrain.models.detection.rcnn import RCNN
from cvtrain.models.lenet_1998 import LeNet5_1998
from cvtrain.models.xception import SamePool
from cvtrain.tasks.base import Head

TINY = {"name": "tiny", "widths": [8, 16, 16], "groups": 4, "hidden": 16}
RPN = {"sizes": [16, 32], "channels": 8, "min_size": 2}


def opened(subject: Subject, name: str, folder: Path) -> Any:
    form = format_module(name)
    path = folder / f"model{form.SUFFIX}"
    with quietly():
        path.write_bytes(form.packed(subject))
        return form.opened(path, subject)


def more(network: nn.Module) -> dict[str, Any]:
    """A fresh one has other weights, which those of a file replace."""

    def fresh() -> nn.Module:
        again = type(network)(**network.made_by)
        assert not torch.equal(*(next(n.parameters()) for n in (network, again)))
        return again.eval()

    return {"about": {"classes": "[]"}, "fresh": fresh}


def made(kind: type[nn.Module], **arguments: Any) -> Any:
    torch.manual_seed(0)
    network = kind(**arguments).eval()
    network.made_by = arguments
    return network


@pytest.mark.parametrize("name", FORMATS)
def test_a_classifier_of_any_size(name: str, tmp_path: Path) -> None:
    network = made(CNN, num_classes=5, in_channels=1, widths=[4, 8])
    example = torch.rand(2, 1, 16, 16)
    subject = classifier(network, example, box=False, any_size=True, **more(network))
    run = opened(subject, name, tmp_path)
    for size in ((1, 1, 16, 16), (5, 1, 9, 31), (2, 1, 40, 24)):
        images = torch.rand(size)
        with torch.no_grad():
            [logits] = run(images)
            torch.testing.assert_close(logits, network(images), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_heads_and_a_box_have_names(name: str, tmp_path: Path) -> None:
    from cvtrain.models.heads import with_heads

    network = made(CNN, num_classes=7, widths=[4])
    images = torch.rand(2, 3, 8, 8)
    wanted = network(images)
    subject = classifier(network, images, box=True, any_size=False, **more(network))
    assert subject.outputs == ("logits", "box")
    logits, box = opened(subject, name, tmp_path)(images)
    torch.testing.assert_close(torch.cat([logits, box], 1), wanted)
    if name == "safetensors":
        return
    several = with_heads(network, {"colour": Head(3), "kind": Head(2, hidden=4)})
    wanted = several(images)
    subject = classifier(several, images, box=False, any_size=False, about={}, fresh=nn.Identity)
    assert subject.outputs == ("colour", "kind")
    for logits, head in zip(opened(subject, name, tmp_path)(images), wanted.values(), strict=True):
        torch.testing.assert_close(logits, head)


def test_names_and_sizes_in_onnx(tmp_path: Path) -> None:
    import onnx

    network = made(CNN, num_classes=7, widths=[4])
    subject = classifier(network, torch.rand(2, 3, 8, 8), box=True, any_size=True, **more(network))
    opened(subject, "onnx", tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph

    def dims(value: Any) -> list[str | int]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    assert {v.name: dims(v) for v in graph.input} == {"images": ["batch", 3, "height", "width"]}
    assert {v.name: dims(v) for v in graph.output} == {"logits": ["batch", 3], "box": ["batch", 4]}
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)


@pytest.mark.parametrize("name", ["onnx", "torchscript", "torch_export"])
def test_what_is_not_only_layers(name: str, tmp_path: Path) -> None:
    """A sparse convolution and centres; a pool whose padding goes by the size."""
    network = made(LeNet5_1998, num_classes=12)
    images = torch.rand(2, 1, 32, 32)
    subject = classifier(network, images, box=False, any_size=False, **more(network))
    with torch.no_grad():
        [logits] = opened(subject, name, tmp_path)(images)
        torch.testing.assert_close(logits, network(images), atol=1e-4, rtol=1e-5)
    pool = SamePool()
    subject = classifier(pool, torch.rand(2, 2, 8, 8), box=False, any_size=True, **more(pool))
    run = opened(subject, name, tmp_path)
    for size in ((1, 2, 7, 10), (2, 2, 11, 11)):
        x = torch.randn(size)
        # TensorFlow's "same": ceil(n / 2) cells, all spare pixels right and below of an even side.
        padded = nn.functional.pad(x, (size[3] % 2, 1, size[2] % 2, 1), value=-torch.inf)
        assert torch.equal(run(x)[0], padded.unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5)))


def detections(found: tuple[Tensor, ...], wanted: dict[str, Tensor]) -> None:
    boxes, labels, scores = found
    assert len(scores) > 5
    torch.testing.assert_close(scores, wanted["scores"], atol=1e-5, rtol=0)
    torch.testing.assert_close(boxes, wanted["boxes"], atol=1e-2, rtol=0)
    assert torch.equal(labels, wanted["labels"] - 1)


DETECTOR: dict[str, Any] = {"num_classes": 4, "score": 0.1, "body": TINY}


@pytest.mark.parametrize(
    ("name", "pool"),
    [
        ("onnx", "align"),
        pytest.param("onnx", "max", marks=pytest.mark.nightly),
        ("torchscript", "spp"),
        pytest.param("torch_export", "align", marks=pytest.mark.nightly),
    ],
)
def test_faster_rcnn(name: str, pool: str, tmp_path: Path) -> None:
    network = made(FasterRCNN, **DETECTOR, roi_pool=pool, roi_size=3, rpn=RPN)
    with torch.no_grad():
        network.cls_score.weight *= 30  # scores that are not all alike
        network.rpn.cls.weight *= 10
    subject = detector(network, (torch.rand(3, 64, 96),), **more(network))
    run = opened(subject, name, tmp_path)
    for size in ((64, 96), (100, 50), (24, 24)):  # of the last, fewer anchors than proposals
        image = torch.rand(3, *size)
        with torch.no_grad():
            detections(run(image), network([image])[0])


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (RCNN, "onnx"),
        (FastRCNN, "torchscript"),
        pytest.param(FastRCNN, "onnx", marks=pytest.mark.nightly),
    ],
)
def test_networks_that_take_proposals(kind: Any, name: str, tmp_path: Path) -> None:
    own = {"network": {"name": "cnn", "widths": [8]}, "crop": 16, "context": 2}
    arguments = {**DETECTOR, "roi_size": 3} if kind is FastRCNN else own | {"num_classes": 4}
    network = made(kind, **arguments)
    corners = torch.rand(200, 2, generator=torch.Generator().manual_seed(1)) * 40
    boxes = torch.cat([corners, corners + 10 + corners.flip(1)], 1)
    subject = detector(network, (torch.rand(3, 64, 96), boxes[:30]), **more(network))
    run = opened(subject, name, tmp_path)
    for size, count in (((64, 96), 30), ((70, 81), 12), ((50, 60), 150)):
        image = torch.rand(3, *size)
        with torch.no_grad():
            detections(run(image, boxes[:count]), network([image], None, [boxes[:count]])[0])


def test_weights_by_their_own_names_with_what_is_known_of_them(tmp_path: Path) -> None:
    from safetensors import safe_open

    network = made(CNN, num_classes=3, widths=[4])
    about = {"classes": '["a", "b", "c"]', "config": "seed: 0\n"}
    subject = classifier(
        network, torch.rand(2, 3, 8, 8), box=False, any_size=True, about=about, fresh=nn.Identity
    )
    path = tmp_path / "model.safetensors"
    path.write_bytes(format_module("safetensors").packed(subject))
    with safe_open(path, "pt") as file:
        assert file.metadata() == about
        assert {name: file.get_tensor(name).shape for name in file.keys()} == {  # noqa: SIM118
            name: tensor.shape for name, tensor in network.state_dict().items()
        }


@pytest.mark.nightly
def test_torchvisions_own_networks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = mobilenet_v3_small(num_classes=4).eval()
    images = torch.rand(2, 3, 32, 32)
    subject = classifier(network, images, box=False, any_size=True, about={}, fresh=nn.Identity)
    run = opened(subject, "onnx", tmp_path)
    for size in ((1, 3, 32, 32), (3, 3, 47, 65)):
        images = torch.rand(size)
        with torch.no_grad():
            torch.testing.assert_close(run(images)[0], network(images), atol=1e-5, rtol=1e-4)
