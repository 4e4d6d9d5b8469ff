"""The leaderboard: who is first, what is averaged, what stands there of jobs that did not end."""

import csv
import fcntl
import json
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from written_sweep import write_job, write_json, write_sweep

from cvtrain.errors import CheckpointError, MachineError
from cvtrain.report.board import Board
from cvtrain.report.effects import effects, filled, share
from cvtrain.report.sweep import MOST_ROWS, find_sweep, write_leaderboard
from cvtrain.report.sweep_record import SweepRecord


def board_of(folder: Path) -> Board:
    return Board.of(SweepRecord.read(folder))


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "leaderboard.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweeps") / "mine")


@pytest.fixture(scope="module")
def said(sweep: Path) -> list[str]:
    return write_leaderboard(sweep)


def test_a_row_for_each_job(sweep: Path, said: list[str]) -> None:
    """Numbers as summary.json has them, to the last digit."""
    rows = rows_of(sweep)
    assert len(rows) == 10
    done = [row for row in rows if row["state"] == "done"]
    assert len(done) == 8
    for row in done:
        told = json.loads((sweep / row["run"] / "summary.json").read_text())
        for name, value in told.items():
            if name != "primary":
                assert float(row[name]) == value, name


def test_seeds_are_averaged(sweep: Path, said: list[str]) -> None:
    """By hand: (4.25 + 3.75) / 2 = 4, and sqrt(0.25² + 0.25²) = 0.354."""
    first, second = rows_of(sweep)[:2]
    for row in (first, second):
        assert (row["rank"], row["n"]) == ("1", "2")
        assert float(row["mean"]) == 4.0
        assert float(row["deviation"]) == pytest.approx(math.sqrt(0.125), abs=1e-15)
    assert (first["seed"], second["seed"]) == ("1", "0")  # the better one first
    assert [row["rank"] for row in rows_of(sweep)] == [*"11223344", "", ""]


def test_what_the_terminal_shows(sweep: Path, said: list[str]) -> None:
    assert said[1] == "sweep mine: 10 jobs, 8 done, 1 failed, 1 killed"
    head, first, second = said[2:5]
    assert head.split() == [
        *("rank", "optimizer.lr", "data.batch_size", "top1_err", "best", "epochs", "time"),
    ]
    assert " ".join(first.split()) == "1 0.1 32 4.00 ± 0.35 % (n=2) 3.25 % 2 3.25 s"
    assert "5.50 ± 0.71 % (n=2)" in second
    assert len({line.index("%") for line in said[3:7]}) == 1  # aligned
    assert len({len(line) for line in said[2:7]}) == 1
    [failed] = [line for line in said if line.startswith("  failed")]
    assert failed.endswith("cvtrain: error[NON-FINITE]: the loss is nan; step 12")
    assert any(line.startswith("  killed") and "no process holds" in line for line in said)
    [command] = [line for line in said if line.startswith("    cvtrain ")]
    typed = ["data=mnist", "optimizer.lr=0.1", "data.batch_size=32", "seed=1"]
    assert shlex.split(command) == ["cvtrain", *typed]
    assert said[-2:] == [
        f"  table    {sweep / 'leaderboard.csv'}",
        f"  page     {sweep / 'leaderboard.html'}",
    ]


def test_three_by_three_by_two_seeds(tmp_path: Path) -> None:
    """18 rows, a job each, and nine groups of two."""
    for number in range(18):
        swept = {"a": f"{number % 3}", "b": f"{number // 3 % 3}", "seed": f"{number // 9}"}
        write_job(tmp_path, swept, {"top1_err": float(number)})
    write_leaderboard(tmp_path)
    rows = rows_of(tmp_path)
    assert len({row["run"] for row in rows}) == len(rows) == 18
    assert [int(row["rank"]) for row in rows] == [rank for rank in range(1, 10) for _ in "ab"]
    assert {row["n"] for row in rows} == {"2"}
    deviations = [float(row["deviation"]) for row in rows]
    assert deviations == pytest.approx([9 / math.sqrt(2)] * 18)


def test_jobs_that_did_not_end(sweep: Path, said: list[str]) -> None:
    """The last evaluation so far, no rank, no best; the error in its row."""
    rows = {row["state"]: row for row in rows_of(sweep) if row["state"] != "done"}
    assert rows.keys() == {"failed", "killed"}
    assert rows["failed"]["error"].startswith("cvtrain: error[NON-FINITE]")
    assert float(rows["failed"]["val/top1_err"]) == 90.0
    assert float(rows["killed"]["val/loss"]) == 98.0
    assert (rows["killed"]["epochs"], rows["killed"]["steps"]) == ("2.0", "20")
    for row in rows.values():
        assert (row["rank"], row["mean"], row["n"], row["best/top1_err"]) == ("", "", "0", "")
        assert row["command"].startswith("cvtrain data=mnist optimizer.lr=9 ")


def test_the_higher_the_better(tmp_path: Path) -> None:
    for rate, figure in (("1", 30.0), ("2", 50.0), ("3", 40.0)):
        write_job(tmp_path, {"rate": rate}, {"mAP": figure, "loss": 1.0}, primary="mAP", best=60.0)
    found = board_of(tmp_path)
    assert [group.mean for group in found.groups] == [50.0, 40.0, 30.0]
    assert found.best is not None
    assert found.best.run == "rate=2"


def test_without_a_seed_every_job_is_a_row(tmp_path: Path) -> None:
    for number, figure in enumerate((2.0, 1.0, 3.0)):
        write_job(tmp_path, {"rate": "1"}, {"top1_err": figure}, run=f"same{number}")
    found = board_of(tmp_path)
    assert [(group.mean, group.deviation) for group in found.groups] == [
        *((1.0, None), (2.0, None), (3.0, None)),
    ]


def test_a_second_command_of_the_same_name(tmp_path: Path) -> None:
    """Its own axes, dashes where it has none; what it fixes otherwise is an axis, too."""
    write_job(tmp_path, {"lr": "0.1", "seed": "0"}, {"top1_err": 3.0})
    write_job(tmp_path, {"lr": "0.1", "seed": "1"}, {"top1_err": 5.0})
    other = ("data=mnist", "data.limit=100")
    write_job(tmp_path, {"width": "4", "seed": "0"}, {"top1_err": 1.0}, fixed=other)
    found = board_of(tmp_path)
    assert found.axes == ["lr", "seed", "width", "data.limit"]
    assert [group.values for group in found.groups] == [[None, "4", "100"], ["0.1", None, None]]
    assert [group.mean for group in found.groups] == [1.0, 4.0]
    assert found.ranked[1].deviation == pytest.approx(math.sqrt(2))
    write_leaderboard(tmp_path)
    assert rows_of(tmp_path)[0]["lr"] == ""


def test_a_job_that_runs_is_not_ranked(tmp_path: Path) -> None:
    """Its directory is held, and it is better than all that ended."""
    write_job(tmp_path, {"lr": "1", "seed": "0"}, {"top1_err": 9.0})
    running = write_job(tmp_path, {"lr": "1", "seed": "1"}, {"top1_err": 1.0}, state="running")
    write_json(running / "summary.json", {"val/top1_err": 99.0})  # it was done, and is extended
    handle = os.open(running, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        said = write_leaderboard(tmp_path)
    finally:
        os.close(handle)
    assert said[1] == f"sweep {tmp_path.name}: 2 jobs, 1 done, 1 running"
    assert any(line.startswith("  running  lr=1,seed=1: epoch 2") for line in said)
    done, held = rows_of(tmp_path)
    assert (done["mean"], done["n"], done["deviation"]) == ("9.0", "1", "")
    assert (held["state"], held["val/top1_err"], held["rank"]) == ("running", "1.0", "1")


def test_a_job_that_has_only_just_begun(tmp_path: Path) -> None:
    """It has no directory yet; while the sweep is held, it is about to have one."""
    write_job(tmp_path, {"lr": "1"}, {"top1_err": 9.0})
    told = {"run": "new", "swept": {"lr": "2"}, "overrides": ["lr=2"], "state": "running"}
    write_json(tmp_path / "jobs" / "new.json", told)
    assert write_leaderboard(tmp_path)[1].endswith("2 jobs, 1 done, 1 killed")
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        assert write_leaderboard(tmp_path)[1].endswith("2 jobs, 1 done, 1 running")
    finally:
        os.close(handle)


def cut(file: Path) -> None:
    text = file.read_text()
    file.write_text(text[: len(text) // 2])


def test_files_that_are_cut_off_or_missing(tmp_path: Path) -> None:
    for name in ("whole", "summary", "metrics", "job", "gone"):
        write_job(tmp_path, {"name": name}, {"top1_err": 5.0})
    cut(tmp_path / "name=summary" / "summary.json")
    cut(tmp_path / "name=metrics" / "metrics.jsonl")
    cut(tmp_path / "jobs" / "name=job.json")
    for file in (tmp_path / "name=gone").iterdir():
        file.unlink()
    (tmp_path / "name=gone").rmdir()
    write_job(tmp_path, {"name": "refused"}, state="failed", error="cvtrain: error[CONFIG]: no")
    (tmp_path / "name=refused").rmdir()
    write_leaderboard(tmp_path)
    rows = {row["run"]: row for row in rows_of(tmp_path)}
    assert len(rows) == 6
    ranked = {run for run, row in rows.items() if row["rank"]}
    # Of a run that is done, metrics.jsonl ends with the figures of summary.json.
    assert ranked == {"name=whole", "name=summary", "name=metrics", "name=job"}
    assert rows["name=summary"]["error"] == "summary.json is missing or cut off"
    assert rows["name=gone"]["error"] == "summary.json is missing or cut off"
    assert (rows["name=refused"]["state"], rows["name=refused"]["error"]) == (
        *("failed", "cvtrain: error[CONFIG]: no"),
    )


def test_a_figure_that_is_not_finite_is_not_ranked(tmp_path: Path) -> None:
    write_job(tmp_path, {"lr": "1"}, {"top1_err": math.nan})
    write_job(tmp_path, {"lr": "2"}, {"top1_err": 50.0})
    write_leaderboard(tmp_path)
    assert [(row["lr"], row["rank"]) for row in rows_of(tmp_path)] == [("2", "1"), ("1", "")]


def test_before_any_job_has_a_figure(tmp_path: Path) -> None:
    write_job(tmp_path, {"lr": "1"}, state="running")
    said = write_leaderboard(tmp_path)
    assert "  no job has ended with a figure yet" in said
    assert (tmp_path / "leaderboard.html").stat().st_size < 30_000  # no chart, so no Bokeh


def test_a_long_table_is_cut(tmp_path: Path) -> None:
    for number in range(MOST_ROWS + 7):
        write_job(tmp_path, {"lr": str(number)}, {"top1_err": float(number)})
    said = write_leaderboard(tmp_path)
    assert "  and 7 more: see leaderboard.csv" in said
    assert len(rows_of(tmp_path)) == MOST_ROWS + 7


def test_into_another_folder(sweep: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in sweep.rglob("*")}
    write_leaderboard(sweep, tmp_path / "new" / "place")
    assert {path.name for path in (tmp_path / "new" / "place").iterdir()} == {
        *("leaderboard.csv", "leaderboard.html"),
    }
    assert {path: path.stat().st_mtime_ns for path in sweep.rglob("*")} == before


def test_no_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="none"):
        find_sweep("last")
    for age, name in enumerate(("newer", "older")):
        write_job(tmp_path / "outputs/sweep" / name, {"lr": "1"})
        for folder in (
            tmp_path / "outputs/sweep" / name,
            tmp_path / "outputs/sweep" / name / "jobs",
        ):
            os.utime(folder, (1e9 - age, 1e9 - age))
    assert find_sweep("last") == Path("outputs/sweep/newer")
    assert find_sweep("older") == Path("outputs/sweep/older")
    assert find_sweep("outputs/sweep/older") == Path("outputs/sweep/older")
    with pytest.raises(CheckpointError, match=r"no such sweep.*newer, older") as raised:
        find_sweep("odler")
    assert (raised.value.code, raised.value.name) == (4, "NO-SWEEP")
    (tmp_path / "empty" / "jobs").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no job was begun"):
        write_leaderboard(tmp_path / "empty")


def test_a_place_that_cannot_be_written(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="out="):
        write_leaderboard(sweep, tmp_path / "file")


# What a parameter does


def test_shares_of_the_variance() -> None:
    """By hand: of 1, 3 | 5, 7 the mean is 4, the total 9+1+1+9 = 20, between 2·4 + 2·4 = 16."""
    assert share([[1.0, 3.0], [5.0, 7.0]]) == pytest.approx(80.0)
    assert share([[1.0, 5.0], [3.0, 3.0]]) == pytest.approx(0.0)
    assert share([[2.0, 2.0], [2.0]]) is None
    assert share([[1.0], [2.0], [3.0]]) is None  # each alone would explain everything


def test_effects_of_a_whole_grid(tmp_path: Path) -> None:
    """A sum of two parameters: their shares make up everything."""
    for one, two in ((1, 1), (1, 2), (2, 1), (2, 2)):
        write_job(tmp_path, {"one": f"{one}", "two": f"{two}"}, {"top1_err": 10.0 * one + two})
    found = effects(board_of(tmp_path))
    assert {effect.axis: effect.means for effect in found} == {
        "one": {"1": 11.5, "2": 21.5},
        "two": {"1": 16.0, "2": 17.0},
    }
    shares = [effect.share for effect in found]
    assert shares == pytest.approx([100 * 100 / 101, 100 / 101])
    assert filled(found) == (4, 4)


def test_a_grid_with_holes_is_said_to_be_one(tmp_path: Path) -> None:
    for number in range(3):  # the diagonal: which of the two it is, nobody can tell
        swept = {"one": f"{number}", "two": f"{number}"}
        write_job(tmp_path, swept, {"top1_err": 1.0 + number})
    assert filled(effects(board_of(tmp_path))) == (3, 9)
    write_leaderboard(tmp_path)
    page = (tmp_path / "leaderboard.html").read_text(encoding="utf-8")
    assert "cannot be told: of the 9 combinations of their values 3 have a figure" in page
    assert "eta squared" not in page


def test_numbers_are_ordered_by_size(tmp_path: Path) -> None:
    for rate in ("1e-3", "0.1", "10", "2"):
        write_job(tmp_path, {"lr": rate}, {"top1_err": 1.0})
    assert SweepRecord.read(tmp_path).values("lr") == ["1e-3", "0.1", "2", "10"]


# Loading


def loaded(code: str, names: tuple[str, ...], cwd: Path) -> Any:
    check = f"import sys, json\n{code}\nprint(json.dumps([n for n in {names} if n in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=cwd
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_a_leaderboard_is_made_without_torch(sweep: Path, tmp_path: Path) -> None:
    heavy = ("torch", "torchvision", "pandas", "matplotlib", "tensorflow")
    head = "from pathlib import Path\nfrom cvtrain.report.sweep import write_leaderboard\n"
    make = f"write_leaderboard(Path({str(sweep)!r}))"
    assert loaded(head, (*heavy, "bokeh", "tensorboard"), tmp_path) == []
    assert loaded(head + make, heavy, tmp_path) == []


def test_a_name_that_no_encoding_has(tmp_path: Path) -> None:
    write_json(tmp_path / "sweep.json", {"name": "\udcff"})
    write_job(tmp_path, {"data.root": 'a\udcff,"b"\nc'}, {"top1_err": 1.0}, run="x")
    write_leaderboard(tmp_path)
    assert rows_of(tmp_path)[0]["data.root"] == 'a?,"b"\nc'
