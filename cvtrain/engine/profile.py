"""Where the time of a step goes: a trace of a few steps and a table of the slowest operations."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import profiler

from cvtrain.engine.logs import Logs

log = logging.getLogger(__name__)

WAIT, WARMUP = 3, 2  # steps before: allocations and kernel choices are made in the first ones


class NoProfile:
    """In place of a profiler where there is none."""

    table = ""

    def step(self) -> None:
        pass


class Profile:
    """Records `steps` steps; the trace goes into `<run>/profile/`, as TensorBoard reads it."""

    def __init__(self, steps: int, logs: Logs, device: torch.device) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports its own comings and goings
        cuda = device.type == "cuda"
        self.sort_by = f"self_{'cuda' if cuda else 'cpu'}_time_total"
        self.table = ""
        self.folder = logs.run_dir / "profile"
        self.trace = profiler.tensorboard_trace_handler(str(self.folder))
        activities = [profiler.ProfilerActivity.CPU]
        self.profiler = profiler.profile(
            activities=activities + [profiler.ProfilerActivity.CUDA] * cuda,
            schedule=profiler.schedule(wait=WAIT, warmup=WARMUP, active=steps, repeat=1),
            on_trace_ready=self._ready,
        )

    def step(self) -> None:
        self.profiler.step()

    def _ready(self, recorded: Any) -> None:
        self.trace(recorded)
        rows = recorded.key_averages().table(sort_by=self.sort_by, row_limit=15)
        self.table = f"{rows}\n  trace    {self.folder}, for ui.perfetto.dev\n"


@contextmanager
def profiled(steps: int | None, logs: Logs, device: torch.device) -> Iterator[NoProfile | Profile]:
    """What is told of every step; without `steps`, and on all processes but the main one, no-op."""
    if steps is None or not logs.active:
        yield NoProfile()
        return
    profile = Profile(steps, logs, device)
    with profile.profiler:
        yield profile
    if profile.table:
        logs.text("profile", profile.table, step=0)
    else:
        log.warning("warning: no profile: the run has less than %d steps", WAIT + WARMUP + 1)
