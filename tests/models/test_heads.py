"""Several heads in the place of a classifier's last linear layer."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from cvtrain.engine.checkpoint import load_weights
from cvtrain.errors import ConfigError
from cvtrain.models.cnn import CNN
from cvtrain.models.googlenet import GoogLeNet
from cvtrain.models.heads import with_heads
from cvtrain.models.lenet_1998 import LeNet5_1998
from cvtrain.models.mlp import MLP
from cvtrain.models.resnet_cifar import ResNetCifar
from cvtrain.models.zoo import torchvision_model
from cvtrain.tasks.base import Head

YAMLS = sorted((Path(__file__).parents[2] / "configs" / "model").glob("*.yaml"))
CONFIGS = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in YAMLS}
# One of each kind.
NAMES = (
    "alexnet",
    "cnn",
    "googlenet",
    "lenet5",
    "mlp",
    "resnet18",
    "resnet20",
    "resnet50",
    "resnet_3stage",
)
NAMES += ("vgg11", "vgg16_c", "xception")

HEADS = {"main": Head(1), "level": Head(4, 6)}


def built(name: str) -> tuple[nn.Module, int]:
    """On the meta device: the real sizes without their cost."""
    config = CONFIGS[name]
    module, _, attribute = config["_target_"].rpartition(".")
    target = getattr(importlib.import_module(module), attribute)
    size = int(config["input"].partition(" ")[2] or 32)
    sizes = {"num_classes": 10, "in_channels": 3, "image_size": size, "aux": False}
    given = {k: v for k, v in config.items() if k not in ("_target_", "task", "input")}
    given |= {k: v for k, v in sizes.items() if k in inspect.signature(target).parameters}
    with torch.device("meta"):
        return target(**given), size


@pytest.mark.parametrize("name", NAMES)
def test_only_the_last_layer_changes(name: str) -> None:
    network, size = built(name)
    plain = network.state_dict()
    [last] = [n for n in plain if n.endswith("weight") and plain[n].shape[0] == 10]
    layer = last.removesuffix(".weight")
    headed = with_heads(network, HEADS, image=(3, size, size))
    assert headed is network
    assert network.training
    names = {"main_head.weight", "main_head.bias"}
    names |= {f"level_head.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")}
    state = headed.state_dict()
    assert plain.keys() - state.keys() == {last, f"{layer}.bias"}
    assert state.keys() - plain.keys() == {f"{layer}.{n}" for n in names}
    logits = headed.eval()(torch.empty(2, 3, size, size, device="meta"))
    assert {n: tuple(of.shape) for n, of in logits.items()} == {"main": (2, 1), "level": (2, 4)}


@pytest.mark.parametrize("name", ["vit_b_16", "mobilenet_v3_small", "densenet121", "inception_v3"])
def test_torchvisions_networks(name: str) -> None:
    with torch.device("meta"):
        network = torchvision_model(name=name, num_classes=10, image_size=224)
    logits = with_heads(network, HEADS, image=(3, 224, 224)).eval()(
        torch.empty(2, 3, 224, 224, device="meta")
    )
    assert {n: tuple(of.shape) for n, of in logits.items()} == {"main": (2, 1), "level": (2, 4)}


def test_the_numbers_are_those_of_the_layers() -> None:
    torch.manual_seed(0)
    network = with_heads(CNN(widths=[4, 8]), HEADS, image=(3, 8, 8)).eval()
    images, seen = torch.randn(5, 3, 8, 8), []
    heads = network.get_submodule("fc")
    heads.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits, [features] = network(images), seen
    state = network.state_dict()
    expected = features @ state["fc.main_head.weight"].T + state["fc.main_head.bias"]
    torch.testing.assert_close(logits["main"], expected)
    middle = features @ state["fc.level_head.0.weight"].T + state["fc.level_head.0.bias"]
    middle = middle.clamp(min=0) @ state["fc.level_head.2.weight"].T
    torch.testing.assert_close(logits["level"], middle + state["fc.level_head.2.bias"])


def test_the_kept_head_is_the_plain_networks() -> None:
    """Its weights load under their own names, its logits are the plain network's."""
    torch.manual_seed(0)
    plain = ResNetCifar(depth=8, num_classes=7).eval()
    kept = {**HEADS, "old": Head(7, pretrained=True)}
    network = with_heads(ResNetCifar(depth=8, num_classes=7), kept, image=(3, 16, 16)).eval()
    left = load_weights(network, plain.state_dict(), source="plain", reset=True)
    assert all("_head." in name for name in left)
    assert len(left) == 6
    images = torch.randn(3, 3, 16, 16)
    logits = network(images)
    assert list(logits) == ["main", "level", "old"]
    torch.testing.assert_close(logits["old"], plain(images))
    still = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert still == {"fc.weight", "fc.bias"}


def test_a_plain_classifiers_weights_load_but_for_its_head() -> None:
    plain = ResNetCifar(depth=8, num_classes=7)
    network = with_heads(ResNetCifar(depth=8, num_classes=2), HEADS)
    left = load_weights(network, plain.state_dict(), source="plain", reset=True)
    assert all(name.startswith("fc.") for name in left)
    assert torch.equal(network.get_parameter("conv1.weight"), plain.conv1.weight)


def test_every_head_gets_a_gradient_and_so_does_the_backbone() -> None:
    network = with_heads(MLP(hidden=[5], image_size=4), HEADS)
    torch.stack([of.sum() for of in network(torch.rand(2, 1, 4, 4)).values()]).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_names_that_no_module_could_have() -> None:
    odd = {"hair.colour": Head(2), "type": Head(1), "weight": Head(3)}
    network = with_heads(CNN(widths=[4]), odd)
    assert list(network(torch.rand(2, 3, 4, 4))) == list(odd)
    load_weights(with_heads(CNN(widths=[4]), odd), network.state_dict(), source="", reset=False)
    with pytest.raises(ConfigError, match="two heads of one name"):
        with_heads(CNN(widths=[4]), {"a.b": Head(1), "a-b": Head(1)})


class Probabilities(nn.Module):
    """Something follows the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1)).softmax(1)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: LeNet5_1998(), "LeNet5_1998 ends in RBFOutput, no linear layer"),
        (lambda: torchvision_model(name="squeezenet1_1"), "SqueezeNet ends in Conv2d"),
        (lambda: GoogLeNet(aux=True, image_size=32), r"auxiliary heads.*; type model\.aux=false"),
        (lambda: Probabilities(), "does not end in its linear layer .*model=NAME"),
        (lambda: nn.ReLU(), "ReLU ends in ReLU, no linear layer"),
    ],
    ids=["rbf", "conv", "aux", "softmax", "nothing"],
)
def test_networks_without_a_place_for_heads(network: Any, message: str) -> None:
    with torch.device("meta"):
        made = network()
    with pytest.raises(ConfigError, match=message) as caught:
        with_heads(made, HEADS, image=(3, 2, 2))
    assert "\n" not in caught.value.line()


def test_the_kept_head_has_the_classes_that_it_has() -> None:
    with pytest.raises(ConfigError, match=r"1000 classes, .*has 10; task\.heads\.old; .*: 10"):
        with_heads(CNN(), {**HEADS, "old": Head(1000, pretrained=True)})
    twice = {"old": Head(10, pretrained=True), "older": Head(10, pretrained=True)}
    with pytest.raises(ConfigError, match="two heads are kept"):
        with_heads(CNN(), twice)
