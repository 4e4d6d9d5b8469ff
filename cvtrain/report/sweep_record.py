"""What lies in the folder of a sweep, whatever is missing of it: its jobs and what came of each."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cvtrain.report import words
from cvtrain.report.record import Record, is_held, read_json

STATES = ("done", "running", "stopped", "failed", "killed")
# As a run calls its own outcome; `killed` is what only says that it runs.
OUTCOMES = {"preempted": "stopped", "done": "done", "failed": "failed", "running": "running"}
KILLED = "it had not ended when it wrote last, and no process holds its directory now"
NOT_ITS_OWN = ("resume", "resume_allow", "hydra.run.dir", "report", "traceback")  # of a result


@dataclass(frozen=True)
class Job:
    """One run of a sweep. `typed` are its words by key, without those that change no result."""

    run: str  # the name of its directory, below the sweep's
    overrides: Sequence[str]
    swept: dict[str, str]
    typed: dict[str, str]
    state: str  # one of STATES
    error: str  # in one line; empty without one
    exit_code: int | None
    seconds: float | None
    record: Record

    @classmethod
    def read(cls, file: Path) -> "Job":
        """From jobs/SLUG.json and the run's own directory beside; either may be cut off."""
        found = read_json(file)
        run = str(found.get("run") or file.stem)
        record = Record.read(file.parents[1] / run)
        overrides = [str(word) for word in found.get("overrides") or []]
        swept = {key: str(value) for key, value in (found.get("swept") or {}).items()}
        pairs = (word.partition("=") for word in overrides)
        typed = {key: value for key, _, value in pairs if key not in NOT_ITS_OWN} | swept
        state = str(found.get("state"))
        if state not in STATES or state == "running":  # what ended by itself has told so
            state = OUTCOMES.get(record.state, "killed")
            if not record.is_run and is_held(file.parents[1]):  # it has only just begun
                state = "running"
        return cls(
            run=run,
            overrides=overrides,
            swept=swept,
            typed=typed,
            state=state,
            error=_error(found, record, state),
            exit_code=_whole(found.get("exit_code", record.status.get("exit_code"))),
            seconds=number(record.summary.get("seconds", found.get("seconds"))),
            record=record,
        )

    @property
    def figures(self) -> dict[str, float]:
        """By name without `val/`: summary.json's; of a run that is not done, the last
        evaluation's so far.
        """
        summary = self.record.summary if self.state == "done" else {}
        return Record(self.record.path, summary=summary, lines=self.record.lines).figures()

    def told(self, key: str) -> float | None:
        """A number of summary.json, once the job is done."""
        return number(self.record.summary.get(key)) if self.state == "done" else None

    def reached(self, key: str) -> float | None:
        """How far it came, `epoch` or `step`."""
        found = self.told(f"{key}s")
        last = self.record.lines[-1] if self.record.lines else {}
        return number(last.get(key)) if found is None else found


def _error(found: dict[str, Any], record: Record, state: str) -> str:
    if state in ("done", "running"):
        missing = state == "done" and not record.summary
        return "summary.json is missing or cut off" if missing else ""
    told = found.get("error")
    if not told and record.status.get("message"):
        told = f"{record.status.get('error')}: {record.status['message']}"
    if not told and state == "killed":
        told = KILLED if record.is_run else "it has no run directory yet"
    return " ".join(str(told or record.status.get("error") or "").split())


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def number(value: Any) -> float | None:
    """A number as it was read, an integer as an integer; None for anything else."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


@dataclass(frozen=True)
class SweepRecord:
    """The folder of a sweep, read."""

    path: Path
    jobs: Sequence[Job]
    about: dict[str, Any] = field(default_factory=dict)  # sweep.json

    @classmethod
    def read(cls, path: Path) -> "SweepRecord":
        files = sorted((path / "jobs").glob("*.json"))
        return cls(path, [Job.read(file) for file in files], read_json(path / "sweep.json"))

    @property
    def name(self) -> str:
        return str(self.about.get("name") or self.path.resolve().name)

    @property
    def axes(self) -> list[str]:
        """The keys that were swept, and others in which jobs differ: those of another command of
        the same name.
        """
        swept = dict.fromkeys(key for job in self.jobs for key in job.swept)
        typed = dict.fromkeys(key for job in self.jobs if job.typed for key in job.typed)
        told = [job for job in self.jobs if job.typed]
        differ = (key for key in typed if len({job.typed.get(key) for job in told}) > 1)
        return [*swept, *(key for key in differ if key not in swept)]

    @property
    def primary(self) -> str:
        """The figure that is ranked: what most of the runs call theirs."""
        told = Counter(job.record.primary for job in self.jobs if job.record.primary)
        if told:
            return told.most_common(1)[0][0]
        names = [name for job in self.jobs for name in job.figures]
        return next((name for name in names if words.unit(name)), "loss")

    @property
    def figures(self) -> list[str]:
        """The names of all figures, the primary one first."""
        names = dict.fromkeys(name for job in self.jobs for name in job.figures)
        return [self.primary, *(name for name in names if name != self.primary)]

    def values(self, axis: str) -> list[str]:
        """Of an axis: by size if all are numbers, else by name."""
        found = {job.typed[axis] for job in self.jobs if axis in job.typed}
        numbers = {value: as_number(value) for value in found}
        if None in numbers.values():
            return sorted(found)
        return sorted(found, key=lambda value: (numbers[value], value))


def as_number(text: str) -> float | None:
    """`1e-3` as a number; None for a word, and for what is not finite."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
