"""What is left of a finished run to look at: `summary.json`, `curves.png`, the table."""

import json
import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

import torch
import torchvision

import cvtrain
from cvtrain.engine.plan import Parts, Position
from cvtrain.engine.rundir import write_atomic, writing


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
        "parameters": sum(p.numel() for p in parts.model.parameters()),
        "peak_memory_bytes": peak,
        **about,
    }
    if device.type == "cuda":
        summary["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(device)
    write_atomic(run_dir / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


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
        for key, style in (
            (f"train/{name}", {"color": "C0", "alpha": 0.7}),
            (f"val/{name}", {"color": "C1", "marker": "."}),
        ):
            points = [(line["epoch"], line[key]) for line in lines if key in line]
            if points:
                axes.plot(*zip(*points, strict=True), label=key.split("/")[0], **style)
        axes.set(title=title, xlabel="epoch", yscale=scale)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    with writing(path):
        figure.savefig(path, dpi=110)


def table(summary: dict[str, Any], published: dict[str, Any], *, title: str, run_dir: Path) -> str:
    """The end of a run: ours, the paper's beside it, and where to look."""
    names = [key.removeprefix("val/") for key in summary if key.startswith("val/")]
    best = f"best/{summary['primary']}"
    units = {name: " %" if name.endswith("_err") else "" for name in names}
    rows = [("", "yours", "paper" if published else "")]
    for name in names:
        paper = f"{published[name]:g}{units[name]}" if name in published else ""
        rows.append((name, f"{summary[f'val/{name}']:.4g}{units[name]}", paper))
    unit = units.get(summary["primary"], "")
    rows.append((best, f"{summary[best]:.4g}{unit}", f"at epoch {summary['best/epoch']:g}"))
    minutes, seconds = divmod(round(summary["seconds"]), 60)
    lines = [
        "",
        f"{title}: {summary['epochs']:g} epochs, {summary['steps']} steps, "
        f"{minutes} min {seconds} s, {summary['parameters']:,} parameters",
        *(f"  {left:<14} {ours:>10}  {paper:>10}".rstrip() for left, ours, paper in rows),
        *([f"  paper    {published['source']}"] if "source" in published else []),
        f"  curves   {run_dir / 'curves.png'}",
        f"  weights  {run_dir / 'checkpoints' / 'best.pt'}",
        f"  browse   tensorboard --logdir {run_dir.parent}",
    ]
    return "\n".join(lines)
