"""AlexNet, in one piece and as two towers, against the paper's table and formula."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode

from cvtrain.errors import ConfigError, MachineError
from cvtrain.models.alexnet import AlexNet, ResponseNorm, Tower

# Fig. 2 and section 3.5: maps, weights, biases, multiply-adds of one 227x227 image
TABLE = {
    "conv1": ((96, 55, 55), 34_848, 96, 105_415_200),
    "norm1": ((96, 55, 55), 0, 0, 0),
    "pool1": ((96, 27, 27), 0, 0, 0),
    "conv2": ((256, 27, 27), 307_200, 256, 223_948_800),
    "norm2": ((256, 27, 27), 0, 0, 0),
    "pool2": ((256, 13, 13), 0, 0, 0),
    "conv3": ((384, 13, 13), 884_736, 384, 149_520_384),
    "conv4": ((384, 13, 13), 663_552, 384, 112_140_288),
    "conv5": ((256, 13, 13), 442_368, 256, 74_760_192),
    "pool5": ((256, 6, 6), 0, 0, 0),
    "fc6": ((4096,), 37_748_736, 4_096, 37_748_736),
    "fc7": ((4096,), 16_777_216, 4_096, 16_777_216),
    "fc8": ((1000,), 4_096_000, 1_000, 4_096_000),
}
TRAINED = [name for name, (_, weights, _, _) in TABLE.items() if weights]
ONES = ("conv2", "conv4", "conv5", "fc6", "fc7")
CPUS = ["cpu", "cpu"]


def on_meta(**arguments: object) -> AlexNet:
    with torch.device("meta"):
        return AlexNet(**arguments)


def multiply_adds(model: AlexNet) -> FlopCounterMode:
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 227, 227, device="meta"))
    return counter


def test_every_layer_is_the_papers() -> None:
    model, shapes = on_meta(), {}
    for name in TABLE:
        model.get_submodule(name).register_forward_hook(
            lambda _layer, _inputs, output, name=name: shapes.update({name: tuple(output.shape)})
        )
    flops = multiply_adds(model).get_flop_counts()
    for name, (shape, weights, biases, cost) in TABLE.items():
        sizes = {key: p.numel() for key, p in model.get_submodule(name).named_parameters()}
        assert (shapes[name], sizes) == (
            (1, *shape),
            {"weight": weights, "bias": biases} if weights else {},
        )
        assert sum(flops.get(f"AlexNet.{name}", {}).values()) == 2 * cost, name
    assert list(shapes) == list(TABLE)  # in this order


@pytest.mark.parametrize("devices", [None, CPUS])
def test_totals(devices: list[str] | None) -> None:
    model = on_meta(devices=devices)
    assert sum(parameter.numel() for parameter in model.parameters()) == 60_965_224
    assert multiply_adds(model).get_total_flops() / 2 == 724_406_816


@pytest.mark.parametrize("groups", [1, 2])
def test_response_norm_is_the_papers_formula(groups: int) -> None:
    torch.manual_seed(0)
    a = 40 * torch.randn(2, 12, 3, 2)  # so that the sum counts beside k
    expected = torch.empty_like(a)
    per_group = 12 // groups
    for i in range(12):
        first = i // per_group * per_group  # the maps of one tower
        nearby = range(max(first, i - 2), min(first + per_group - 1, i + 2) + 1)
        total = sum(a[:, j] ** 2 for j in nearby)
        expected[:, i] = a[:, i] / (2 + 1e-4 * total) ** 0.75
    torch.testing.assert_close(ResponseNorm(groups=groups)(a), expected)
    assert ((a / 2**0.75 - expected).abs() / expected.abs()).max() > 0.1


def test_response_norm_does_not_overflow() -> None:
    x = torch.full((1, 4, 1, 1), 300.0, dtype=torch.float16)  # its square is infinite in fp16
    normed = ResponseNorm()(x)
    assert normed.dtype == torch.float16
    # The inner maps have four neighbours in reach, themselves counted; the outer ones three.
    expected = [300 / (2 + 1e-4 * count * 300**2) ** 0.75 for count in (3, 4, 4, 3)]
    assert normed.flatten().tolist() == pytest.approx(expected, rel=1e-3)


@pytest.fixture(scope="module")
def whole() -> AlexNet:
    """Four classes; with biases that differ, so that no half can be taken for the other."""
    torch.manual_seed(0)
    model = AlexNet(num_classes=4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-1, 1)
    return model


@pytest.fixture(scope="module")
def halves(whole: AlexNet) -> AlexNet:
    model = AlexNet(num_classes=4, devices=CPUS)
    model.load_state_dict(whole.state_dict())
    return model


IMAGES = 60 * torch.randn(2, 3, 227, 227, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_two_towers_equal_one_piece(whole: AlexNet, halves: AlexNet) -> None:
    expected = whole.eval()(IMAGES)
    torch.testing.assert_close(halves.eval()(IMAGES), expected, atol=1e-6, rtol=1e-6)
    assert expected.std() > 0.01


def test_two_towers_learn_as_one_piece(whole: AlexNet, halves: AlexNet) -> None:
    """The same random numbers drop the same units, and the same gradients come back."""
    for model in (whole.train(), halves.train()):
        torch.manual_seed(2)
        nn.functional.cross_entropy(model(IMAGES), torch.tensor([1, 3])).backward()
    for name, parameter in whole.named_parameters():
        ours, expected = halves.get_parameter(name).grad, parameter.grad
        if not name.startswith("fc8"):
            ours = torch.cat([ours, halves.second.get_parameter(name).grad])
        scale = expected.abs().max()
        assert scale > 0, name
        assert (ours - expected).abs().max() < 1e-5 * scale, name
    for model in (whole, halves):
        model.zero_grad()


def test_one_state_dict_for_both_forms(whole: AlexNet, halves: AlexNet) -> None:
    expected, ours = whole.state_dict(), halves.state_dict()
    assert list(ours) == list(expected)
    assert list(expected) == [f"{name}.{kind}" for name in TRAINED for kind in ("weight", "bias")]
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    # As a part of a larger network (an average of the weights is one), and back.
    averaged = AveragedModel(halves)
    assert list(averaged.state_dict())[1:] == [f"module.{name}" for name in expected]
    averaged.load_state_dict({**averaged.state_dict(), "module.conv1.bias": torch.arange(96.0)})
    assert averaged.module.conv1.bias.tolist() == list(range(48))
    assert averaged.module.second.conv1.bias.tolist() == list(range(48, 96))
    with pytest.raises(RuntimeError, match=r"conv2\.weight"):
        halves.load_state_dict({n: t for n, t in expected.items() if n != "conv2.weight"})


def test_towers_are_halves_that_meet_at_conv3_and_after(halves: AlexNet) -> None:
    assert isinstance(halves.second, Tower)
    for tower in (halves, halves.second):
        assert {name: tower.get_submodule(name).weight.shape[:2] for name in TRAINED[:-1]} == {
            "conv1": (48, 3),
            "conv2": (128, 48),
            "conv3": (192, 256),
            "conv4": (192, 192),
            "conv5": (128, 192),
            "fc6": (2048, 9216),
            "fc7": (2048, 4096),
        }


def test_the_towers_stay_where_they_were_put() -> None:
    """The real moves of build.py; `meta` stands for a device that the towers are not on."""
    placed = AlexNet(num_classes=4, devices=CPUS)
    placed.devices = [torch.device("cpu"), torch.device("meta")]
    placed = placed.to("cpu").to(memory_format=torch.channels_last)
    assert {parameter.device.type for parameter in placed.second.parameters()} == {"meta"}
    first = [parameter for name, parameter in placed.named_parameters() if "second." not in name]
    assert {parameter.device.type for parameter in first} == {"cpu"}
    assert placed.conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_initial_weights_of_a_seed(whole: AlexNet) -> None:
    """The paper's, section 5; of a seed, the same in both forms."""
    torch.manual_seed(0)
    state = AlexNet(num_classes=4, devices=CPUS).state_dict()
    for name in TRAINED:
        weight = state[f"{name}.weight"]
        assert torch.equal(weight, whole.get_parameter(f"{name}.weight")), name
        assert weight.std().item() == pytest.approx(0.01, rel=0.02), name
        assert abs(weight.mean().item()) < 4 * 0.01 / weight.numel() ** 0.5, name
        assert (state[f"{name}.bias"] == float(name in ONES)).all(), name


@torch.no_grad()
def test_dropout_is_on_the_outputs_of_fc6_and_fc7(whole: AlexNet) -> None:
    """Section 4.2: half of the units are 0, the others as they are; in testing all are halved."""
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        layer.register_forward_hook(
            lambda _layer, inputs, output, name=name: seen.update(
                {f"into {name}": inputs[0], name: output}
            )
        )
        for name in ("fc6", "fc7", "fc8")
        for layer in [whole.get_submodule(name)]
    ]
    for training in (True, False):
        whole.train(training)(IMAGES)
        for name, following in (("fc6", "fc7"), ("fc7", "fc8")):
            units, passed = seen[name].relu(), seen[f"into {following}"]
            stays = passed > 0
            assert torch.equal(passed[stays], units[stays] * (1 if training else 0.5))
            share = stays.sum() / (units > 0).sum()
            assert share.item() == pytest.approx(0.5 if training else 1, abs=0.05)
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def test_bf16(whole: AlexNet) -> None:
    expected = whole.eval()(IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        logits = whole(IMAGES)
    assert logits.isfinite().all()
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    "bad", [["cpu"], ["cpu"] * 3, ["cpu", "gpu"], "cpu"], ids=["one", "three", "gpu", "word"]
)
def test_what_is_no_two_devices(bad: list[str] | str) -> None:
    with pytest.raises(ConfigError, match=r"model\.devices=.*null"):
        on_meta(devices=bad)


def test_a_gpu_that_is_not_there() -> None:
    here = torch.cuda.device_count()
    with pytest.raises(MachineError, match=rf"cuda:{here} was asked for, {here} GPUs") as caught:
        on_meta(devices=["cpu", f"cuda:{here}"])
    assert (caught.value.name, caught.value.code) == ("NO-CUDA", 6)


def test_another_image_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="fixed 227"):
        on_meta(image_size=224)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 1, reason="needs CUDA")
def test_towers_on_two_devices(whole: AlexNet) -> None:
    """Two GPUs; with one, a GPU and the CPU."""
    places = ["cuda:0", "cuda:1" if torch.cuda.device_count() > 1 else "cpu"]
    towers = AlexNet(num_classes=4, devices=places).to("cuda:0").eval()
    towers.load_state_dict(whole.state_dict())
    assert [str(t.conv1.weight.device) for t in (towers, towers.second)] == places
    images = IMAGES.to("cuda:0")
    logits = towers(images)
    assert logits.device == images.device
    with torch.no_grad():
        expected = whole.eval()(IMAGES)
    torch.testing.assert_close(logits.cpu(), expected, atol=1e-3, rtol=1e-2)
    logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in towers.parameters())
