"""What a run is made of, how far it goes, and where it stands."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from cvtrain.data.loader import Loader
from cvtrain.data.source import Source
from cvtrain.engine.layers import Frozen
from cvtrain.engine.schedule import Schedule
from cvtrain.tasks.base import Task


@dataclass
class Parts:
    """What build.py makes of a config."""

    source: Source
    train: Loader
    val: Loader
    transform: Any  # from a loader's batch to the network's
    model: nn.Module
    task: Task
    optimizer: Optimizer
    schedule: Schedule
    frozen: Frozen = field(default_factory=Frozen)


@dataclass(frozen=True)
class Plan:
    """Every duration of the config, in optimizer steps."""

    batch_size: int
    total: int | None  # None: until `seconds` are over
    seconds: float | None
    log_every: int
    eval_every: int
    checkpoint_every: int


@dataclass
class Position:
    """Where a run stands; with the tensors, all there is to save."""

    step: int = 0
    evaluated_at: int = 0  # step of the last whole evaluation
    seconds: float = 0.0  # wall time over all resumes, and what of it went where:
    time: dict[str, float] = field(
        default_factory=lambda: {"data": 0.0, "compute": 0.0, "eval": 0.0, "save": 0.0}
    )
    best: float | None = None  # of the primary figure
    best_step: int = 0
    waited: int = 0  # evaluations since the best
    metrics: dict[str, float] = field(default_factory=dict)  # of the last evaluation
    # Sums and counts since the last log point, so that a resumed run logs the same line.
    window: dict[str, float] = field(default_factory=dict)
    skipped: int = 0  # steps that changed nothing, for they were not finite
    skipped_in_a_row: int = 0

    def judge(self, value: float, sign: int) -> bool:
        """Note a primary figure, lower being better after `sign`; whether it is the best so far."""
        better = self.best is None or sign * value < sign * self.best
        self.waited = 0 if better else self.waited + 1
        if better:
            self.best, self.best_step = value, self.step
        return better

    @property
    def trained(self) -> float:
        """Seconds of waiting for data and computing."""
        return self.time["data"] + self.time["compute"]
