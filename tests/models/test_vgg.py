"""VGG, its six columns, against the paper's table, torchvision's names and torchvision's logits."""

import math

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cvtrain.errors import ConfigError
from cvtrain.models.alexnet import ResponseNorm
from cvtrain.models.vgg import VGG

# Parameters (with batch norm after each convolution), multiply-adds of one 224x224 image, layers
COUNTS = {
    "A": (132_863_336, 132_868_840, 7_609_090_048, 11),
    "A-LRN": (132_863_336, 132_868_840, 7_609_090_048, 11),
    "B": (133_047_848, 133_053_736, 11_308_466_176, 13),
    "C": (133_638_952, 133_647_400, 11_770_888_192, 16),
    "D": (138_357_544, 138_365_992, 15_470_264_320, 16),
    "E": (143_667_240, 143_678_248, 19_632_062_464, 19),
}
TORCHVISION = {"A": "vgg11", "B": "vgg13", "D": "vgg16", "E": "vgg19"}
# Table 1, column D: what comes out of each convolution (c) and pool (p) of a 224x224 image
LAYERS_OF_D = [
    *[("c", 64, 224), ("c", 64, 224), ("p", 64, 112)],
    *[("c", 128, 112), ("c", 128, 112), ("p", 128, 56)],
    *[("c", 256, 56), ("c", 256, 56), ("c", 256, 56), ("p", 256, 28)],
    *[("c", 512, 28), ("c", 512, 28), ("c", 512, 28), ("p", 512, 14)],
    *[("c", 512, 14), ("c", 512, 14), ("c", 512, 14), ("p", 512, 7)],
]


def on_meta(**arguments: object) -> VGG:
    with torch.device("meta"):
        return VGG(**arguments)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def run(model: nn.Module, *, image_size: int = 224) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """The layers in the order in which an image goes through them, and the shapes they give."""
    seen = []
    for layer in model.modules():
        if not list(layer.children()):
            layer.register_forward_hook(
                lambda layer, _inputs, output: seen.append((layer, tuple(output.shape)))
            )
    model(torch.empty(1, 3, image_size, image_size, device="meta"))
    return seen


@pytest.mark.parametrize("config", COUNTS)
def test_parameters_and_multiply_adds(config: str) -> None:
    plain, normed, multiply_adds, layers = COUNTS[config]
    model = on_meta(config=config)
    assert count(model) == plain
    assert count(on_meta(config=config, batch_norm="all")) == normed
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() / 2 == multiply_adds
    assert len([n for n, _ in model.named_parameters() if n.endswith("weight")]) == layers


def test_every_layer_of_d() -> None:
    seen = run(on_meta(config="D"))
    letters = {nn.Conv2d: "c", nn.MaxPool2d: "p"}
    maps = [(letters[type(m)], *shape[1:3]) for m, shape in seen if type(m) in letters]
    assert maps == LAYERS_OF_D
    assert [shape for m, shape in seen if isinstance(m, nn.Linear)] == [(1, 4096)] * 2 + [(1, 1000)]
    # Dropout comes after the first two of them.
    assert [type(m).__name__ for m, _ in seen[-7:]] == [
        *["Linear", "ReLU", "Dropout"] * 2,
        "Linear",
    ]


@pytest.mark.parametrize("config", COUNTS)
def test_kernels(config: str) -> None:
    kernels = [m.kernel_size[0] for m in on_meta(config=config).modules() if type(m) is nn.Conv2d]
    ones = {"C": [6, 9, 12]}  # the third convolution of its last three blocks
    assert [i for i, kernel in enumerate(kernels) if kernel == 1] == ones.get(config, [])
    assert set(kernels) <= {1, 3}


def test_where_normalisation_stands() -> None:
    def kinds(**arguments: object) -> list[str]:
        letters = {nn.Conv2d: "c", nn.BatchNorm2d: "b", ResponseNorm: "l", nn.MaxPool2d: "p"}
        seen = run(on_meta(**arguments))
        return "".join(letters.get(type(m), "") for m, _ in seen).split("p")[:-1]

    assert kinds(config="A") == ["c", "c", "cc", "cc", "cc"]
    assert kinds(config="A-LRN") == ["cl", "c", "cc", "cc", "cc"]
    assert kinds(config="A", batch_norm="all") == ["cb", "cb", "cbcb", "cbcb", "cbcb"]
    assert kinds(config="D", batch_norm="block") == ["ccb", "ccb", "cccb", "cccb", "cccb"]


@pytest.mark.parametrize("batch_norm", ["none", "all"])
@pytest.mark.parametrize("config", TORCHVISION)
def test_names_and_shapes_are_torchvisions(config: str, batch_norm: str) -> None:
    ours = on_meta(config=config, batch_norm=batch_norm).state_dict()
    theirs = torchvisions(config, batch_norm, num_classes=1000).state_dict()
    assert [(name, t.shape) for name, t in ours.items()] == [
        (name, t.shape) for name, t in theirs.items()
    ]


def torchvisions(config: str, batch_norm: str, *, num_classes: int) -> nn.Module:
    name = TORCHVISION[config] + ("_bn" if batch_norm == "all" else "")
    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, num_classes=num_classes)


@pytest.fixture(scope="module")
def classifier() -> dict[str, Tensor]:
    """The 120 million weights that all of them have, four classes; drawn once, shared by all."""
    with torch.device("meta"):
        shapes = VGG(num_classes=4).classifier.state_dict()
    generator = torch.Generator().manual_seed(0)
    return {f"classifier.{name}": random(like, generator) for name, like in shapes.items()}


def random(like: Tensor, generator: torch.Generator) -> Tensor:
    """Weights that keep a signal's size through ReLUs; biases and means around 0; positive rest."""
    if not like.is_floating_point():
        return torch.tensor(1)
    bound = math.sqrt(6 / like[0].numel()) if like.dim() > 1 else 0.3
    return torch.empty(like.shape).uniform_(-bound, bound, generator=generator)


@pytest.mark.parametrize("batch_norm", ["none", "all"])
@pytest.mark.parametrize("config", TORCHVISION)
@torch.no_grad()
def test_torchvisions_weights_give_torchvisions_logits(
    config: str, batch_norm: str, classifier: dict[str, Tensor]
) -> None:
    theirs = torchvisions(config, batch_norm, num_classes=4).eval()
    generator = torch.Generator().manual_seed(1)
    weights = dict(classifier)
    for name, like in theirs.state_dict().items():
        if name.startswith("features."):
            weights[name] = random(like, generator)
        if name.endswith("running_var") or (name.endswith("weight") and like.dim() == 1):
            weights[name] = weights[name].abs() + 0.8  # of batch norm
    theirs.load_state_dict(weights, assign=True)
    ours = on_meta(config=config, batch_norm=batch_norm, num_classes=4).eval()
    ours.load_state_dict(weights, assign=True)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    expected = theirs(images)
    scale = expected.abs().max()
    torch.testing.assert_close(ours(images) / scale, expected / scale, atol=1e-5, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 0.01 * scale  # the images do matter


def with_classifier(classifier: dict[str, Tensor], **arguments: object) -> VGG:
    """Our own initial features under the shared classifier."""
    model = on_meta(num_classes=4, **arguments)
    model.features.to_empty(device="cpu")
    for layer in model.features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
    model.classifier.load_state_dict(
        {name.removeprefix("classifier."): tensor for name, tensor in classifier.items()},
        assign=True,
    )
    return model


@pytest.mark.parametrize("arguments", [{"config": "A-LRN"}, {"batch_norm": "block"}], ids=str)
@pytest.mark.parametrize("size", [32, 50])
@torch.no_grad()
def test_bf16_and_sizes(
    arguments: dict[str, str], size: int, classifier: dict[str, Tensor]
) -> None:
    torch.manual_seed(0)
    model = with_classifier(classifier, **arguments)
    images = torch.randn(4, 3, size, size)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.train()(images)
    assert logits.shape == (4, 4)
    assert logits.isfinite().all()
    # What is saved gives the same network.
    again = on_meta(num_classes=4, **arguments).eval()
    again.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(again(images), model.eval()(images))


def test_initial_weights() -> None:
    """Glorot and Bengio 2010, equation 16: uniform, of variance 2 / (fan in + fan out)."""
    torch.manual_seed(0)
    for name, layer in VGG(config="A", num_classes=100, batch_norm="block").named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            outputs, inputs = layer.weight.shape[:2]
            field = layer.weight[0, 0].numel()
            bound = math.sqrt(6 / (field * (inputs + outputs)))
            assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03), name
            assert 0.99 * bound < layer.weight.max().item() <= bound, name
            assert (layer.bias == 0).all(), name
        elif isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()


@pytest.mark.parametrize(
    "bad", [{"config": "F"}, {"config": "d"}, {"batch_norm": "every"}, {"batch_norm": True}]
)
def test_what_the_paper_lacks_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"model\..*choose from"):
        on_meta(**bad)


def test_smaller_images_than_the_pools_can_halve() -> None:
    with pytest.raises(ConfigError, match="min 32"):
        on_meta(image_size=31)
    assert on_meta(image_size=32)(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 1000)
