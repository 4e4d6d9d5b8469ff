"""Which jobs of a sweep are best: those that differ in the seed alone are one row, and averaged."""

import csv
import io
import math
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cvtrain.files import whole
from cvtrain.report import words
from cvtrain.report.sweep_record import Job, SweepRecord

SEED = "seed"
SPEED = "train/images_per_sec"


@dataclass(frozen=True)
class Group:
    """Jobs that differ in the seed alone, the best first; those without a figure last."""

    jobs: Sequence[Job]
    values: Sequence[str | None]  # of the board's axes but the seed
    figures: Sequence[float]  # the ranked one of each job that is done and has it
    rank: int | None = None

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.figures) if self.figures else None

    @property
    def deviation(self) -> float | None:
        """Of the sample, n - 1 in the denominator; None of a single one."""
        return statistics.stdev(self.figures) if len(self.figures) > 1 else None

    @property
    def finished(self) -> Sequence[Job]:
        """Those that `figures` are of."""
        return self.jobs[: len(self.figures)]

    @property
    def name(self) -> str:
        return " · ".join(value or "—" for value in self.values) or self.jobs[0].run


@dataclass(frozen=True)
class Board:
    """The groups of a sweep, the ranked ones first."""

    sweep: SweepRecord
    groups: Sequence[Group]
    axes: Sequence[str]
    primary: str
    lower: bool  # is better

    @classmethod
    def of(cls, sweep: SweepRecord) -> "Board":
        axes, primary = sweep.axes, sweep.primary
        lower = words.lower_is_better(primary)
        alike: dict[tuple[tuple[str, str], ...], list[Job]] = {}
        for job in sweep.jobs:
            rest = {key: value for key, value in job.typed.items() if key != SEED}
            own = {} if SEED in axes and job.typed else {"run": job.run}
            alike.setdefault(tuple(sorted({**rest, **own}.items())), []).append(job)
        groups = [_group(jobs, axes, primary, lower) for jobs in alike.values()]
        groups.sort(key=lambda group: _order(group.mean, lower))
        ranked = [
            Group(group.jobs, group.values, group.figures, rank if group.figures else None)
            for rank, group in enumerate(groups, start=1)
        ]
        return cls(sweep, ranked, axes, primary, lower)

    @property
    def ranked(self) -> Sequence[Group]:
        return [group for group in self.groups if group.rank]

    @property
    def group_axes(self) -> Sequence[str]:
        return [axis for axis in self.axes if axis != SEED]

    @property
    def best(self) -> Job | None:
        """The best run of the best group."""
        return self.groups[0].jobs[0] if self.ranked else None

    def best_of(self, group: Group) -> float | None:
        """The best evaluation of any of its runs that are done."""
        found = (job.told(f"best/{self.primary}") for job in group.finished)
        known = [value for value in found if value is not None]
        return (min if self.lower else max)(known, default=None)

    def states(self) -> dict[str, int]:
        """How many jobs are in which state."""
        states = [job.state for job in self.sweep.jobs]
        return {state: states.count(state) for state in dict.fromkeys(states)}


def _group(jobs: list[Job], axes: list[str], primary: str, lower: bool) -> Group:
    figures = {job.run: ranked_figure(job, primary) for job in jobs}
    jobs = sorted(jobs, key=lambda job: _order(figures[job.run], lower))
    known = [figure for job in jobs if (figure := figures[job.run]) is not None]
    values = [jobs[0].typed.get(axis) for axis in axes if axis != SEED]
    return Group(jobs, values, known)


def ranked_figure(job: Job, primary: str) -> float | None:
    """Of a job that is done; None for one that is not finite."""
    figure = job.figures.get(primary) if job.state == "done" else None
    return figure if figure is not None and math.isfinite(figure) else None


def _order(figure: float | None, lower: bool) -> float:
    return math.inf if figure is None else figure if lower else -figure


def command(job: Job) -> str:
    """What a shell takes to do the run again, alone; empty where its words are lost."""
    return shlex.join(["cvtrain", *job.overrides]) if job.overrides else ""


def columns(board: Board) -> list[str]:
    """The head of leaderboard.csv."""
    return [
        *("rank", "mean", "deviation", "n", "run", "state", *board.axes),
        *(f"val/{name}" for name in board.sweep.figures),
        *(f"best/{board.primary}", "best/epoch", "epochs", "steps", "seconds", SPEED),
        *("error", "command"),
    ]


def rows(board: Board) -> list[list[str | float | None]]:
    """A row for each job, in the order of the board; numbers as summary.json has them."""
    return [
        [
            *(group.rank, group.mean, group.deviation, len(group.figures), job.run, job.state),
            *(job.typed.get(axis) for axis in board.axes),
            *(job.figures.get(name) for name in board.sweep.figures),
            *(job.told(f"best/{board.primary}"), job.told("best/epoch")),
            *(job.reached("epoch"), job.reached("step"), job.seconds, job.told(SPEED)),
            *(job.error or None, command(job) or None),
        ]
        for group in board.groups
        for job in group.jobs
    ]


def write_csv(board: Board, path: Path) -> None:
    """leaderboard.csv, the old file or the new one; MachineError where it cannot be written."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns(board))
    writer.writerows(rows(board))
    data = text.getvalue().encode("utf-8", "replace")  # a name may hold what no encoding has
    with whole(path, size=len(data), key="out") as temporary:
        temporary.write_bytes(data)
