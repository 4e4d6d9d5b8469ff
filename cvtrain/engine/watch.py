"""Stops a run at a loss or gradient that is not finite, without waiting for the device; or passes
over the step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cvtrain.config import OnNonfinite, Precision, TrainerConfig
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.plan import Position
from cvtrain.engine.window import Pairs
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


class Buffers:
    """A network's buffers as they are now, for a bad batch spoils batch norm's averages."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.saved = {name: buffer.clone() for name, buffer in model.named_buffers()}

    @torch.no_grad()
    def restore(self) -> None:
        for name, buffer in self.model.named_buffers():
            buffer.copy_(self.saved[name])


class Skips:
    """Whether a step that is not finite is passed over, and how many in a row may be."""

    def __init__(self, config: TrainerConfig) -> None:
        self.on = config.on_nonfinite is OnNonfinite.skip
        # Under fp16 a scale that is too high costs a step each time that it is halved.
        default = 20 if config.precision is Precision.fp16 else 3
        self.most = default if config.max_skips is None else config.max_skips

    def count(self, position: Position, error: NonFiniteError) -> str:
        """The line that says so. Raises the error after too many in a row."""
        position.skipped += 1
        position.skipped_in_a_row += 1
        row = f"{position.skipped_in_a_row} in a row"
        if position.skipped_in_a_row > self.most:
            raise NonFiniteError(f"{error.what}; {row} were skipped", error.where, error.fix)
        return f"warning: skipped, {row}: {error.what}; {error.where}"


def step_figures(
    batches: list[Any], figures: list[Pairs], ranks: Ranks
) -> tuple[dict[str, float], list[int]]:
    """A bad step's named figures and samples; all processes come here together.

    The trouble may be another process's: of each figure one that is not finite is taken, and only
    the samples of the processes that have such a figure, if any has.
    """
    mine = {}
    for name in figures[0]:
        totals, counts = (list(of) for of in zip(*(pairs[name] for pairs in figures), strict=True))
        mine[name] = sum(totals).item() / (sum(counts).item() or 1)
    ids = [i for batch in batches if hasattr(batch, "ids") for i in batch.ids.tolist()]
    everyone = ranks.gather((mine, ids))
    bad = [(v, ids) for v, ids in everyone if not all(map(math.isfinite, v.values()))] or everyone
    values = {
        name: next((v[name] for v, _ in bad if not math.isfinite(v[name])), bad[0][0][name])
        for name in mine
    }
    return values, [i for _, samples in bad for i in samples]


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
