"""Every schedule against torch's scheduler of the same name, stepped as a user would."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD, Optimizer, lr_scheduler

from cvtrain.engine.schedule import (
    ConstantLR,
    CosineLR,
    ExponentialLR,
    MultiStepLR,
    PlateauLR,
    PolyLR,
    PresetLR,
    Schedule,
    StepLR,
)

RATES = (0.4, 0.03)  # two groups: a schedule keeps their ratio


def optimizer(*rates: float) -> Optimizer:
    made = SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates])
    for group in made.param_groups:
        group["initial_lr"] = group["lr"]  # as build.py does
    return made


def ours(schedule: Schedule, steps: int, *rates: float) -> list[list[float]]:
    made, seen = optimizer(*rates), []
    for step in range(steps):
        schedule.apply(made, step)
        seen.append([group["lr"] for group in made.param_groups])
    return seen


def torchs(make: Callable[[Optimizer], Any], steps: int, *rates: float) -> list[list[float]]:
    made, seen = optimizer(*rates), []
    scheduler = make(made)
    for _ in range(steps):
        seen.append([group["lr"] for group in made.param_groups])
        made.step()
        scheduler.step()
    return seen


def close(left: list[list[float]], right: list[list[float]]) -> None:
    for step, (one, two) in enumerate(zip(left, right, strict=True)):
        assert one == pytest.approx(two, rel=1e-9, abs=1e-12), step


@pytest.mark.parametrize(
    ("schedule", "make", "steps"),
    [
        (ConstantLR(), lambda o: lr_scheduler.ConstantLR(o, factor=1), 20),
        (StepLR(step_size=7, gamma=0.3), lambda o: lr_scheduler.StepLR(o, 7, 0.3), 50),
        (StepLR(step_size=1), lambda o: lr_scheduler.StepLR(o, 1), 10),
        (
            MultiStepLR(milestones=[30, 5, 12], gamma=0.2),
            lambda o: lr_scheduler.MultiStepLR(o, [5, 12, 30], 0.2),
            50,
        ),
        (MultiStepLR(milestones=[4, 4]), lambda o: lr_scheduler.MultiStepLR(o, [4, 4]), 9),
        (ExponentialLR(gamma=0.9, every=1), lambda o: lr_scheduler.ExponentialLR(o, 0.9), 40),
        (CosineLR(T_max=33), lambda o: lr_scheduler.CosineAnnealingLR(o, 33), 34),
        (PolyLR(total=25, power=2.0), lambda o: lr_scheduler.PolynomialLR(o, 25, 2.0), 40),
        (PolyLR(total=25), lambda o: lr_scheduler.PolynomialLR(o, 25, 1.0), 40),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Schedule) else "",
)
def test_against_torch(schedule: Schedule, make: Callable, steps: int) -> None:
    close(ours(schedule, steps, *RATES), torchs(make, steps, *RATES))


def test_cosine_to_a_floor() -> None:
    # torch's eta_min is a rate, ours a part of the rate, so that every group has its own.
    schedule = CosineLR(T_max=20, eta_min=0.1)
    for rate in RATES:
        expected = torchs(
            lambda o, r=rate: lr_scheduler.CosineAnnealingLR(o, 20, 0.1 * r), 21, rate
        )
        close(ours(schedule, 21, rate), expected)
    # Beyond T_max torch's rate climbs again; a run that goes on stays at the floor.
    assert ours(schedule, 40, 0.4)[-1] == [pytest.approx(0.04)]


def test_exponential_is_torchs_at_every_epoch() -> None:
    mine = ours(ExponentialLR(gamma=0.5, every=10), 31, 0.4)
    epochs = torchs(lambda o: lr_scheduler.ExponentialLR(o, 0.5), 4, 0.4)
    close(mine[::10], epochs)
    assert mine[5] == [pytest.approx(0.4 * math.sqrt(0.5))]  # smooth in between


def test_preset_is_the_list() -> None:
    # LeCun et al. 1998, section III-A, over passes of 3 steps.
    rates = [0.0005, 0.0002, 0.0001, 0.00005, 0.00001]
    seen = ours(PresetLR(lrs=rates, every=3), 18, *RATES)
    assert [group[0] for group in seen] == [r for r in rates for _ in range(3)] + [rates[-1]] * 3


# Warm-up


def test_linear_warmup_by_hand() -> None:
    seen = ours(ConstantLR(warmup=4), 7, 1.0)
    assert [rate for (rate,) in seen] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1])
    seen = ours(ConstantLR(warmup=3, warmup_from=0.2), 5, 0.5)
    assert [rate for (rate,) in seen] == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.5])


def test_constant_warmup_by_hand() -> None:
    # He et al. 2015, section 4.2: 0.01 for the first steps, then 0.1.
    seen = ours(ConstantLR(warmup=3, warmup_from=0.1, warmup_shape="constant"), 5, 0.1)
    assert [rate for (rate,) in seen] == pytest.approx([0.01, 0.01, 0.01, 0.1, 0.1])


@pytest.mark.parametrize(
    "kind",
    [
        lambda **w: StepLR(step_size=5, **w),
        lambda **w: MultiStepLR(milestones=[6, 12], **w),
        lambda **w: CosineLR(T_max=20, **w),
        lambda **w: PolyLR(total=20, **w),
        lambda **w: ExponentialLR(gamma=0.9, every=2, **w),
        lambda **w: PresetLR(lrs=[0.3, 0.1], every=10, **w),
        lambda **w: PlateauLR(**w),
    ],
)
def test_warmup_multiplies_and_delays_nothing(kind: Callable[..., Schedule]) -> None:
    plain, warmed = ours(kind(), 20, *RATES), ours(kind(warmup=4), 20, *RATES)
    for step in range(20):
        part = min(1, (step + 1) / 5)
        assert warmed[step] == pytest.approx([rate * part for rate in plain[step]])


# Plateau


def plateau(values: list[float], *, higher_is_better: bool = False, **options: Any) -> tuple:
    schedule, rates = PlateauLR(**options), []
    made = optimizer(1.0)
    mode = "max" if higher_is_better else "min"
    least = options.pop("min_factor", 0.0)
    # eps is where torch stops to bother; ours has no such limit.
    torchs = lr_scheduler.ReduceLROnPlateau(made, mode, min_lr=least, eps=0, **options)
    expected = []
    mine = optimizer(1.0)
    for step, value in enumerate(values):
        schedule.observe(-value if higher_is_better else value)  # as the trainer does
        torchs.step(value)
        schedule.apply(mine, step)
        rates.append(mine.param_groups[0]["lr"])
        expected.append(made.param_groups[0]["lr"])
    return rates, expected


def walk(seed: int, *, up: bool) -> list[float]:
    """A figure that improves, more and more slowly, under noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = 0.1 * torch.randn(200, generator=generator)
    trend = 2 / (1 + torch.arange(200) / 10)
    return ((10 - trend if up else trend + 1) + noise).tolist()


@pytest.mark.parametrize("higher_is_better", [False, True])
@pytest.mark.parametrize("threshold", [1e-4, 0.01, 0.1])
@pytest.mark.parametrize("patience", [0, 3])
def test_plateau_against_torch(patience: int, threshold: float, higher_is_better: bool) -> None:
    for seed in range(5):
        rates, expected = plateau(
            walk(seed, up=higher_is_better),
            higher_is_better=higher_is_better,
            factor=0.7,
            patience=patience,
            threshold=threshold,
        )
        assert rates == pytest.approx(expected, rel=1e-9)
        assert len(set(rates)) > 3


def test_plateau_floor() -> None:
    rates, expected = plateau([1.0] * 30, factor=0.5, patience=1, min_factor=0.1)
    assert rates == pytest.approx(expected)
    assert rates[-1] == 0.1


def test_plateau_goes_on_from_its_state() -> None:
    values = walk(3, up=False)
    whole, first, second = (PlateauLR(factor=0.5, patience=2) for _ in range(3))
    for value in values:
        whole.observe(value)
    for value in values[:71]:
        first.observe(value)
    second.load_state_dict(first.state_dict())
    for value in values[71:]:
        second.observe(value)
    assert second.state_dict() == whole.state_dict()
    assert second.factor(0) == whole.factor(0) < 1


def test_the_rate_is_a_function_of_the_step_alone() -> None:
    """So that a resumed run, or one with a new rate, has the rates of its config."""
    made, schedule = optimizer(0.4), StepLR(step_size=3, gamma=0.1)
    for step in (10, 2, 7, 2):
        schedule.apply(made, step)
        assert made.param_groups[0]["lr"] == pytest.approx(0.4 * 0.1 ** (step // 3))
    assert schedule.state_dict() == {}
