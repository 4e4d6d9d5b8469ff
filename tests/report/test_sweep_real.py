"""A leaderboard of real runs: its numbers are those that each run left."""

import csv
import json
import logging
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
from hparams_table import Shown
from tiny import summary, write_mnist
from written_sweep import write_json

from cvtrain.cli import main
from cvtrain.compose import compose_config
from cvtrain.report.sweep import write_leaderboard
from cvtrain.verbs.train import train

JOBS = {"a": {"optimizer.lr": "0.1", "seed": "0"}, "b": {"optimizer.lr": "0.1", "seed": "1"}}
JOBS |= {"c": {"optimizer.lr": "0.02", "seed": "0"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `outputs/sweep/real` is."""
    folder = tmp_path_factory.mktemp("real")
    sweep = folder / "outputs/sweep/real"
    (sweep / "jobs").mkdir(parents=True)
    write_mnist(folder, train=50, val=23)
    for run, swept in JOBS.items():
        words = [
            *("model=mlp", "data=mnist", "recipe=none", "scheduler=constant", f"data_dir={folder}"),
            *("data.batch_size=10", "trainer.duration=2ep", "trainer.threads=1"),
            *(f"{key}={value}" for key, value in swept.items()),
        ]
        typed = [*words, f"hydra.run.dir={sweep / run}"]
        try:
            figure = train(compose_config(typed), typed)
        finally:
            logging.getLogger("cvtrain").handlers = []
        job = {"run": run, "overrides": words, "swept": swept, "state": "done", "figure": figure}
        write_json(sweep / "jobs" / f"{run}.json", job)
    return folder


def test_numbers_are_those_of_the_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["cvtrain", "report", "sweep=real"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert "sweep real: 3 jobs, 3 done" in capsys.readouterr().out
    sweep = folder / "outputs/sweep/real"
    with (sweep / "leaderboard.csv").open(newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    page = (sweep / "leaderboard.html").read_text(encoding="utf-8")
    for run, row in rows.items():
        told = summary(sweep / run)
        shared = {name: told[name] for name in row if name in told}
        assert {name: float(row[name]) for name in shared} == shared
        assert {"val/top1_err", "val/loss", "best/top1_err", "epochs", "seconds"} <= shared.keys()
        job = json.loads((sweep / "jobs" / f"{run}.json").read_text())
        assert float(row["val/top1_err"]) == job["figure"]
        assert all(f'data-value="{told[name]}"' in page for name in told if name.startswith("val/"))
    seeds = [summary(sweep / run)["val/top1_err"] for run in "ab"]
    assert float(rows["a"]["mean"]) == pytest.approx(statistics.fmean(seeds), abs=1e-12)
    assert float(rows["b"]["deviation"]) == pytest.approx(statistics.stdev(seeds), abs=1e-12)
    assert (rows["c"]["n"], rows["c"]["deviation"]) == ("1", "")


def test_tensorboard_has_the_columns_of_the_sweep(folder: Path) -> None:
    sweep = folder / "outputs/sweep/real"
    write_leaderboard(sweep)
    shown = Shown(sweep)
    assert list(shown.settings) == ["optimizer.lr", "seed"]
    assert shown.figures == ["val/top1_err", "val/loss", "val/top5_err"]
    assert shown.groups.keys() == JOBS.keys()
    for run, swept in JOBS.items():
        values = shown.values(run)
        assert {key: values[key] for key in swept} == {key: float(swept[key]) for key in swept}
        told = summary(sweep / run)
        expected = {name: float(np.float32(told[name])) for name in shown.figures}
        assert shown.metrics(run) == expected
