"""`cvtrain -m`: what is finished is not run again, what failed is told and tried again."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tiny import summary, write_mnist

from cvtrain import cli
from cvtrain.config import MAXIMISED, options
from cvtrain.errors import BusyError, ConfigError, SweepError
from cvtrain.sweep import ledger, run

BASE = [
    *("data=mnist", "data_dir=digits", "trainer.duration=3st", "data.batch_size=16"),
    *("trainer.threads=1", "trainer.progress=no"),
]
MLP = ["model=mlp", "model.hidden=[8]", *BASE]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with `digits`."""
    write_mnist(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cvtrain"])
    return tmp_path


def sweep(*words: str) -> None:
    assert cli.run(["-m", *words]) == 0


def jobs(folder: Path) -> dict[str, dict[str, Any]]:
    """By what varies."""
    found = [json.loads(file.read_text()) for file in (folder / "jobs").glob("*.json")]
    return {" ".join(job["swept"].values()): job for job in found}


def starts(folder: Path) -> dict[str, int]:
    """How often each run was begun."""
    files = sorted(folder.glob("*/environment.json"))
    return {file.parent.name: len(json.loads(file.read_text())["starts"]) for file in files}


def test_again_and_further(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sweep that is typed again does nothing; with a further value, only that."""
    sweep("optimizer.lr=0.1,0.01", "seed=0,1", *MLP, "sweep=rates")
    folder = home / "outputs/sweep/rates"
    first = jobs(folder)
    assert set(first) == {"0.1 0", "0.1 1", "0.01 0", "0.01 1"}
    for job in first.values():
        told = summary(folder / job["run"])
        assert job["state"] == "done"
        assert job["figure"] == told["val/top1_err"]
        assert told["steps"] == 3
    capsys.readouterr()
    sweep(*MLP, "seed=0,1", "optimizer.lr=0.1,0.01", "sweep=rates")
    said = capsys.readouterr().out
    assert said.count("finished before") == 4
    sweep("optimizer.lr=0.1,0.01,0.02", "seed=0,1", *MLP, "sweep=rates")
    assert len(jobs(folder)) == 6
    assert {job["run"]: 1 for job in jobs(folder).values()} == starts(folder)
    assert json.loads((folder / "sweep.json").read_text())["command"].endswith("sweep=rates")
    rows = (folder / "leaderboard.csv").read_text().splitlines()
    assert len(rows) == 1 + 6
    assert "6 jobs, 6 done" in capsys.readouterr().out


def test_without_a_name(home: Path) -> None:
    """The words themselves are the name."""
    sweep("seed=0,1", *MLP)
    sweep("seed=2,1,0", *MLP)
    [folder] = (home / "outputs/sweep").iterdir()
    assert folder.name.startswith("seed-")
    assert starts(folder) == {job["run"]: 1 for job in jobs(folder).values()}
    assert len(jobs(folder)) == 3


def test_a_job_that_fails_is_a_row(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others run; the exit code says so at the end; next time it is tried again."""
    words = ["optimizer.lr=1e30,0.01", *MLP, "trainer.log_every=1st", "hydra.sweep.dir=mine"]
    for _ in range(2):
        with pytest.raises(SweepError, match=r"1 job failed: lr_1e\+30-\w+: error\[NON-FIN") as end:
            sweep(*words)
        assert end.value.code == 5
    found = jobs(home / "mine")
    assert found["0.01"]["state"] == "done"
    assert found["1e+30"]["state"] == "failed"
    assert found["1e+30"]["exit_code"] == 5
    assert found["1e+30"]["error"].startswith("cvtrain: error[NON-FINITE]: not finite: ")
    assert sorted(starts(home / "mine").values()) == [1, 2]
    table = (home / "mine/leaderboard.csv").read_text()
    assert "NON-FINITE" in table
    sweep(*words[1:], "optimizer.lr=0.01")  # what failed before, and is not asked for, is no error


def test_a_bug_in_a_job(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a class of the user's: the rest of the sweep goes on."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "reliability"))
    monkeypatch.setitem(os.environ, "FAULT", "losses 2 RAISE")
    own = ["trust=[user_code]", "task._target_=user_code.Faulty"]
    with pytest.raises(SweepError, match=r"2 jobs failed: .*BUG.*a bug of the user's") as error:
        sweep("seed=0,1", *MLP, *own)
    assert error.value.code == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["model=lenet5,cnn,resnt50"], "there is no model named resnt50.*model=resnet50"),
        (["optimizer.lr=0.1,0.01,oops"], "optimizer.lr=oops is not a number"),
        (["optimizer.lr=0.1,0.01,-1"], "optimizer.lr=-1 is out of range"),
        (["optimizer.lrr=0.1,0.01"], "there is no key optimizer.lrr.*type optimizer.lr="),
        (["model=lenet5,faster_rcnn_tiny"], "a detection network cannot train on classification"),
        (["seed=0,1", "hydra/launcher=ray"], "no hydra/launcher named ray.*basic"),
        (["seed=0,1", "sweep=a/b"], "sweep=a/b is no name"),
        (["seed=0,1", "sweep=a", "hydra.sweep.dir=b"], "a sweep has one place"),
    ],
)
def test_a_mistake_is_told_before_anything_is_made(home: Path, words: list[str], line: str) -> None:
    """In the last value as in the first."""
    with pytest.raises(ConfigError, match=line):
        sweep(*words, *BASE)
    assert [file.name for file in home.rglob("*") if file.suffix not in (".gz", "")] == []
    assert not list(home.glob("**/jobs"))


def test_of_many_jobs_every_value_is_looked_at(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "CHECKED", 3)
    looked: list[list[str]] = []
    monkeypatch.setattr(run, "compose_config", lambda words, **_: looked.append(words))
    run.check_jobs(run.Typed.parse(["seed=0,1,2,3", "optimizer.lr=0.1,0.2", "data=mnist"]), None)
    assert len(looked) == 5  # of eight
    assert {word for words in looked for word in words} >= {"seed=3", "optimizer.lr=0.2"}


def test_a_plugin_that_is_not_installed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    for word in run.PLUGINS:
        with pytest.raises(ConfigError, match=rf"{word} is not installed.*'cvtrain\[sweep\]'"):
            sweep("seed=0,1", *BASE, word)
    assert not (home / "outputs").exists()


@pytest.mark.fault("X1")
def test_two_sweeps_in_one_directory(home: Path) -> None:
    with (
        ledger.held(home / "mine"),
        pytest.raises(BusyError, match="another process runs this sweep") as busy,
    ):
        sweep("seed=0,1", *MLP, "hydra.sweep.dir=mine")
    assert busy.value.code == 7
    assert not list((home / "mine/jobs").iterdir())


def test_a_name_alone_is_no_sweep(home: Path) -> None:
    with pytest.raises(ConfigError, match="sweep=x; type cvtrain -m"):
        cli.run([*MLP, "sweep=x"])


def test_torchrun_begins_no_sweep(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"cvtrain -m ... trainer.devices=2"):
        sweep("seed=0,1", *MLP)


def test_a_directory_for_each_job_can_be_typed(home: Path) -> None:
    sweep("seed=0,1", *MLP, "hydra.sweep.dir=mine", "hydra.sweep.subdir=job_${hydra.job.num}")
    assert {file.parent.name for file in home.glob("mine/*/summary.json")} == {"job_0", "job_1"}


def test_a_place_with_the_time(home: Path) -> None:
    """As Hydra's own habit has it."""
    sweep("seed=0", *MLP, "hydra.sweep.dir=many/${now:%Y}")
    [folder] = (home / "many").iterdir()
    assert folder.name.isdigit()
    assert len(jobs(folder)) == 1


def test_which_way_is_up() -> None:
    """For a search: as the tasks themselves say."""
    from cvtrain.compose import compose_config
    from cvtrain.targets import resolve
    from cvtrain.tasks.base import Task

    for name in options("task"):
        data = {"detection": "shapes_boxes", "heads": "shapes_labels", "localization": "shapes_box"}
        config = compose_config([f"data={data.get(name, 'shapes')}"]).config
        task = resolve(config.task.args["_target_"], Task, [])
        assert task.primary.higher_is_better == (name in MAXIMISED)
