"""The moving average by hand: what is averaged, what is copied, what is evaluated."""

import pytest
import torch
from torch import nn

from cvtrain.engine.ema import Ema


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


@torch.no_grad()
def move(model: nn.Module, to: float) -> None:
    for parameter in model.parameters():
        parameter.fill_(to)


def test_the_average_by_hand() -> None:
    model = network()
    ema, expected = Ema(model, 0.9), None
    for value in (1.0, 3.0, -2.0, 5.0):
        move(model, value)
        ema.update()
        # It starts at the weights after the first step, not at the random ones before.
        expected = value if expected is None else 0.9 * expected + 0.1 * value
        for parameter in ema.model.parameters():
            torch.testing.assert_close(parameter, torch.full_like(parameter, expected))
    assert all((parameter == 5.0).all() for parameter in model.parameters())


def test_batch_norm_statistics_are_the_networks_own() -> None:
    """Averaged weights see nearly the features that these describe."""
    model = network()
    ema = Ema(model, 0.99)
    for _ in range(3):
        model(torch.randn(16, 2) + 5)
        ema.update()
    for name, buffer in model.named_buffers():
        assert torch.equal(dict(ema.model.named_buffers())[name], buffer), name


def test_off_is_the_network_itself() -> None:
    model = network()
    ema = Ema(model, None)
    ema.update()
    assert ema.model is model
    assert ema.state_dict() is None
    ema.load_state_dict(None)


def test_it_is_no_part_of_the_network() -> None:
    model = network()
    ema = Ema(model, 0.5)
    assert ema.model is not model
    ema.update()
    move(model, 7.0)
    assert not any((parameter == 7.0).any() for parameter in ema.model.parameters())


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_it_goes_on_from_its_state(decay: float) -> None:
    model, twin = network(), network()
    whole, first, second = Ema(model, decay), Ema(model, decay), Ema(twin, decay)
    for value in (1.0, 2.0):
        move(model, value)
        whole.update()
        first.update()
    second.load_state_dict(first.state_dict())
    for ema, source in ((whole, model), (second, twin)):
        move(source, 4.0)
        ema.update()
    for one, two in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, two)
