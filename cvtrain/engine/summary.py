"""What is left of a finished run to look at: `summary.json`, `curves.png`, the table."""

import json
import os
import platform
import re
import resource
import subprocess
from pathlib import Path
from typing import Any

import torch
import torchvision

import cvtrain
from cvtrain.data.loader import FileLoader
from cvtrain.data.source import Source
from cvtrain.engine.plan import Parts, Position
from cvtrain.files import whole, write_atomic
from cvtrain.hparams import settings_of as settings_of
from cvtrain.tasks.base import Evaluator, Showing


def versions() -> dict[str, str]:
    """What a result was made with."""
    return {
        "cvtrain": cvtrain.__version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "python": platform.python_version(),
    }


def git_revision(folder: Path) -> str | None:
    """The commit checked out at `folder`, `+changes` added when the tree differs from it."""
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+changes"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def report_of(evaluator: Evaluator | None, source: Source) -> dict[str, Any]:
    """What the last evaluation adds to the summary."""
    return evaluator.report(source) if isinstance(evaluator, Showing) else {}


def write_summary(
    run_dir: Path, position: Position, parts: Parts, *, device: torch.device, about: dict[str, Any]
) -> dict[str, Any]:
    """`summary.json`: final figures, the best, time, speed, memory, versions. Returns it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    summary = {
        **position.metrics,
        "primary": parts.task.primary.name,
        f"best/{parts.task.primary.name}": position.best,
        "best/step": position.best_step,
        "best/epoch": round(position.best_step / parts.train.steps, 3),
        "steps": position.step,
        "epochs": round(position.step / parts.train.steps, 3),
        "seconds": round(position.seconds, 2),
        "time": {name: round(seconds, 2) for name, seconds in position.time.items()},
        "skipped_steps": position.skipped,
        "parameters": sum(p.numel() for p in parts.model.parameters()),
        "peak_memory_bytes": peak,
        **about,
    }
    if device.type == "cuda":
        summary["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(device)
    text = json.dumps(summary, indent=1)
    text = ROWS.sub(lambda row: " ".join(row[0].split()), text)  # a matrix, a line for each row
    write_atomic(run_dir / "summary.json", text + "\n")
    return summary


ROWS = re.compile(r"\[\s+-?[\d.]+(,\s+-?[\d.]+)*\s+\]")  # of numbers
PARTS = 8  # of a figure, in a panel


def parts_of(figure: str, lines: list[dict[str, Any]]) -> list[str]:
    """What a figure is the mean of, by name: `val/main_err` of `err`."""
    keys = dict.fromkeys(key for line in lines for key in line)
    return [key for key in keys if key.startswith("val/") and key.endswith(f"_{figure}")]


def draw_curves(lines: list[dict[str, Any]], path: Path, *, primary: str) -> None:
    """Loss, error and learning rate over epochs, from the lines of `metrics.jsonl`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # never a window, whatever $DISPLAY
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (
        ("loss", "loss", "log"),
        (primary, primary.replace("_", " "), "linear"),
        ("lr", "learning rate", "linear"),
    )
    for axes, (name, title, scale) in zip(figure.subplots(1, 3), panels, strict=True):
        styles: dict[str, dict[str, Any]] = {
            f"train/{name}": {"color": "C0", "alpha": 0.7, "label": "train"},
            f"val/{name}": {"color": "C1", "marker": ".", "label": "val"},
        }
        for number, key in enumerate(parts_of(name, lines)[:PARTS], start=2):
            label = key.removeprefix("val/").replace("_", " ")
            styles[key] = {"color": f"C{number}", "linewidth": 0.9, "label": label}
        for key, style in styles.items():
            points = [(line["epoch"], line[key]) for line in lines if key in line]
            if points:
                axes.plot(*zip(*points, strict=True), **style)
        axes.set(title=title, xlabel="epoch", yscale=scale)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


PER_CENT = re.compile(r"(^|_)(err|ece|iou|(mAP|AR)\d*(_(small|medium|large))?)$")


def unit(figure: str) -> str:
    return " %" if PER_CENT.search(figure) else ""


def written(figure: str, value: float) -> str:
    """`0.88 %`"""
    return f"{value:.4g}{unit(figure)}"


TIMES = {"data": "data", "compute": "compute", "eval": "evaluation", "save": "saving"}


def time_lines(summary: dict[str, Any], loader: Any) -> list[str]:
    """Where the time went, in per cent; what to turn if much of it was waiting for data."""
    times, total = summary["time"], max(summary["seconds"], 1e-9)
    parts = (f"{word} {100 * times[name] / total:.0f} %" for name, word in TIMES.items())
    lines = [f"  time     {', '.join(parts)}"]
    waited = times["data"] / max(times["data"] + times["compute"], 1e-9)
    # Data in memory are changed on the device: no process could do it sooner.
    if waited > 0.3 and isinstance(loader, FileLoader):
        workers, cores = loader.workers, len(os.sched_getaffinity(0))
        more = min(8, cores) if workers < min(8, cores) else 2 * workers
        lines.append(
            f"           {100 * waited:.0f} % of training was waiting for data: "
            f"type trainer.workers={more}"
        )
    return lines


def table(
    summary: dict[str, Any],
    published: dict[str, Any],
    *,
    title: str,
    run_dir: Path,
    time: list[str],
    pictures: list[str],
) -> str:
    """The end of a run: ours, the paper's beside it, and where to look."""
    names = [key.removeprefix("val/") for key in summary if key.startswith("val/")]
    best = f"best/{summary['primary']}"
    rows = [("", "yours", "paper" if published else "")]
    for name in names:
        paper = f"{published[name]:g}{unit(name)}" if name in published else ""
        rows.append((name, written(name, summary[f"val/{name}"]), paper))
    rows.append(
        (best, written(summary["primary"], summary[best]), f"at epoch {summary['best/epoch']:g}")
    )
    width = max(14, *(len(name) for name, *_ in rows))
    minutes, seconds = divmod(round(summary["seconds"]), 60)
    lines = [
        "",
        f"{title}: {summary['epochs']:g} epochs, {summary['steps']} steps, "
        f"{minutes} min {seconds} s, {summary['parameters']:,} parameters"
        + (f", {summary['skipped_steps']} steps skipped" if summary["skipped_steps"] else ""),
        *(f"  {left:<{width}} {ours:>10}  {paper:>10}".rstrip() for left, ours, paper in rows),
        *([f"  paper    {published['source']}"] if "source" in published else []),
        *time,
        f"  curves   {run_dir / 'curves.png'}",
        *([f"  pictures {', '.join(pictures)} there"] if pictures else []),
        f"  weights  {run_dir / 'checkpoints' / 'best.pt'}",
        f"  browse   tensorboard --logdir {run_dir.parent}",
    ]
    return "\n".join(lines)
