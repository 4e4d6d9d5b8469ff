"""GoogLeNet against Table 1 of its paper and AlexNet's formula of response normalisation."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cvtrain.errors import ConfigError
from cvtrain.models.alexnet import ResponseNorm
from cvtrain.models.googlenet import AuxiliaryHead, GoogLeNet

# Output side and channels, #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj; weights in K
# (1024, without biases). Table 1, but its own column of weights, which is approximate.
TABLE_1 = """
3a  28  256   64   96  128   16   32   32   159.5
3b  28  480  128  128  192   32   96   64   379.0
4a  14  512  192   96  208   16   48   64   366.8
4b  14  512  160  112  224   24   64   64   438.0
4c  14  512  128  128  256   24   64   64   497.5
4d  14  528  112  144  288   32   64   64   590.5
4e  14  832  256  160  320   32  128  128   847.0
5a   7  832  256  160  320   32  128  128  1018.0
5b   7 1024  384  192  384   48  128  128  1409.0
"""
ROWS = [line.split() for line in TABLE_1.strip().splitlines()]
MILLIONS = [128.0, 304.3, 73.6, 87.9, 99.9, 118.5, 170.0, 51.1, 70.7]  # multiply-adds of each row


def on_meta(**arguments: Any) -> GoogLeNet:
    with torch.device("meta"):
        return GoogLeNet(**arguments)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def weights(module: nn.Module) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if name.endswith("weight"))


def multiply_adds(model: nn.Module, image: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2


def image(side: int = 224) -> Tensor:
    return torch.empty(1, 3, side, side, device="meta")


def shapes_of(model: GoogLeNet, side: int = 224) -> dict[str, tuple[int, int]]:
    """Channels and side of each module's output."""
    shapes = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: shapes.update(
                {name: tuple(output.shape[1:3])} if isinstance(output, Tensor) else {}
            )
        )
    model(image(side))
    return shapes


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_row_of_table_1(row: list[str]) -> None:
    name, side, channels, *widths, thousands = row
    model = on_meta()
    block, shapes = model.inceptions[name], shapes_of(model)
    assert shapes[f"inceptions.{name}"] == (int(channels), int(side))
    convolutions = [m.out_channels for m in block.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions == [int(width) for width in widths]
    kernels = [m.kernel_size[0] for m in block.modules() if isinstance(m, nn.Conv2d)]
    assert kernels == [1, 1, 3, 1, 5, 1]
    assert round(weights(block) / 1024, 1) == float(thousands)


def test_multiply_adds_of_each_row() -> None:
    model, found, inputs, side = on_meta(), [], 192, 28
    for name, block in model.inceptions.items():
        side = {"4a": 14, "5a": 7}.get(name, side)
        x = torch.empty(1, inputs, side, side, device="meta")
        found.append(round(multiply_adds(block, x) / 1e6, 1))
        inputs = block.outputs
    assert found == MILLIONS


def test_stem_and_pools_round_up() -> None:
    model = on_meta()
    shapes = shapes_of(model)
    sides = [shapes[f"stem.{layer}"] for layer in range(7)]
    #        conv 7x7/2  pool      norm      conv 1x1  conv 3x3   norm       pool
    assert sides == [(64, 112), (64, 56), (64, 56), (64, 56), (192, 56), (192, 56), (192, 28)]
    assert [shapes[f"inceptions.{name}"][1] for name in ("3b", "4a", "5a")] == [28, 14, 7]
    kernels = [c for c in model.stem.modules() if isinstance(c, nn.Conv2d)]
    assert [c.weight.numel() for c in kernels] == [9_408, 4_096, 110_592]  # 112.0 K the last two


@pytest.mark.parametrize(
    ("arguments", "parameters", "evaluated", "trained"),
    [
        ({"aux": False}, 6_998_552, 1_582_671_872, 1_582_671_872),
        ({}, 13_378_280, 1_582_671_872, 1_591_044_096),
        # Batch norm without convolutions' biases has 7,005,832 and 13,385,816; ours keeps them.
        ({"aux": False, "batch_norm": True}, 7_005_832 + 7_280, 1_582_671_872, 1_582_671_872),
        ({"batch_norm": True}, 13_385_816 + 7_280 + 2 * 128, 1_582_671_872, 1_591_044_096),
    ],
)
def test_parameters_and_multiply_adds(
    arguments: dict[str, Any], parameters: int, evaluated: int, trained: int
) -> None:
    model = on_meta(**arguments)
    assert count(model) == parameters
    assert multiply_adds(model.eval(), image()) == evaluated
    assert multiply_adds(model.train(), image()) == trained


def test_auxiliary_heads() -> None:
    heads = on_meta().heads
    assert {name: count(head) for name, head in heads.items()} == {"4a": 3_188_840, "4d": 3_190_888}
    assert [head.dropout.p for head in heads.values()] == [0.7, 0.7]
    assert on_meta().dropout.p == 0.4
    # The paper's 5x5 windows every 3 pixels, of a map whose every pixel is its column's number.
    head = AuxiliaryHead(1, 3, batch_norm=False)
    seen: list[Tensor] = []
    head.conv.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    head(torch.arange(14.0).expand(1, 1, 14, 14))
    assert seen[0].shape == (1, 1, 4, 4)
    assert seen[0][0, 0, 0].tolist() == [2, 5, 8, 11]
    torch.testing.assert_close(seen[0], nn.AvgPool2d(5, 3)(torch.arange(14.0).expand(1, 1, 14, 14)))
    for side in (4, 5, 8, 12, 16, 21):
        head(torch.zeros(1, 1, side, side + 3))
        assert seen[-1].shape == (1, 1, 4, 4)


def test_what_reduction_saves() -> None:
    """Without the 1x1 convolutions the modules pass on more channels and cost far more."""
    reduced, naive = on_meta(aux=False), on_meta(aux=False, inception="naive")
    first = naive.inceptions["3a"]
    by_hand = 192 * (64 + 9 * 128 + 25 * 32)  # straight into 1x1, 3x3 and 5x5
    assert weights(first) == by_hand
    assert first.outputs == 64 + 128 + 32 + 192  # and the pooling as it is
    costs = [multiply_adds(model, image()) for model in (reduced, naive)]
    assert costs == [1_582_671_872, 12_568_061_056]
    assert count(naive) == 97_526_008
    x = torch.empty(1, 192, 28, 28, device="meta")
    assert multiply_adds(first, x) == by_hand * 28 * 28
    assert on_meta(inception="naive").train()(image())[2].shape == (1, 1000)


def test_tuple_only_in_training() -> None:
    model = on_meta(num_classes=7)
    outputs = model.train()(image())
    assert isinstance(outputs, tuple)
    assert [logits.shape for logits in outputs] == [(1, 7)] * 3
    assert model.aux_heads == 2
    assert isinstance(model.eval()(image()), Tensor)
    plain = on_meta(aux=False)
    assert isinstance(plain.train()(image()), Tensor)
    assert plain.aux_heads == 0


def test_response_norm_is_alexnets() -> None:
    """b_i = a_i / (2 + 1e-4 * sum of a_j^2 over five channels around i) ^ 0.75."""
    torch.manual_seed(0)
    a = 100 * torch.randn(2, 9, 3, 4, dtype=torch.float64)
    expected = torch.empty_like(a)
    for i in range(9):
        squares = a[:, max(0, i - 2) : min(9, i + 3)].square().sum(dim=1)
        expected[:, i] = a[:, i] / (2 + 1e-4 * squares) ** 0.75
    torch.testing.assert_close(ResponseNorm()(a.float()), expected.float())
    torchs = nn.LocalResponseNorm(5, alpha=5e-4, k=2.0)  # which divides alpha by the 5
    torch.testing.assert_close(ResponseNorm()(a.float()), torchs(a.float()))
    large = ResponseNorm()(torch.full((1, 5, 1, 1), 3e4, dtype=torch.float16))
    assert large.isfinite().all()  # its squares are beyond fp16
    assert (large > 0).all()


def test_small_stem(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    shapes = shapes_of(on_meta(image_size=32).train(), 32)
    assert [shapes[f"inceptions.{name}"][1] for name in ("3a", "4a", "5a")] == [16, 8, 4]
    assert "model.stem=imagenet" in caplog.text
    caplog.clear()
    assert on_meta(image_size=65).stem[0][0].kernel_size == (7, 7)
    assert on_meta(image_size=64, stem="imagenet").stem[0][0].kernel_size == (7, 7)
    assert on_meta(image_size=224, stem="small").stem[0][0].kernel_size == (3, 3)
    assert not caplog.text


@pytest.mark.parametrize(
    ("stem", "side"), [("small", 16), ("small", 31), ("imagenet", 64), ("imagenet", 299)]
)
def test_every_size_from_the_least_on(stem: str, side: int) -> None:
    model = on_meta(stem=stem, image_size=side, num_classes=3).train()
    assert [logits.shape for logits in model(image(side))] == [(1, 3)] * 3


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        ({"stem": "tiny"}, r"model\.stem=tiny; choose from auto, imagenet, small"),
        ({"inception": "wide"}, r"model\.inception=wide; choose from reduced, naive"),
        ({"image_size": 15}, r"15 px are too small.*model\.input='min 16'"),
        ({"image_size": 63, "stem": "imagenet"}, r"63 px are too small.*model\.input='min 64'"),
    ],
)
def test_refusals(bad: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        GoogLeNet(**bad)


def test_images_tell_at_the_start() -> None:
    """Deep without batch norm: an image's traces must not be lost on their way to the logits."""
    torch.manual_seed(0)
    model = GoogLeNet(num_classes=4, image_size=32, aux=False).eval()
    with torch.no_grad():
        logits = model(torch.randn(8, 3, 32, 32))
    assert logits.std(dim=0).mean() > 0.01
    assert logits.abs().max() < 5


@pytest.mark.parametrize("batch_norm", [False, True])
def test_bf16_and_state_dict(batch_norm: bool) -> None:
    torch.manual_seed(0)
    model = GoogLeNet(num_classes=3, image_size=32, batch_norm=batch_norm)
    again = GoogLeNet(num_classes=3, image_size=32, batch_norm=batch_norm)
    again.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), again.eval()(images))
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model.train()(images)
    assert all(logits.isfinite().all() for logits in outputs)
