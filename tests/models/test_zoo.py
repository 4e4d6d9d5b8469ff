"""Every classification network of torchvision and timm by its name."""

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from cvtrain import targets
from cvtrain.compose import compose_config
from cvtrain.errors import ConfigError
from cvtrain.models.zoo import timm_model, torchvision_model


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
    assert model.aux_heads == 2


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


# timm, which need not be installed

# What of timm the factory calls, with a network of each kind: any size, one size, no such option.
FAKE = """
from torch import nn

class OfOneSize(nn.Module):
    def __init__(self, num_classes, in_chans, img_size=224):
        super().__init__()
        self.img_size, self.fc = img_size, nn.Linear(in_chans, num_classes)
    def forward(self, x):
        assert x.shape[-1] == self.img_size, f"Input ({x.shape[-1]}) is not {self.img_size}"
        return self.fc(x.mean((2, 3)))

def list_models():
    return ["tiny_conv", "tiny_vit"]

def create_model(model_name, pretrained=False, num_classes=1000, in_chans=3, **kwargs):
    assert not pretrained
    if model_name == "tiny_vit":
        return OfOneSize(num_classes, in_chans, **kwargs)
    return conv(num_classes, in_chans, **kwargs)

def conv(num_classes, in_chans, drop_rate=0.0):
    return nn.Sequential(
        nn.Conv2d(in_chans, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(drop_rate),
        nn.Linear(8, num_classes))
"""


@pytest.fixture
def fake_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    package = tmp_path / "site" / "timm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    yield package / "__init__.py"
    sys.modules.pop("timm", None)


@pytest.mark.usefixtures("fake_timm")
def test_timms_networks() -> None:
    model = timm_model(
        name="tiny_conv", num_classes=3, in_channels=1, image_size=16, drop_rate=0.25
    )
    assert model.training
    assert model(torch.randn(2, 1, 16, 16)).shape == (2, 3)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.25]
    sized = timm_model(name="tiny_vit", num_classes=3, image_size=32, img_size=32)
    assert sized(torch.randn(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.usefixtures("fake_timm")
@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"name": "tiny_con"}, r"timm has no such.*model\.name=tiny_con; .*tiny_conv"),
        ({"name": "hf-hub:someone/tiny_conv"}, "timm has no such"),  # would be fetched
        ({"name": "tiny_conv", "dropuot": 0.1}, "dropuot.*remove that option"),
        (
            {"name": "tiny_vit", "image_size": 32},
            r"cannot take images of 32 px \(Input .*fixed 224",
        ),
        ({"name": "tiny_conv", "pretrained": True}, r"model\.pretrained; .*init\.weights"),
        ({"name": "tiny_conv", "checkpoint_path": "a.pt"}, r"model\.checkpoint_path; .*init\.w"),
        ({"name": "tiny_conv", "pretrained_cfg": {"file": "a"}}, r"model\.pretrained_cfg"),
    ],
)
def test_what_timm_cannot(wrong: dict, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        timm_model(**wrong)


@pytest.mark.usefixtures("fake_timm")
def test_timm_as_the_command_builds_it() -> None:
    """Its YAML is accepted, and grey images are given to it as they are."""
    config = compose_config(["model=timm", "model.name=tiny_conv", "+model.drop_rate=0.5"]).config
    sizes = {"num_classes": 3, "in_channels": 1, "image_size": 28}
    model = targets.make(config.model.args, nn.Module, key="model", trust=[], **sizes)
    assert model[0].in_channels == 1
    assert model[3].p == 0.5
    assert model[4].out_features == 3


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_timm_is_not_installed() -> None:
    with pytest.raises(ConfigError) as caught:
        timm_model(name="resnet50")
    fix = "type pip install 'cvtrain[timm]'"
    assert caught.value.line() == (
        f"cvtrain: error[CONFIG]: timm is not installed; model=timm; {fix}"
    )


def test_timm_that_is_broken_says_so(fake_timm: Path) -> None:
    fake_timm.write_text("import no_such_module_of_timms")
    with pytest.raises(ConfigError, match="No module named 'no_such_module_of_timms'"):
        timm_model(name="resnet50")
