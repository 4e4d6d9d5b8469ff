"""The page of a sweep: who is first, the curves over each other, what each parameter does."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote

from cvtrain.metrics.sheet import shorten
from cvtrain.report import words
from cvtrain.report.board import SPEED, Board, Group, command, ranked_figure
from cvtrain.report.page import Cell, Chart, Link, Part, Section, Table, Text, Tiles, write_page
from cvtrain.report.run import tried
from cvtrain.report.sweep_charts import Run, draw_overlay, short_names
from cvtrain.report.sweep_parameters import by_parameter, parallel
from cvtrain.report.sweep_record import Job, as_number

MOST_LINES = 50  # of curves in a chart
NO_FIGURE = "No job has ended with a figure yet."


def write_sweep_page(board: Board, path: Path) -> None:
    """Write the page into the file `path`; MachineError where it cannot be."""
    makers: dict[str, Callable[[Board], Sequence[Part]]] = {
        "Result": result,
        "Leaderboard": groups,
        "Curves": curves,
        "Parallel coordinates": parallel,
        "The effect of each parameter": by_parameter,
        "Without a figure": troubled,
        "Jobs": partial(jobs, page=path),
    }
    sections = [Section(title, tried(make, board)) for title, make in makers.items()]
    started = board.sweep.about.get("started")
    said = [f"{len(board.sweep.jobs)} jobs", *([f"started {started}"] if started else [])]
    subtitle = f"{' · '.join(said)}\n{board.sweep.path.resolve()}"
    title = f"sweep {board.sweep.name}"
    write_page(path, title=title, subtitle=subtitle, sections=sections)


def result(board: Board) -> Sequence[Part]:
    """The best in large, how many jobs ended how, the command that does the best run again."""
    parts: list[Part] = [] if board.ranked else [Text(NO_FIGURE, "note")]
    states, tiles = board.states(), list[tuple[str, str, str]]()
    if states.get("running"):
        text = "Jobs are running: this page shows what they have written so far."
        parts.append(Text(text, "note"))
    if board.ranked:
        first = board.ranked[0]
        tiles.append((f"best {board.primary}", *best_tile(board, first)))
    tiles.append(("jobs done", str(states.pop("done", 0)), f"of {len(board.sweep.jobs)}"))
    tiles += [(state, str(count), "") for state, count in states.items()]
    seconds = [job.seconds for job in board.sweep.jobs if job.seconds is not None]
    if seconds:
        tiles.append(("time", words.duration(sum(seconds)), "of all jobs together"))
    parts.append(Tiles(tiles))
    if board.best and board.best.overrides:
        parts += [Text(f"The best run, {board.best.run}:"), Text(command(board.best), "code copy")]
    if typed := board.sweep.about.get("command"):
        parts += [Text("The sweep:"), Text(str(typed), "code")]
    return parts


def best_tile(board: Board, group: Group) -> tuple[str, str]:
    """The mean, and what it is the mean of."""
    mean = words.figure(board.primary, group.mean or 0.0)
    axes = zip(short_names(board.group_axes), group.values, strict=True)
    where = ", ".join(f"{axis}={value}" for axis, value in axes if value) or group.name
    where = shorten(where, 90)
    if group.deviation is None:
        return mean, where
    unit = words.unit(board.primary)
    deviation = words.figure(board.primary, group.deviation).removesuffix(unit)
    return mean, f"± {deviation}, {len(group.figures)} seeds\n{where}"


def groups(board: Board) -> Sequence[Part]:
    """A row for each setting, its seeds averaged."""
    name, unit = board.primary, words.unit(board.primary).strip()
    figure = f"{name}, {unit}" if unit else name
    head = ["rank", *board.group_axes, figure, "deviation", "n", f"best {figure}", "epochs"]
    rows: list[list[Cell]] = [
        [
            *(group.rank, *map(cell, group.values), group.mean, group.deviation),
            *(len(group.figures), board.best_of(group)),
            *([group.jobs[0].reached("epoch")] if group.jobs else []),
        ]
        for group in board.groups
    ]
    way = "the lower the better" if board.lower else "the higher the better"
    caption = (
        f"By the mean of {name} at the last evaluation, {way}; n runs that ended, and the standard "
        "deviation of the sample. Best: of all evaluations. A click on a head sorts."
    )
    form = ".2f" if unit else ".4g"
    formats = ["", *([""] * len(board.group_axes)), form, form, "", form, ".4g"]
    return [Text(caption), Table(head, rows, "", formats)]


def cell(value: str | None) -> Cell:
    """A number as one, so that a click sorts it, where it is written as a plain one."""
    number = as_number(value) if value is not None else None
    return number if number is not None and f"{number:.4g}" == value else value


def jobs(board: Board, *, page: Path) -> Sequence[Part]:
    """A row for each job, with a link to its own page."""
    others = [name for name in board.sweep.figures if name != board.primary]
    shown = [board.primary, *others]
    units = [words.unit(name).strip() for name in shown]
    figures_head = [f"{name}, {u}" if u else name for name, u in zip(shown, units, strict=True)]
    head = ["rank", "run", "state", *board.axes, *figures_head, "epochs", "seconds", "images/s"]
    rows: list[list[Cell]] = [
        [
            *(group.rank, linked(board, job, page), job.state),
            *(cell(job.typed.get(axis)) for axis in board.axes),
            *(job.figures.get(name) for name in shown),
            *(job.reached("epoch"), job.seconds, job.told(SPEED)),
        ]
        for group in board.groups
        for job in group.jobs
    ]
    formats = ["", "", "", *([""] * len(board.axes))]
    formats += [".2f" if unit else ".4g" for unit in units] + [".4g", ".1f", ",.0f"]
    caption = "Figures of the last evaluation; leaderboard.csv has them in full."
    return [Table(head, rows, caption, formats)]


def linked(board: Board, job: Job, page: Path) -> Cell:
    """The run's name, leading to its page where there is one."""
    report = board.sweep.path / job.run / "report.html"
    if not report.is_file():
        return job.run
    return Link(job.run, "./" + quote(os.path.relpath(report, page.parent)))


def curves(board: Board) -> Sequence[Part]:
    """The ranked figure and the loss of training, the best runs first."""
    name = board.primary
    found = [
        (number, group, job)
        for number, group in enumerate(board.groups)
        for job in group.jobs
        if job.record.lines
    ]
    charts: list[Part] = []
    for key, log in ((f"val/{name}", board.lower), ("train/loss", True)):
        unit = words.unit(key).strip()
        runs = [
            Run(job.run, legend(group), number, *points)
            for number, group, job in found[:MOST_LINES]
            if (points := curve(job, key))
        ]
        if runs:
            charts.append(Chart(draw_overlay(f"{key}, {unit}" if unit else key, runs, log=log)))
    if not charts:
        return []
    axes = " · ".join(board.group_axes)
    said = f"By rank{': ' if axes else ''}{axes}; seeds share a colour. A click on a name hides it."
    most = f" The first {MOST_LINES} of {len(found)} runs." if len(found) > MOST_LINES else ""
    return [Text(said + most), *charts]


def legend(group: Group) -> str:
    return f"{group.rank}: {group.name}" if group.rank else group.name


def curve(job: Job, key: str) -> tuple[list[float], list[float]] | None:
    """Epochs and values, where it was logged."""
    lines = [line for line in job.record.lines if isinstance(line.get(key), int | float)]
    return ([line["epoch"] for line in lines], [line[key] for line in lines]) if lines else None


def troubled(board: Board) -> Sequence[Part]:
    """Jobs without a place on the board: their state, how far they came, their error."""
    rows = [
        (job.run, job.state, job.reached("epoch"), job.exit_code, job.error or None)
        for group in board.groups
        for job in group.jobs
        if ranked_figure(job, board.primary) is None
    ]
    return [Table(["run", "state", "epoch", "exit code", "error"], rows)] if rows else []
