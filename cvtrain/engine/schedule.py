"""Learning-rate schedules as pure functions of the step.

torch's own schedulers keep the current rate in their state, so that a resumed run silently goes on
with the old rates whatever the new config says. Here the rate of a step is computed from the config
and the step alone; only the plateau schedule, which depends on what was measured, has a state.
"""

import bisect
import math
from typing import Any

from torch.optim import Optimizer


class Schedule:
    """`factor(step)` times each group's own rate, times the warm-up; times `after_head` too, once
    the head was trained alone for `head_first` steps. Steps are optimizer steps.
    """

    def __init__(
        self,
        *,
        warmup: int = 0,
        warmup_from: float = 0.0,
        warmup_shape: str = "linear",
        head_first: int = 0,
        after_head: float = 1.0,
    ) -> None:
        self.warmup, self.warmup_from, self.warmup_shape = warmup, warmup_from, warmup_shape
        self.head_first, self.after_head = head_first, after_head

    def factor(self, step: int) -> float:
        raise NotImplementedError

    def apply(self, optimizer: Optimizer, step: int) -> None:
        """Set the rate of every parameter group for the step about to be taken."""
        factor = self.factor(step) * self.warmup_factor(step) * self.phase_factor(step)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def warmup_factor(self, step: int) -> float:
        if step >= self.warmup:
            return 1.0
        if self.warmup_shape == "constant":
            return self.warmup_from
        # The first step already moves: (step + 1) / (warmup + 1) of the way up.
        return self.warmup_from + (1 - self.warmup_from) * (step + 1) / (self.warmup + 1)

    def phase_factor(self, step: int) -> float:
        return 1.0 if step < self.head_first else self.after_head

    def observe(self, value: float) -> None:
        """A validation figure, lower is better."""

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        assert not state


class ConstantLR(Schedule):
    def factor(self, step: int) -> float:
        return 1.0


class StepLR(Schedule):
    """gamma ** (step // step_size)."""

    def __init__(self, *, step_size: int, gamma: float = 0.1, **warmup: Any) -> None:
        super().__init__(**warmup)
        self.step_size, self.gamma = max(1, step_size), gamma

    def factor(self, step: int) -> float:
        return self.gamma ** (step // self.step_size)


class MultiStepLR(Schedule):
    """gamma ** (milestones passed)."""

    def __init__(self, *, milestones: list[int], gamma: float = 0.1, **warmup: Any) -> None:
        super().__init__(**warmup)
        self.milestones, self.gamma = sorted(milestones), gamma

    def factor(self, step: int) -> float:
        return self.gamma ** bisect.bisect_right(self.milestones, step)


class ExponentialLR(Schedule):
    """gamma ** (step / every), smooth within an epoch."""

    def __init__(self, *, gamma: float, every: int, **warmup: Any) -> None:
        super().__init__(**warmup)
        self.gamma, self.every = gamma, max(1, every)

    def factor(self, step: int) -> float:
        return self.gamma ** (step / self.every)


class CosineLR(Schedule):
    """Half a cosine from 1 to eta_min (a part of the rate) over T_max, then eta_min."""

    def __init__(self, *, T_max: int, eta_min: float = 0.0, **warmup: Any) -> None:
        super().__init__(**warmup)
        self.T_max, self.eta_min = max(1, T_max), eta_min

    def factor(self, step: int) -> float:
        done = min(1.0, step / self.T_max)
        return self.eta_min + (1 - self.eta_min) * (1 + math.cos(math.pi * done)) / 2


class PolyLR(Schedule):
    """(1 - step/total) ** power."""

    def __init__(self, *, total: int, power: float = 1.0, **warmup: Any) -> None:
        super().__init__(**warmup)
        self.total, self.power = max(1, total), power

    def factor(self, step: int) -> float:
        return max(0.0, 1 - step / self.total) ** self.power


class PresetLR(Schedule):
    """One rate per pass of `every` steps, as LeCun et al. 1998 lists them; the last one stays.

    The rates stand in place of the optimizer's own `lr`.
    """

    def __init__(self, *, lrs: list[float], every: int, **warmup: Any) -> None:
        super().__init__(**warmup)
        self.lrs, self.every = lrs, max(1, every)

    def apply(self, optimizer: Optimizer, step: int) -> None:
        rate = self.lrs[min(step // self.every, len(self.lrs) - 1)]
        for group in optimizer.param_groups:
            group["lr"] = rate * self.warmup_factor(step) * self.phase_factor(step)


class PlateauLR(Schedule):
    """Times `factor` when the validation figure did not improve for more than `patience` times."""

    def __init__(
        self,
        *,
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        min_factor: float = 0.0,
        **warmup: Any,
    ) -> None:
        super().__init__(**warmup)
        self.drop, self.patience = factor, patience
        self.threshold, self.min_factor = threshold, min_factor
        self.state = {"factor": 1.0, "best": math.inf, "waited": 0.0}

    def factor(self, step: int) -> float:
        return self.state["factor"]

    def observe(self, value: float) -> None:
        state = self.state
        best = state["best"]
        if not math.isfinite(best) or value < best - self.threshold * abs(best):
            state.update(best=value, waited=0.0)
            return
        state["waited"] += 1
        if state["waited"] > self.patience:
            state.update(factor=max(self.min_factor, state["factor"] * self.drop), waited=0.0)

    def state_dict(self) -> dict[str, float]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.state = dict(state)
