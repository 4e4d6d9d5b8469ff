"""`cvtrain eval`: a run measured again, on any data; several as one; two against each other."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cvtrain.compose import Composed
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.logs import speak
from cvtrain.engine.machine import pick_device
from cvtrain.engine.summary import unit, versions, written
from cvtrain.errors import ConfigError
from cvtrain.evaluation.ensemble import Measuring
from cvtrain.evaluation.result import (
    Comparison,
    Interval,
    Result,
    intervals,
    write_results,
)
from cvtrain.evaluation.result import compare as compared_with
from cvtrain.evaluation.stored import settings_of
from cvtrain.metrics.sheet import readable, shorten
from cvtrain.trained.runs import find, runs_of

MOST_LISTED = 30  # classes of a table that is printed


def eval(
    composed: Composed,
    overrides: list[str],
    *,
    run: str,
    compare: str,
    out: str,
    merge: str = "nms",
) -> None:
    """Print the figures, and write what there is of each sample into `out` if it is named.

    Raises ConfigError, DataError, CheckpointError (EVAL-DIFFERS), MachineError.
    """
    ranks = Ranks.from_environment()
    speak(logging.INFO if ranks.is_main else logging.WARNING)
    folder = _checked(runs_of(run), Path(out) if out else None)
    device = pick_device(composed.config.trainer.device, ranks, composed.gpus)
    with ranks.joined(device), ranks.together():
        measuring = Measuring(composed, overrides, device, merge, ranks)
        result = measuring.result(runs_of(run))
        other = measuring.result(runs_of(compare)) if compare else None
    if not ranks.is_main:
        return
    against = compared_with(result, other) if other else None
    found = intervals(result.draws())
    files = []
    if folder:
        summary = summary_of(result, found, against, other)
        summary["settings"] = settings_of(result.measured.config, device)
        files = write_results(folder, result, summary)
    print("\n".join(lines_of(result, found)))
    if against and other:
        print("\n".join(_against(against, result, other)))
    if folder:
        print(f"  written  {folder}: {', '.join(files)}")
    for one in (result, other):
        if one and one.error:
            raise one.error


def _checked(runs: list[str], folder: Path | None) -> Path | None:
    """What can be refused before anything is read."""
    if not runs:
        raise ConfigError("no run is named", "run=", "type run=outputs/... or run=last")
    if folder is None:
        return None
    if not folder.absolute().parent.is_dir():
        raise ConfigError(f"no folder {folder.parent}", f"out={folder}", "make it first")
    for run in runs:
        if (where := find(run)).is_dir() and folder.resolve().is_relative_to(where.resolve()):
            raise ConfigError("nothing is written into a run", f"out={folder}", "type another one")
    return folder


def summary_of(
    result: Result,
    found: dict[str, Interval],
    against: Comparison | None,
    other: Result | None,
) -> dict[str, Any]:
    """`summary.json`, its figures named as in a run's."""
    measured, split = result.measured, result.measured.split
    summary = {
        **{f"{split}/{name}": value for name, value in result.figures.items()},
        "primary": result.primary,
        "intervals": {f"{split}/{name}": list(of) for name, of in found.items()},
        "runs": result.runs,
        "checkpoint": str(measured.path),
        "step": measured.state["position"].get("step"),
        "stored": result.stored,
        "data": measured.source.info.name,
        "split": split,
        "seconds": round(result.seconds, 2),
        "versions": versions(),
        **result.report,
    }
    if result.rows is not None:
        summary["samples"] = len(result.rows.ids)
    if result.members:
        summary["members"] = {one.name: one.figures for one in result.members}
    if against and other:
        summary["compare"] = {"with": other.runs, **asdict(against)}
        summary["compare"] |= {"difference": against.difference, "says": against.sentence}
    return summary


def lines_of(result: Result, found: dict[str, Interval]) -> list[str]:
    """The table: ours, its interval, the paper's beside it; then by class; then the stored ones."""
    measured, report = result.measured, result.report
    figures = dict(result.figures)
    if "ece" in report:
        figures["ece"] = report["ece"]
    own = measured.split == "val" and measured.is_own
    published = measured.stored.published if own else {}
    rows = [("", "yours", "95 % interval" * bool(found), "paper" * bool(published))]
    for name, value in figures.items():
        low, high = (written(name, bound) for bound in found.get(name, (0.0, 0.0)))
        beside = f"{low.removesuffix(' %')} to {high}" if name in found else ""
        paper = f"{published[name]:g}{unit(name)}" if name in published else ""
        rows.append((name, written(name, value), beside, paper))
    return [
        _title(result),
        *_aligned(rows),
        *_by_class(report),
        *_of_members(result),
        f"  stored   {result.stored}",
    ]


def _title(result: Result) -> str:
    """`outputs/a: 10000 samples of MNIST, split val, fp32, 1.5 s`"""
    measured = result.measured
    samples = f"{len(result.rows.ids)} samples of " if result.rows is not None else ""
    data, precision = measured.source.info.name, measured.config.trainer.precision
    how = f"split {measured.split}, {precision}, {result.seconds:.1f} s"
    return f"\n{result.name}: {samples}{data}, {how}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    widths[0] = max(widths[0], 14)
    return [
        "  ".join(
            ["", row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in rows
    ]


def _by_class(report: dict[str, Any]) -> list[str]:
    """Up to MOST_LISTED classes; summary.json has them all."""
    if classes := report.get("per_class"):
        names = ("samples", "error", "precision", "recall", "f1")
        rows: list[tuple[str, ...]] = [("by class, %", *names)]
        rows += [
            (shorten(readable(name), 40), *(_cell(of[key]) for key in names))
            for name, of in classes.items()
        ]
    elif classes := report.get("per_category"):
        rows = [("by category", "mAP, %")]
        rows += [(shorten(readable(name), 40), _cell(of)) for name, of in classes.items()]
    else:
        return []
    left = len(rows) - 1 - MOST_LISTED
    more = [f"  and {left} more: see summary.json of out=FOLDER"] if left > 0 else []
    return ["", *_aligned(rows[: MOST_LISTED + 1]), *more]


def _cell(value: float | None) -> str:
    if isinstance(value, int):
        return str(value)
    return "-" if value is None else f"{value:.4g}"


def _of_members(result: Result) -> list[str]:
    name = result.primary
    rows = [("each alone", name)] if result.members else []
    rows += [(one.name, written(name, one.figures[name])) for one in result.members]
    return ["", *_aligned(rows)] if rows else []


def _against(against: Comparison, result: Result, other: Result) -> list[str]:
    """Two runs on the same samples: the difference, its interval, the test, a sentence."""
    values = (written(against.figure, value) for value in (against.first, against.second))
    low, high = against.interval
    lines = [
        "",
        f"{result.name} against {other.name}: {against.figure} {' and '.join(values)}",
        f"  difference  {against.difference:+.4g} points, 95 % interval {low:+.4g} to {high:+.4g}",
    ]
    if against.alone is not None:
        first, second = against.alone
        lines.append(f"  wrong       {first} samples in the first alone, {second} in the second")
    lines.append(f"  {against.test}: {against.sentence}")
    return lines
