"""The leaderboard of a sweep: a table in the terminal, leaderboard.csv, a page. Loads no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cvtrain.errors import CheckpointError
from cvtrain.files import writing
from cvtrain.hparams import CHOSEN, settings_of, write_columns
from cvtrain.metrics.sheet import readable, shorten
from cvtrain.report import words
from cvtrain.report.board import Board, Group, command, write_csv
from cvtrain.report.sweep_record import Job, SweepRecord

SWEEPS = Path("outputs/sweep")  # where sweeps lie, unless another folder is typed
LAST = "last"
MOST_ROWS = 20  # of the terminal's table
MOST_FAILED = 8
CSV, PAGE = "leaderboard.csv", "leaderboard.html"


def find_sweep(word: str) -> Path:
    """The folder of a sweep: its path, its name below outputs/sweep, or the newest by `last`.

    Raises CheckpointError (NO-SWEEP), naming those that there are.
    """
    sweeps = {folder.name: folder for folder in _newest_first()}
    if word == LAST and word not in sweeps and sweeps:
        return next(iter(sweeps.values()))
    for folder in (SWEEPS / word, Path(word)):
        if _is_sweep(folder):
            return folder
    there = ", ".join([*sweeps][:8]) or "none"
    what = "holds no sweep" if Path(word).is_dir() else "no such sweep"
    fix = f"type the name of one below {SWEEPS} ({there}), a folder, or sweep=last"
    raise CheckpointError(what, f"sweep={word}", fix, name="NO-SWEEP")


def _is_sweep(folder: Path) -> bool:
    return (folder / "sweep.json").is_file() or (folder / "jobs").is_dir()


def _newest_first() -> list[Path]:
    """By the last job that was begun or ended."""
    found = [folder for folder in SWEEPS.glob("*") if _is_sweep(folder)]
    return sorted(found, key=lambda folder: -_changed(folder))


def _changed(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder / "jobs", folder) if path.exists())


def write_leaderboard(folder: Path, out: Path | None = None) -> list[str]:
    """Write leaderboard.csv and leaderboard.html of the sweep in `folder`, there or into `out`.

    Returns the lines for the terminal. Nothing of the jobs is touched: they may be running.
    Raises CheckpointError (NO-SWEEP), MachineError where nothing can be written.
    """
    sweep = SweepRecord.read(folder)
    if not sweep.jobs:
        fix = "wait until its first job has begun, or type another sweep"
        raise CheckpointError("no job was begun", str(folder), fix, name="NO-SWEEP")
    board, where = Board.of(sweep), out or folder
    with writing(where, key="out"):
        where.mkdir(parents=True, exist_ok=True)
    write_csv(board, where / CSV)
    from cvtrain.report.sweep_page import write_sweep_page  # with Bokeh: only here

    write_sweep_page(board, where / PAGE)
    if out is None and board.ranked:
        tags = [f"val/{name}" for name in sweep.figures]
        write_columns(folder, [_settings(job) for job in sweep.jobs if job.record.config], tags)
    return [*table(board), f"  table    {where / CSV}", f"  page     {where / PAGE}"]


def _settings(job: Job) -> dict[str, Any]:
    """As the run itself told TensorBoard."""
    origins = job.record.origins
    choices = {group: str(origins[group][-1]["value"]) for group in CHOSEN if group in origins}
    return settings_of(job.record.config, choices)


def table(board: Board) -> list[str]:
    """The ranked groups, then what did not end well, then the best run's command."""
    states = ", ".join(f"{count} {state}" for state, count in board.states().items())
    lines = ["", f"sweep {board.sweep.name}: {len(board.sweep.jobs)} jobs, {states}"]
    if board.ranked:
        head = ["rank", *board.group_axes, board.primary, "best", "epochs", "time"]
        shown = [row(board, group) for group in board.ranked[:MOST_ROWS]]
        lines += _aligned([head, *shown], left=len(board.group_axes) + 1)
    else:
        lines.append("  no job has ended with a figure yet")
    if (left := len(board.ranked) - MOST_ROWS) > 0:
        lines.append(f"  and {left} more: see {CSV}")
    lines += _troubled(board)
    if board.best and board.best.overrides:
        figure = words.figure(board.primary, board.best.figures[board.primary])
        lines += ["", f"  best run, {board.best.run}, {board.primary} {figure}:"]
        lines += [f"    {command(board.best)}", ""]
    return lines


def row(board: Board, group: Group) -> list[str]:
    """`1`, the values of the axes, `1.23 ± 0.04 % (n=2)`, `1.19 %`, `8`, `12.3 s`."""
    best = board.best_of(group)
    epochs = _mean([job.reached("epoch") for job in group.finished])
    seconds = _mean([job.seconds for job in group.finished])
    return [
        str(group.rank),
        *(shorten(readable(value or "-"), 28) for value in group.values),
        averaged(board.primary, group),
        "-" if best is None else words.figure(board.primary, best),
        "-" if epochs is None else f"{epochs:.4g}",
        "-" if seconds is None else words.duration(seconds),
    ]


def averaged(name: str, group: Group) -> str:
    """`1.23 ± 0.04 % (n=2)`; of a single run the figure alone."""
    if group.mean is None:
        return "-"
    if group.deviation is None:
        return words.figure(name, group.mean)
    unit = words.unit(name)
    mean = words.figure(name, group.mean).removesuffix(unit)
    deviation = words.figure(name, group.deviation).removesuffix(unit)
    return f"{mean} ± {deviation}{unit} (n={len(group.figures)})"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _troubled(board: Board) -> list[str]:
    """A line for each job that has no rank, with its error or how far it is."""
    jobs = [job for group in board.groups for job in group.jobs if job not in group.finished]
    lines = [
        f"  {job.state:<8} {shorten(readable(job.run), 60)}: {shorten(readable(about(job)), 240)}"
        for job in jobs[:MOST_FAILED]
    ]
    left = len(jobs) - MOST_FAILED
    return [*lines, *([f"  and {left} more without a rank: see {CSV}"] if left > 0 else [])]


def about(job: Job) -> str:
    """What became of a job that has no rank."""
    if job.error:
        return job.error
    epoch = job.reached("epoch")
    far = "no evaluation yet" if epoch is None else f"epoch {epoch:.4g}"
    figures = (f"{name} {words.figure(name, value)}" for name, value in job.figures.items())
    return ", ".join([far, *figures])


def _aligned(table: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """The axes, columns 1 to `left` - 1, to the left, the others to the right."""
    widths = [max(len(line[place]) for line in table) for place in range(len(table[0]))]
    lines = (
        "  ".join(
            cell.ljust(width) if 0 < place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    )
    return [f"  {line}".rstrip() for line in lines]
