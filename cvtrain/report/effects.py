"""What each parameter of a sweep does to the figure: means by value, shares of the variance."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cvtrain.report.board import Board
from cvtrain.report.sweep_record import Job

ENOUGH = 0.8  # of the grid: with more of it missing, shares would be of other parameters', too
MISSING = "—"


@dataclass(frozen=True)
class Effect:
    """One axis: the jobs that have a figure, by value, each with its figure."""

    axis: str
    by_value: dict[str, list[tuple[Job, float]]]
    share: float | None  # of the variance of the figure between the values, per cent

    @property
    def means(self) -> dict[str, float]:
        return {value: statistics.fmean(figures(found)) for value, found in self.by_value.items()}


def figures(found: Sequence[tuple[Job, float]]) -> list[float]:
    return [figure for _, figure in found]


def effects(board: Board) -> list[Effect]:
    """Of each axis with several values that have a figure."""
    found = [
        pair for group in board.groups for pair in zip(group.jobs, group.figures, strict=False)
    ]
    made = []
    for axis in board.axes:
        order = [*board.sweep.values(axis), MISSING]
        by_value: dict[str, list[tuple[Job, float]]] = {value: [] for value in order}
        for job, figure in found:
            by_value[job.typed.get(axis, MISSING)].append((job, figure))
        full = {value: pairs for value, pairs in by_value.items() if pairs}
        if len(full) > 1:
            made.append(Effect(axis, full, share([figures(pairs) for pairs in full.values()])))
    return made


def share(parts: Sequence[Sequence[float]]) -> float | None:
    """Eta squared of the main effect, per cent: the sum of squares between `parts` by the total.

    None where all are equal, and where no part has a second value: it would explain everything.
    """
    every = [value for part in parts for value in part]
    mean = statistics.fmean(every)
    total = math.fsum((value - mean) ** 2 for value in every)
    between = math.fsum(len(part) * (statistics.fmean(part) - mean) ** 2 for part in parts)
    return 100 * between / total if total and len(every) > len(parts) else None


def filled(found: Sequence[Effect]) -> tuple[int, int]:
    """How many combinations of the axes' values have a figure, and how many there are."""
    values = {
        job.run: tuple(job.typed.get(effect.axis) for effect in found)
        for effect in found
        for pairs in effect.by_value.values()
        for job, _ in pairs
    }
    return len(set(values.values())), math.prod(len(effect.by_value) for effect in found)
