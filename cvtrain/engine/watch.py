"""Stops a run at the first loss or gradient that is not finite, without waiting for the device."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cvtrain.errors import NonFiniteError


@dataclass
class _Flag:
    finite: Tensor  # bool scalar, on the host
    copied: Any  # a CUDA event, or None where the flag is already there
    report: Callable[[], Exception]


class FiniteWatch:
    """On the CPU a step is checked before its update. On CUDA its flag is copied back while the
    next step runs, and read then; `check` before a save makes sure that nothing bad is written.
    """

    def __init__(self) -> None:
        self._pending: _Flag | None = None

    def step(self, finite: Tensor, report: Callable[[], Exception]) -> None:
        """`finite` is a bool scalar on the device; `report` makes the error. Raises it."""
        self.check()
        if finite.device.type != "cuda":
            self._pending = _Flag(finite, None, report)
            self.check()
            return
        host = torch.empty((), dtype=torch.bool, pin_memory=True)
        host.copy_(finite, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._pending = _Flag(host, copied, report)

    def check(self) -> None:
        flag, self._pending = self._pending, None
        if flag is None:
            return
        if flag.copied is not None:
            flag.copied.synchronize()
        if not flag.finite.item():
            raise flag.report()


def non_finite_error(
    values: dict[str, float], *, step: int, samples: list[str], saved: Path | None
) -> NonFiniteError:
    """The figures of the step, the samples behind them, and what is there to go back to."""
    figures = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
    more = f" and {len(samples) - 8} more" if len(samples) > 8 else ""
    names = f", samples {' '.join(samples[:8])}{more}" if samples else ""
    return NonFiniteError(
        f"not finite: {figures}",
        f"step {step}{names}",
        "lower optimizer.lr, type trainer.clip_norm=1, or look at the samples; "
        + (f"the last good checkpoint is {saved}" if saved else "nothing was saved yet"),
    )


def non_finite_tensor(state: Any, name: str = "") -> str | None:
    """The path of the first tensor in a nested state that is not finite."""
    if isinstance(state, Tensor):
        return None if not state.is_floating_point() or state.isfinite().all() else name
    items = state.items() if isinstance(state, dict) else enumerate(state)
    nested = ((key, value) for key, value in items if isinstance(value, dict | list | Tensor))
    found = (
        non_finite_tensor(value, f"{name}.{key}" if name else str(key)) for key, value in nested
    )
    return next(filter(None, found), None)
