"""Every classifier in configs/model, as its YAML stands: logits, a gradient everywhere in fp32 and
bf16, and a state that another instance takes.
"""

import importlib
import inspect
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

YAMLS = sorted((Path(__file__).parents[2] / "configs" / "model").glob("*.yaml"))
CONFIGS = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in YAMLS}
CLASSIFIERS = [name for name, config in CONFIGS.items() if config["task"] == "classification"]
NUM_CLASSES = 4


def target_of(config: dict[str, Any]) -> Any:
    module, _, name = config["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def image_size_of(config: dict[str, Any]) -> int:
    kind, _, pixels = config["input"].partition(" ")
    assert (kind, pixels.isdigit()) in {("any", False), ("min", True), ("fixed", True)}
    # Deep networks on large images would take minutes here. On 16 px ResNet-50 ends in maps of 1x1,
    # where torch 2.15's bf16 gradient of a 3x3 convolution of stride 2 is uninitialised memory.
    return int(pixels or (32 if ".zoo." in config["_target_"] else 16))


def arguments_of(config: dict[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in config.keys() - {"_target_", "task", "input"}}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_yaml_lists_every_argument(name: str) -> None:
    config = CONFIGS[name]
    parameters = inspect.signature(target_of(config)).parameters
    accepted = {key for key, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    given = accepted & {"num_classes", "in_channels", "image_size"}
    missing = accepted - given - arguments_of(config).keys()
    if name in ("resnet18", "resnet34"):
        missing.remove("stride_in")  # means nothing to basic blocks
    assert not missing
    assert arguments_of(config).keys() <= accepted


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_logits_and_gradients(name: str) -> None:
    if name == "timm":
        pytest.importorskip("timm")
    torch.manual_seed(0)
    config = CONFIGS[name]
    target, size = target_of(config), image_size_of(config)
    sizes = {"num_classes": NUM_CLASSES, "in_channels": 3, "image_size": size}
    accepted = inspect.signature(target).parameters
    from_data = {key: value for key, value in sizes.items() if key in accepted}
    model: nn.Module = target(**arguments_of(config), **from_data)

    images, labels = torch.randn(2, 3, size, size), torch.tensor([0, 3])
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = model.train()(images)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        assert all(logits.shape == (2, NUM_CLASSES) for logits in outputs)
        losses = [F.cross_entropy(logits.float(), labels) for logits in outputs]
        model.zero_grad()
        torch.stack(losses).sum().backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, f"{key} takes no part"
            assert parameter.grad.isfinite().all(), key

    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    saved = {key for key, _ in model.named_buffers()} <= model.state_dict().keys()
    with torch.device("meta" if saved else "cpu"):  # with nothing of its own
        twin: nn.Module = target(**arguments_of(config), **from_data)
    twin.load_state_dict(torch.load(file, weights_only=True), assign=True)
    with torch.no_grad():
        assert torch.equal(twin.eval()(images), model.eval()(images))
