"""Every classification network of torchvision by its name."""

import warnings

import pytest
import torch
from torch import nn

from cvtrain.errors import ConfigError
from cvtrain.models.zoo import torchvision_model


@pytest.mark.parametrize(
    ("name", "image_size"),
    [
        ("resnet18", 32),
        ("mobilenet_v3_small", 64),
        ("regnet_y_400mf", 32),
        ("vit_b_32", 64),
        ("alexnet", 63),
        ("googlenet", 32),
        ("inception_v3", 75),
        ("maxvit_t", 224),
    ],
)
def test_networks_train(name: str, image_size: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = torchvision_model(name=name, num_classes=3, image_size=image_size)
    assert model.training
    logits = model(torch.randn(2, 3, image_size, image_size))
    assert isinstance(logits, torch.Tensor)  # no auxiliary heads in training either
    assert logits.shape == (2, 3)


def test_options_reach_the_network() -> None:
    model = torchvision_model(name="mobilenet_v3_small", dropout=0.375)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.375]
    model = torchvision_model(name="googlenet", num_classes=3, aux_logits=True, init_weights=False)
    assert [len(head) for head in model(torch.randn(2, 3, 224, 224))] == [2, 2, 2]


def test_same_seed_same_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(1)
        states.append(torchvision_model(name="squeezenet1_1", num_classes=2).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("resnet5", "resnet50"), ("Swin-T", "swin_t"), ("convnext", "convnext_tiny")],
)
def test_wrong_name_gets_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(ConfigError, match=rf"model.name={wrong}.*{right}"):
        torchvision_model(name=wrong)


@pytest.mark.parametrize(
    ("name", "image_size"),
    [("alexnet", 32), ("inception_v3", 64), ("vit_b_16", 50), ("maxvit_t", 64)],
)
def test_size_that_cannot_be(name: str, image_size: int) -> None:
    with pytest.raises(ConfigError, match=rf"{name} cannot take images of {image_size} px.*fixed"):
        torchvision_model(name=name, image_size=image_size)


@pytest.mark.parametrize("option", [{"dropuot": 0.1}, {"weights": "DEFAULT"}])
def test_option_that_cannot_be(option: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        torchvision_model(name="resnet18", **option)
