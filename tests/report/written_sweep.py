"""Folders of sweeps as jobs leave them: jobs/SLUG.json, and the run's own directory beside."""

import json
from pathlib import Path
from typing import Any


def write_job(
    sweep: Path,
    swept: dict[str, str],
    figures: dict[str, float] | None = None,
    *,
    fixed: tuple[str, ...] = ("data=mnist",),
    run: str = "",
    state: str = "done",
    error: str | None = None,
    primary: str = "top1_err",
    best: float | None = None,
    summary: bool = True,
) -> Path:
    """One job; `figures` of its last evaluation by name without `val/`, none before it has one."""
    run = run or ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in swept.items())
    (sweep / "jobs").mkdir(parents=True, exist_ok=True)
    overrides = [*fixed, *(f"{key}={value}" for key, value in swept.items())]
    job = {
        **{"run": run, "overrides": overrides, "swept": swept, "state": state, "error": error},
        **{"exit_code": 0 if state == "done" else None, "figure": None, "seconds": 7.5},
    }
    write_json(sweep / "jobs" / f"{run}.json", job)
    folder = sweep / run
    folder.mkdir()
    if figures is None:
        return folder
    last = {f"val/{name}": value for name, value in figures.items()}
    lines = [
        {"step": 5, "epoch": 0.5, "train/loss": 2.0},
        {"step": 10, "epoch": 1.0, **{name: value + 1 for name, value in last.items()}},
        {"step": 20, "epoch": 2.0, "train/loss": 1.0},
        {"step": 20, "epoch": 2.0, **last},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(f"seed: {swept.get('seed', 0)}\n")
    write_json(folder / "status.json", {"state": state if state != "killed" else "running"})
    if state == "done" and summary:
        about = {
            **{"primary": primary, f"best/{primary}": best, "best/epoch": 1.0, "epochs": 2.0},
            **{"steps": 20, "seconds": 3.25, "train/images_per_sec": 1234.5678901234567},
        }
        write_json(folder / "summary.json", {**last, **about})
    return folder


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content))


def write_sweep(folder: Path, *, name: str = "mine") -> Path:
    """Two rates, two sizes, two seeds; the largest rate has failed, one more job was killed."""
    folder.mkdir(parents=True)
    command = "cvtrain -m data=mnist optimizer.lr=0.1,0.01 data.batch_size=32,64 seed=0,1"
    about = {"name": name, "command": command, "fixed": ["data=mnist"]}
    write_json(folder / "sweep.json", {**about, "started": "2026-11-28 14:00:00"})
    for rate, size, seed, figure in (
        *(("0.1", "32", "0", 4.25), ("0.1", "32", "1", 3.75), ("0.1", "64", "0", 6.0)),
        *(("0.1", "64", "1", 5.0), ("0.01", "32", "0", 10.1), ("0.01", "32", "1", 10.3)),
        *(("0.01", "64", "0", 1 / 3 + 20), ("0.01", "64", "1", 21.0)),
    ):
        swept = {"optimizer.lr": rate, "data.batch_size": size, "seed": seed}
        write_job(folder, swept, {"loss": figure / 7, "top1_err": figure}, best=figure - 0.5)
    swept = {"optimizer.lr": "9", "data.batch_size": "32", "seed": "0"}
    error = "cvtrain: error[NON-FINITE]: the loss is nan; step 12"
    write_job(folder, swept, {"loss": 99.0, "top1_err": 90.0}, state="failed", error=error)
    swept = {"optimizer.lr": "9", "data.batch_size": "64", "seed": "0"}
    write_job(folder, swept, {"loss": 98.0, "top1_err": 89.0}, state="running")  # held by nobody
    return folder
