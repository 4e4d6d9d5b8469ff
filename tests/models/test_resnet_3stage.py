"""The small ResNet of three stages against counts by hand."""

import torch
from torch import nn

from cvtrain.models.resnet_3stage import ResNet3Stage


def block(inputs: int, width: int) -> int:
    """Two 3x3 convolutions, two batch norms, and a 1x1 projection with its own if widths differ."""
    body = 9 * inputs * width + 9 * width * width + 4 * width
    return body if inputs == width else body + inputs * width + 2 * width


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_counts() -> None:
    model = ResNet3Stage()
    stages = [(64, 64), (64, 128), (128, 256)]
    by_hand = [block(a, b) + block(b, b) for a, b in stages]
    assert [count(getattr(model, f"layer{n}")) for n in (1, 2, 3)] == by_hand
    assert count(model) == 49 * 3 * 64 + 128 + sum(by_hand) + 256 * 10 + 10 == 2_785_354


def test_shapes() -> None:
    model, shapes = ResNet3Stage(num_classes=5, in_channels=1), {}
    for name, layer in model.named_children():
        layer.register_forward_hook(
            lambda _layer, _inputs, output, name=name: shapes.update({name: tuple(output.shape)})
        )
    model(torch.zeros(2, 1, 32, 32))
    assert shapes == {
        "conv1": (2, 64, 16, 16),
        "bn1": (2, 64, 16, 16),
        "layer1": (2, 64, 16, 16),
        "layer2": (2, 128, 8, 8),
        "layer3": (2, 256, 8, 8),
        "fc": (2, 5),
    }


def test_only_the_shape_changes_are_projected() -> None:
    names = [n for n, _ in ResNet3Stage().named_modules() if n.endswith("downsample")]
    assert names == ["layer2.0.downsample", "layer3.0.downsample"]


def test_bf16_and_state_dict() -> None:
    torch.manual_seed(0)
    model, again = ResNet3Stage(), ResNet3Stage()
    again.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), again.eval()(images))
        with torch.autocast("cpu", torch.bfloat16):
            assert model.train()(images).isfinite().all()
