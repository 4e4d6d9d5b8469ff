"""Directories of runs, file by file as a training leaves them, with names that are hostile."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HOSTILE = "<script>document.title='taken'</script>"
CLASSES = (HOSTILE, "a&b", "</table>", '"quoted"', "c" * 60, "Ωμέγα", "x", "y", "z", "w")


def write_run(folder: Path, *, detector: bool = False, **summary: Any) -> Path:
    """A finished run of ten classes."""
    folder.mkdir(parents=True)
    figures = figures_of_detector() if detector else figures_of_classifier()
    lines = list(metrics(detector))
    last = {name: value for name, value in lines[-1].items() if name.startswith("val/")}
    about = {
        **{"steps": 3000, "epochs": 12.0, "seconds": 476.41, "skipped_steps": 0},
        **{"time": {"data": 33.06, "compute": 430.2, "eval": 7.44, "save": 0.43}},
        **{"parameters": 590514, "peak_memory_bytes": 880611328, "best/step": 3000},
        **{"best/epoch": 12.0, "train/images_per_sec": 51.145, "model": "net", "data": "things"},
        **{"recipe": "none", "seed": 0, "device": "cpu"},
    }
    write_json(folder / "summary.json", {**last, **about, **figures, **summary})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(f'seed: 0\ndata:\n  root: "{HOSTILE}"\n')
    origins = {
        "seed": [{"value": 0, "kind": "default", "where": "configs/config.yaml:1"}],
        "data.root": [
            {"value": "data", "kind": "default", "where": "configs/data/things.yaml:2"},
            {"value": HOSTILE, "kind": "command line", "where": f"data.root={HOSTILE}"},
        ],
    }
    write_json(folder / "origins.json", origins)
    write_json(folder / "status.json", {"state": "done", "exit_code": 0, "error": None})
    write_json(folder / "environment.json", {"starts": [start()]})
    (folder / "git.diff").write_text(f"+{HOSTILE}\n" + "+" + "long " * 200 + "\n")
    pictures = ("detections", "missed", "samples") if detector else ("worst", "samples")
    for number, name in enumerate(pictures):
        noise = np.random.default_rng(number).integers(0, 256, (90, 160, 3), dtype=np.uint8)
        size = (2600, 1300) if name == "detections" else (640, 640)
        Image.fromarray(noise).resize(size).save(folder / f"{name}.png")
    return folder


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content))


def start() -> dict[str, Any]:
    git = {"root": "/src", "revision": "f" * 40, "branch": HOSTILE, "dirty": True}
    return {
        "command": f"/usr/bin/cvtrain 'data.root={HOSTILE}' " + "a.long.key=value " * 20,
        **{"cwd": "/home", "host": "here", "started": "2026-11-23 04:04:52 +0000"},
        **{"cpu": "A processor", "cores": 2, "threads": 1, "memory_bytes": 25276518400},
        **{"gpus": [], "versions": {"torch": "2.15.0"}, "environment": {"X": HOSTILE}},
        "git": {**git, "diff": "git.diff"},
    }


def metrics(detector: bool) -> Any:
    """As a network that learns; a loss that is not finite is in it."""
    for step in range(50, 3001, 50):
        loss = math.nan if step == 100 else 2 * math.exp(-step / 500) + 0.02
        parts = {"train/cls": 0.7 * loss, "train/box": 0.3 * loss} if detector else {}
        speed = {"train/lr": 0.1 * (1 - step / 3001), "train/images_per_sec": 9000 + step % 700}
        yield {"step": step, "epoch": step / 250, "train/loss": loss, **parts, **speed}
        if step % 250 == 0:
            found = {"val/mAP": step / 40, "val/mAP50": step / 32, "val/AR100": step / 38}
            wrong = {"val/loss": 0.03, "val/top1_err": 2500 / step, "val/top5_err": 0.0}
            yield {"step": step, "epoch": step / 250, **(found if detector else wrong)}


def figures_of_classifier() -> dict[str, Any]:
    matrix = np.full((10, 10), 3) + np.diag([900] * 10)
    row = {"error": 2.9126, "samples": 927, "precision": 97.0874, "recall": 97.0874, "f1": None}
    bins = [
        {"above": k / 15, "to": (k + 1) / 15, "samples": k, "confidence": 50.0, "accuracy": 60.0}
        for k in range(15)
    ]
    bins[0] |= {"confidence": None, "accuracy": None}
    return {
        **{"primary": "top1_err", "best/top1_err": 0.83, "ece": 0.4231, "calibration": bins},
        **{"per_class": dict.fromkeys(CLASSES, row), "confusion": matrix.tolist()},
        "published": {"top1_err": 0.95, "source": f"A paper, {HOSTILE}"},
    }


def figures_of_detector() -> dict[str, Any]:
    precision = {name: [1 - k / 120 for k in range(101)] for name in CLASSES}
    return {
        **{"primary": "mAP", "best/mAP": 75.0, "published": {}},
        "per_category": {name: 70.0 + k for k, name in enumerate(CLASSES)} | {CLASSES[1]: None},
        "precision_recall": {"0.5": {**precision, CLASSES[1]: None}, "0.75": precision},
    }
