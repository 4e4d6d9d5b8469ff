"""LeNet-5, of today and of 1998, against the paper's counts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cvtrain.errors import ConfigError
from cvtrain.models.cnn import CNN
from cvtrain.models.lenet import LeNet5
from cvtrain.models.lenet_1998 import C3_LINKS, DIGITS, LeNet5_1998, SparseConv, Subsampling, squash
from cvtrain.models.mlp import MLP

SHAPES = {
    "c1": (6, 28, 28),
    "s2": (6, 14, 14),
    "c3": (16, 10, 10),
    "s4": (16, 5, 5),
    "c5": (120, 1, 1),
    "f6": (84,),
    "output": (10,),
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("network", [LeNet5, LeNet5_1998])
def test_shape_of_every_layer(network: type[nn.Module]) -> None:
    model, shapes = network(), {}
    for name, layer in model.named_children():
        layer.register_forward_hook(
            lambda _layer, _inputs, output, name=name: shapes.update({name: tuple(output.shape)})
        )
    model(torch.zeros(3, 1, 32, 32))
    assert shapes == {name: (3, *shape) for name, shape in SHAPES.items()}


def test_modern_counts() -> None:
    model = LeNet5()
    counts = [count(layer) for layer in model.children()]
    assert counts == [156, 0, 2_416, 0, 48_120, 10_164, 850]
    assert count(model) == 61_706


def test_modern_multiply_adds() -> None:
    with torch.device("meta"):
        model, image = LeNet5(), torch.empty(1, 1, 32, 32)
    with FlopCounterMode(display=False) as counter:
        model(image)
    assert counter.get_total_flops() / 2 == 416_520


def test_1998_counts() -> None:
    model = LeNet5_1998()
    counts = [count(layer) for layer in model.children()]
    assert counts == [156, 12, 1_516, 32, 48_120, 10_164, 0]
    assert count(model) == 60_000


def test_1998_connections() -> None:
    connections = LeNet5_1998().connections()
    assert list(connections.values()) == [122_304, 5_880, 151_600, 2_000, 48_120, 10_164, 840]
    assert sum(connections.values()) == 340_908


def test_c3_table() -> None:
    assert sum(len(links) for links in C3_LINKS) == 60
    assert [len(links) for links in C3_LINKS] == [3] * 6 + [4] * 9 + [6]
    assert len(set(C3_LINKS)) == 16
    for s2_map in range(6):
        assert sum(s2_map in links for links in C3_LINKS) == 10


@pytest.mark.parametrize("s2_map", range(6))
def test_c3_sees_only_its_links(s2_map: int) -> None:
    torch.manual_seed(0)  # a kernel that adds up to nothing would not be seen
    c3, x = SparseConv(C3_LINKS, in_maps=6), torch.randn(1, 6, 14, 14)
    changed = x.clone()
    changed[:, s2_map] += 1
    moved = (c3(changed) - c3(x)).abs().amax(dim=(0, 2, 3)) > 1e-4
    assert moved.tolist() == [s2_map in links for links in C3_LINKS]


def test_c3_equals_separate_convolutions() -> None:
    c3, x, first = SparseConv(C3_LINKS, in_maps=6), torch.randn(2, 6, 14, 14), 0
    for out_map, links in enumerate(C3_LINKS):
        kernels = c3.weight[first : first + len(links)]
        expected = F.conv2d(x[:, list(links)], kernels[None], c3.bias[out_map : out_map + 1])
        torch.testing.assert_close(c3(x)[:, out_map : out_map + 1], expected)
        first += len(links)


def test_subsampling_by_hand() -> None:
    layer = Subsampling(2)
    with torch.no_grad():
        layer.coefficient.copy_(torch.tensor([0.5, -1.0]))
        layer.bias.copy_(torch.tensor([0.25, 0.0]))
    x = torch.tensor([[1.0, 2.0], [3.0, -4.0]]).expand(1, 2, 2, 2)  # sums to 2
    expected = squash(torch.tensor([1.25, -2.0])).reshape(1, 2, 1, 1)
    torch.testing.assert_close(layer(x), expected)


def test_squash_keeps_one() -> None:
    # Appendix A chose the constants so that f(1) = 1 and f(-1) = -1.
    assert squash(torch.tensor([1.0, -1.0, 100.0])).tolist() == pytest.approx(
        [1, -1, 1.7159], abs=1e-4
    )


def test_1998_initial_weights() -> None:
    model = LeNet5_1998(in_channels=3)
    fan_ins = {"c1": 75, "s2": 4, "s4": 4, "c5": 400, "f6": 120}
    for name, fan_in in fan_ins.items():
        values = torch.cat([p.flatten() for p in model.get_submodule(name).parameters()])
        assert values.abs().max() <= 2.4 / fan_in
        assert values.abs().max() > 2.4 / fan_in / 2
    links = [len(links) for links in C3_LINKS for _ in links]
    largest = model.c3.weight.abs().amax(dim=(1, 2)) * 25 / 2.4 * torch.tensor(links)
    assert largest.max() <= 1 + 1e-6
    assert largest.min() > 0.5


def test_digit_bitmaps() -> None:
    assert len(DIGITS) == 12
    assert all(len(row) == 79 and set(row) == set(".# ") for row in DIGITS)
    centres = LeNet5_1998().output.centres
    assert centres.shape == (10, 84)
    different = (centres[:, None] != centres[None]).sum(dim=-1) + 84 * torch.eye(10)
    assert different.min() >= 10


@pytest.mark.parametrize("classes", [4, 10, 30])
def test_rbf_is_zero_at_its_centre(classes: int) -> None:
    rbf = LeNet5_1998(num_classes=classes).output
    assert set(rbf.centres.unique().tolist()) == {-1, 1}
    logits = rbf(rbf.centres)
    assert logits.shape == (classes, classes)
    assert (logits.diagonal() == 0).all()
    assert (logits + 100 * torch.eye(classes)).argmax(dim=1).tolist() == list(range(classes))
    # One flipped unit is at distance 2, squared 4.
    x = rbf.centres[:1].clone()
    x[0, 5] *= -1
    assert rbf(x)[0, 0] == -4
    # Codes are the same in every process, and the digits keep theirs whatever the class count.
    assert torch.equal(rbf.centres, LeNet5_1998(num_classes=60).output.centres[:classes])


def test_mlp_and_cnn_refuse_what_cannot_be() -> None:
    for bad in ({"hidden": [0]}, {"dropout": 1.0}):
        with pytest.raises(ConfigError, match=r"model\."):
            MLP(**bad)
    for bad in ({"widths": []}, {"widths": [8, 0]}, {"convs": 0}, {"dropout": -0.1}):
        with pytest.raises(ConfigError, match=r"model\."):
            CNN(**bad)


def test_mlp_count_and_cnn_on_small_images() -> None:
    assert count(MLP()) == 784 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10
    assert count(MLP(hidden=[])) == 7_850
    assert CNN(widths=[4] * 6)(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
