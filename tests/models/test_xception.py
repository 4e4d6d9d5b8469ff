"""Xception against Figure 5 and Table 3 of its paper."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cvtrain.models.xception import SamePool, Separable, Xception

# Module, output side of 299 pixels, channels, parameters. Figure 5; module 14 is two layers.
LAYOUT = """
1    147    64      19_488
2     74   128      35_264
3     37   256     136_064
4     19   728     915_944
5     19   728   1_613_976
6     19   728   1_613_976
7     19   728   1_613_976
8     19   728   1_613_976
9     19   728   1_613_976
10    19   728   1_613_976
11    19   728   1_613_976
12    19   728   1_613_976
13    10  1024   2_039_584
14a   10  1536   1_585_152
14b   10  2048   3_163_648
"""


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta() -> Xception:
    with torch.device("meta"):
        return Xception()


def test_layout() -> None:
    rows = [tuple(map(int, line.split()[1:])) for line in LAYOUT.strip().splitlines()]
    model, x = on_meta(), torch.empty(1, 3, 299, 299, device="meta")
    found = []
    for block in model.blocks:
        x = block(x)
        assert x.shape[2] == x.shape[3]
        found.append((x.shape[2], x.shape[1], count(block)))
    assert found == rows
    assert count(model.fc) == 2_049_000
    assert model.dropout.p == 0.5


def test_counts() -> None:
    model = on_meta()
    assert count(model) == 22_855_952
    statistics = [b.numel() for name, b in model.named_buffers() if "running" in name]
    assert count(model) + sum(statistics) == 22_910_480  # Keras counts them
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 299, 299, device="meta"))
    assert counter.get_total_flops() / 2 == 8_357_403_496


def test_thirty_six_convolutions() -> None:
    model = on_meta()
    in_shortcuts = {m for block in model.blocks[1:13] for m in block.shortcut.modules()}
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    separable = [m for m in model.modules() if isinstance(m, Separable)]
    plain = [m for m in convolutions if m not in in_shortcuts]
    assert len(plain) - len(separable) == 36  # a separable one is two, counted as one
    assert len([m for m in in_shortcuts if isinstance(m, nn.Conv2d)]) == 4
    assert all(m.bias is None for m in convolutions)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 36 + 4
    assert {norm.eps for norm in norms} == {1e-3}
    assert all(
        [type(layer).__name__ for layer in s] == ["Conv2d", "Conv2d", "BatchNorm2d"]
        for s in separable
    )


def test_activations_precede_separable_convolutions() -> None:
    bodies = [[type(layer).__name__ for layer in block.body] for block in on_meta().blocks[1:13]]
    assert bodies[0] == ["Separable", "ReLU", "Separable", "SamePool"]
    assert bodies[1] == bodies[2] == bodies[11] == ["ReLU", *bodies[0]]
    assert bodies[3:11] == [["ReLU", "Separable"] * 3] * 8


@pytest.mark.parametrize(("height", "width"), [(147, 147), (74, 74), (37, 19), (8, 9), (2, 1)])
def test_pooling_is_tensorflows_same(height: int, width: int) -> None:
    """Of 3 - 2 = 1 pixel for an even side and 2 for an odd one, the larger half comes last."""
    x = torch.randn(2, 3, height, width)
    total = [2 if side % 2 else 1 for side in (height, width)]
    before = [pixels // 2 for pixels in total]
    padding = (before[1], total[1] - before[1], before[0], total[0] - before[0])
    expected = F.max_pool2d(F.pad(x, padding, value=-torch.inf), 3, stride=2)
    assert torch.equal(SamePool()(x), expected)
    assert expected.shape[2:] == ((height + 1) // 2, (width + 1) // 2)


def test_separable_convolution_by_hand() -> None:
    torch.manual_seed(0)
    layer, x = Separable(2, 3).eval(), torch.randn(1, 2, 5, 5)
    depthwise, pointwise = layer[0].weight, layer[1].weight
    channels = [F.conv2d(x[:, c : c + 1], depthwise[c : c + 1], padding=1) for c in range(2)]
    expected = sum(pointwise[:, c].reshape(1, 3, 1, 1) * channels[c] for c in range(2))
    torch.testing.assert_close(layer(x), expected / (1 + 1e-3) ** 0.5)


@pytest.mark.parametrize("side", [7, 71, 224])
def test_any_size_from_seven_pixels(side: int) -> None:
    assert on_meta().eval()(torch.empty(1, 3, side, side, device="meta")).shape == (1, 1000)


def test_bf16_and_state_dict() -> None:
    torch.manual_seed(0)
    model, again = (Xception(num_classes=3, in_channels=1) for _ in range(2))
    again.load_state_dict(model.state_dict())
    images = torch.randn(2, 1, 71, 71)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), again.eval()(images))
        with torch.autocast("cpu", torch.bfloat16):
            assert model.train()(images).isfinite().all()
