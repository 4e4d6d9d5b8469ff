"""ResNet, of ImageNet and of CIFAR, against the paper's counts and torchvision's network."""

import logging

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cvtrain.errors import ConfigError
from cvtrain.models.resnet import ResNet, ZeroPad
from cvtrain.models.resnet_cifar import ResNetCifar, ZeroPadShortcut

PARAMETERS = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}
OPTIONS = {  # option A, option C
    18: (11_515_688, 12_043_816),
    34: (21_623_848, 22_716_840),
    50: (22_780_456, 40_128_552),
    101: (41_772_584, 76_981_288),
    152: (57_416_232, 107_335_720),
}
CIFAR_PARAMETERS = {  # option A, option B
    20: (269_722, 272_474),
    32: (464_154, 466_906),
    44: (658_586, 661_338),
    56: (853_018, 855_770),
    110: (1_727_962, 1_730_714),
    1202: (19_421_274, 19_424_026),
}


def on_meta(network: type[nn.Module], **arguments: object) -> nn.Module:
    with torch.device("meta"):
        return network(**arguments)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, *, image_size: int) -> int:
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, image_size, image_size, device="meta"))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("stride_in", ["1x1", "3x3"])
@pytest.mark.parametrize("depth", PARAMETERS)
def test_parameters_and_names_are_torchvisions(depth: int, stride_in: str) -> None:
    ours = on_meta(ResNet, depth=depth, stride_in=stride_in)
    assert count(ours) == PARAMETERS[depth]
    with torch.device("meta"):
        theirs = torchvision.models.get_model(f"resnet{depth}", weights=None)
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == {
        name: tensor.shape for name, tensor in theirs.state_dict().items()
    }


@pytest.mark.parametrize(
    ("depth", "stride_in", "expected"),
    [
        (50, "1x1", 3_857_973_248),
        (50, "3x3", 4_089_184_256),
        (101, "1x1", 7_570_194_432),
        (101, "3x3", 7_801_405_440),
        (152, "1x1", 11_282_415_616),
        (152, "3x3", 11_513_626_624),
    ],
)
def test_multiply_adds_of_bottlenecks(depth: int, stride_in: str, expected: int) -> None:
    model = on_meta(ResNet, depth=depth, stride_in=stride_in)
    assert multiply_adds(model, image_size=224) == expected


@pytest.mark.parametrize(("depth", "billions"), [(18, 1.814), (34, 3.664)])
def test_multiply_adds_of_basic_blocks(depth: int, billions: float) -> None:
    assert round(multiply_adds(on_meta(ResNet, depth=depth), image_size=224) / 1e9, 3) == billions


@pytest.mark.parametrize("depth", OPTIONS)
def test_parameters_of_the_other_shortcuts(depth: int) -> None:
    models = [on_meta(ResNet, depth=depth, shortcut=option) for option in "AC"]
    assert tuple(count(model) for model in models) == OPTIONS[depth]
    # A has no weights to name, C the names of B and more.
    names = [set(on_meta(ResNet, depth=depth).state_dict())]
    names += [set(model.state_dict()) for model in models]
    assert names[1] == {name for name in names[0] if "downsample" not in name}
    assert names[2] > names[0]


@pytest.mark.parametrize(
    ("depth", "option", "billions"),
    [(18, "A", 1.795), (18, "C", 1.878), (34, "A", 3.644), (34, "C", 3.831)],
)
def test_multiply_adds_of_the_other_shortcuts(depth: int, option: str, billions: float) -> None:
    model = on_meta(ResNet, depth=depth, shortcut=option)
    assert round(multiply_adds(model, image_size=224) / 1e9, 3) == billions


def test_zero_padding_by_hand() -> None:
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    zeros = torch.zeros(1, 2, 2, 2)
    halved = torch.tensor([[[[0.0, 2], [6, 8]]]])
    assert torch.equal(ZeroPad(2, stride=2)(x), torch.cat([halved, zeros], 1))
    # A bottleneck's first stage widens at full size.
    assert torch.equal(ZeroPad(1, stride=1)(x), torch.cat([x, torch.zeros_like(x)], 1))


@pytest.mark.parametrize("stride_in", ["1x1", "3x3"])
@pytest.mark.parametrize("depth", [18, 50])
def test_option_a_block_is_pixels_where_the_branch_is_silent(depth: int, stride_in: str) -> None:
    block = ResNet(depth=depth, shortcut="A", stride_in=stride_in).layer2[0].eval()
    last = block.bn2 if depth == 18 else block.bn3
    nn.init.zeros_(last.weight)
    channels = block.conv1.in_channels
    x = torch.rand(2, channels, 7, 9)
    out = block(x)
    assert torch.equal(out[:, :channels], x[:, :, ::2, ::2])
    assert out.shape[1] == 2 * channels
    assert (out[:, channels:] == 0).all()


@pytest.mark.parametrize("option", "AC")
def test_the_other_shortcuts_train(option: str) -> None:
    torch.manual_seed(0)
    model = ResNet(depth=18, shortcut=option, num_classes=3, image_size=32)
    again = ResNet(depth=18, shortcut=option, num_classes=3, image_size=32)
    again.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 17, 17)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), again.eval()(images))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.train()(images)
    logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# Table 1 of the paper: output side of a 224x224 image; the convolutions of a block, kernel and
# maps, and how often it stands in networks of 18 and 34 layers; the same for 50, 101 and 152.
TABLE_1 = """
conv1   112 | 7x7,64          | 1 1 | 7x7,64                   | 1  1  1
maxpool  56 |                 | 1 1 |                          | 1  1  1
conv2_x  56 | 3x3,64  3x3,64  | 2 3 | 1x1,64  3x3,64  1x1,256  | 3  3  3
conv3_x  28 | 3x3,128 3x3,128 | 2 4 | 1x1,128 3x3,128 1x1,512  | 4  4  8
conv4_x  14 | 3x3,256 3x3,256 | 2 6 | 1x1,256 3x3,256 1x1,1024 | 6 23 36
conv5_x   7 | 3x3,512 3x3,512 | 2 3 | 1x1,512 3x3,512 1x1,2048 | 3  3  3
"""
NAMES = {"conv2_x": "layer1", "conv3_x": "layer2", "conv4_x": "layer3", "conv5_x": "layer4"}
COLUMNS = {18: (1, 0), 34: (1, 1), 50: (3, 0), 101: (3, 1), 152: (3, 2)}


def rows_of(depth: int) -> list[tuple[str, int, list[str], int]]:
    """Of a depth's column each layer, its output side, a block's convolutions, their number."""
    rows, (column, number) = [], COLUMNS[depth]
    for line in TABLE_1.strip().splitlines():
        cells = [cell.split() for cell in line.split("|")]
        name, side = cells[0]
        rows.append((name, int(side), cells[column], int(cells[column + 1][number])))
    return rows


def convolutions(module: nn.Module) -> list[str]:
    """`3x3,64` of each, in the order in which they stand, but the shortcuts' own."""
    return [
        f"{m.kernel_size[0]}x{m.kernel_size[1]},{m.out_channels}"
        for name, m in module.named_modules()
        if isinstance(m, nn.Conv2d) and "downsample" not in name
    ]


@pytest.mark.parametrize("depth", PARAMETERS)
def test_every_row_of_table_1(depth: int) -> None:
    model, shapes = on_meta(ResNet, depth=depth), {}
    for name, layer in model.named_children():
        layer.register_forward_hook(
            lambda _layer, _inputs, output, name=name: shapes.update({name: tuple(output.shape)})
        )
    model(torch.empty(1, 3, 224, 224, device="meta"))
    rows, layers = rows_of(depth), 0
    for name, side, block, count in rows:
        layer = model.get_submodule(NAMES.get(name, name))
        assert shapes[NAMES.get(name, name)][2:] == (side, side), name
        assert convolutions(layer) == block * count, name
        layers += len(block) * count
    assert layers + 1 == depth  # and the linear layer, after average pooling to one pixel
    channels = int(rows[-1][2][-1].partition(",")[2])
    assert (model.fc.in_features, shapes["fc"]) == (channels, (1, 1000))


@pytest.mark.parametrize("n", [3, 5, 7, 9, 18])
def test_every_row_of_the_cifar_table(n: int) -> None:
    """Section 4.2: 1+2n layers of 16 maps at 32x32, 2n of 32 at 16x16, 2n of 64 at 8x8, 10-way."""
    model, found = on_meta(ResNetCifar, depth=6 * n + 2), []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.kernel_size == (3, 3)
            layer.register_forward_hook(
                lambda _layer, _inputs, output: found.append(tuple(output.shape[1:]))
            )
    assert model(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 10)
    rows = [(1 + 2 * n, (16, 32, 32)), (2 * n, (32, 16, 16)), (2 * n, (64, 8, 8))]
    assert found == [maps for count, maps in rows for _ in range(count)]


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """Random batch-norm statistics and affines, so that no wrong wiring hides behind 0 and 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                tensor.normal_(std=0.1)
    return model.eval()


@pytest.mark.parametrize("depth", PARAMETERS)
@torch.no_grad()
def test_torchvisions_weights_give_torchvisions_logits(depth: int) -> None:
    torch.manual_seed(0)
    theirs = randomised(torchvision.models.get_model(f"resnet{depth}", weights=None))
    ours = ResNet(depth=depth, stride_in="3x3").eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 64)
    expected = theirs(images)
    scale = expected.abs().max()
    torch.testing.assert_close(ours(images) / scale, expected / scale, atol=1e-5, rtol=0)
    if depth == 50:
        paper = ResNet(depth=50).eval()
        paper.load_state_dict(theirs.state_dict())
        assert ((paper(images) - expected) / scale).abs().max() > 1e-2


def test_small_stem(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    small = on_meta(ResNet, depth=18, image_size=64)
    assert small.conv1.weight.shape == (64, 3, 3, 3)
    assert "model.stem=imagenet" in caplog.text
    features = nn.Sequential(*list(small.children())[:-1])(torch.empty(1, 3, 32, 32, device="meta"))
    assert features.shape == (1, 512, 4, 4)
    caplog.clear()
    assert on_meta(ResNet, depth=18, image_size=65).conv1.kernel_size == (7, 7)
    assert on_meta(ResNet, depth=18, image_size=32, stem="imagenet").conv1.kernel_size == (7, 7)
    assert on_meta(ResNet, depth=18, image_size=224, stem="small").conv1.kernel_size == (3, 3)
    assert not caplog.text


@pytest.mark.parametrize(
    "bad", [{"depth": 20}, {"stem": "tiny"}, {"stride_in": "5x5"}, {"shortcut": "D"}]
)
def test_resnet_refuses_what_the_paper_lacks(bad: dict) -> None:
    with pytest.raises(ConfigError, match=r"model\..*choose from"):
        ResNet(**bad)


@pytest.mark.parametrize("depth", CIFAR_PARAMETERS)
def test_cifar_parameters(depth: int) -> None:
    counts = tuple(count(on_meta(ResNetCifar, depth=depth, shortcut=option)) for option in "AB")
    assert counts == CIFAR_PARAMETERS[depth]
    assert counts[0] == 97_216 * (depth - 2) // 6 - 21_926


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 40.55), (32, 68.86), (44, 97.17), (56, 125.49), (110, 252.89)]
)
def test_cifar_multiply_adds(depth: int, millions: float) -> None:
    model = on_meta(ResNetCifar, depth=depth)
    assert round(multiply_adds(model, image_size=32) / 1e6, 2) == millions


def test_option_a_by_hand() -> None:
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    expected = torch.tensor([[[[0.0, 2], [6, 8]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]]])
    assert torch.equal(ZeroPadShortcut(2)(x), expected)


@pytest.mark.parametrize("size", [9, 15, 32])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_cifar_takes_any_size(size: int, shortcut: str) -> None:
    model = ResNetCifar(shortcut=shortcut, num_classes=3, in_channels=1)
    assert model(torch.zeros(2, 1, size, size)).shape == (2, 3)


def test_init_is_he_fan_out() -> None:
    torch.manual_seed(0)
    # Both double the channels, so that fan in and fan out differ.
    cifar, imagenet = ResNetCifar().layer2[0].conv1, ResNet(depth=18).layer2[0].conv1
    assert cifar.weight.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)
    assert imagenet.weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("bad", "fix"),
    [({"depth": 18}, "model.depth=20"), ({"depth": 2}, "=8"), ({"shortcut": "C"}, "A or B")],
)
def test_cifar_refuses_what_the_paper_lacks(bad: dict, fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        ResNetCifar(**bad)
