"""The command as it is typed: flags, verbs, sweeps, exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import TINY_SHAPES, command, metrics, summary

import cvtrain
from cvtrain.cli import split_flags
from cvtrain.errors import ConfigError


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], ["model=lenet5", "--help"], ["train", "--help"]]
)
def test_help(arguments: list[str], tmp_path: Path) -> None:
    done = command(*arguments, cwd=tmp_path, fresh=True)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("model ", "resnet20", "optimizer ", "recipe ", "trainer.duration", "verbs", "-m"):
        assert word in done.stdout
    assert all(len(line) <= 100 for line in done.stdout.splitlines())
    assert not list(tmp_path.iterdir())


def test_version_of_the_installed_command(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("cvtrain")
    if not script.exists():
        pytest.skip("the package is not installed, so there is no cvtrain script")
    done = subprocess.run([script, "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"cvtrain {cvtrain.__version__}\n",
        "",
    )


def test_cfg_job_shows_what_would_run(tmp_path: Path) -> None:
    words = ("model=resnet20", "--cfg", "job", "data=cifar10", "optimizer.lr=0.25")
    done = command(*words, cwd=tmp_path, fresh=True)
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert shown["model"]["depth"] == 20
    assert shown["optimizer"]["lr"] == 0.25
    assert shown["scheduler"]["milestones"] == ["32000st", "48000st"]  # from the recipe
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian", "model=cnn"], "trian is neither a verb nor key=value; verbs: train"),
        (["model=cnn", "extra"], "extra is no override"),
        (["--nonsense"], "no flag --nonsense"),
        (["optimizer.lrr=1"], "type optimizer.lr=1"),
        (["--config-dir", "nowhere"], "nowhere is no directory"),
        (["-m", "optimizer.lrr=1,2"], "optimizer.lr"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = command(*arguments, cwd=tmp_path, fresh=True)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("cvtrain: error[")
    assert words in lines[-1]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("config.yaml"))


def test_traceback_on_request(tmp_path: Path) -> None:
    done = command("optimizer.lr=-1", "traceback=true", cwd=tmp_path, fresh=True)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("cvtrain: error[CONFIG]")


@pytest.mark.parametrize(
    ("typed", "flags", "words"),
    [
        ("a=1 -m b=2", ["-m"], ["a=1", "b=2"]),
        ("a=1 --cfg job b=2", ["--cfg", "job"], ["a=1", "b=2"]),
        ("a=1 --config-dir=x", ["--config-dir=x"], ["a=1"]),
        ("a=1 --config-dir x b=--c", ["--config-dir", "x"], ["a=1", "b=--c"]),
        ("a=-1 ~b +c=2", [], ["a=-1", "~b", "+c=2"]),
        ("train -m", ["-m"], ["train"]),
    ],
)
def test_flags_come_first(typed: str, flags: list[str], words: list[str]) -> None:
    assert split_flags(typed.split()) == (flags, words)


def test_unknown_flag() -> None:
    with pytest.raises(ConfigError, match="--multi-run"):
        split_flags(["model=cnn", "--multi-run"])


def test_sweep_of_models_and_rates(tmp_path: Path) -> None:
    """Each job of a sweep is a run like any other: its own recipe, its own directory."""
    done = command(
        *("-m", "model=lenet5,cnn", "optimizer.lr=0.1,0.01", "debug=smoke"),
        *("data.root=shapes", *TINY_SHAPES, "hydra.sweep.dir=sweep"),
        "hydra.sweep.subdir=${hydra.job.num}",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    jobs = [("lenet5", 0.1), ("lenet5", 0.01), ("cnn", 0.1), ("cnn", 0.01)]
    assert sorted(f.parent.name for f in tmp_path.rglob("summary.json")) == ["0", "1", "2", "3"]
    for number, (model, rate) in enumerate(jobs):
        run = tmp_path / "sweep" / str(number)
        told = summary(run)
        assert (told["model"], told["data"], told["steps"]) == (model, "shapes", 2)
        assert told["recipe"] == f"{model}_shapes"
        stored = yaml.safe_load((run / "config.yaml").read_text())
        assert stored["optimizer"]["lr"] == rate
        assert stored["optimizer"]["nesterov"] is True  # the recipe's, for every job
    first = [metrics(tmp_path / "sweep" / number)[0] for number in "0123"]
    assert first[0]["train/lr"] == first[2]["train/lr"] == pytest.approx(10 * first[1]["train/lr"])
    # One seed: the same weights and first batch, whatever this process has run before.
    assert first[0]["train/loss"] == first[1]["train/loss"] != first[2]["train/loss"]
    assert first[2]["train/loss"] == first[3]["train/loss"]


def test_a_failed_job_does_not_end_the_sweep(tmp_path: Path) -> None:
    done = command(
        *("model=lenet5", "-m", "data.batch_size=9999,4", "debug=smoke"),  # 32 images
        *("data.root=shapes", *TINY_SHAPES, "hydra.sweep.dir=sweep"),
        "hydra.sweep.subdir=${hydra.job.num}",
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "error[NO-STEPS]" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "sweep" / "0" / "summary.json").exists()
    assert summary(tmp_path / "sweep" / "1")["steps"] == 2


def test_a_run_by_default_name(tmp_path: Path) -> None:
    """`python -m cvtrain`, a typed verb, the directory's default name, and what a run leaves."""
    words = ("debug=smoke", "report=true", "data.root=shapes", *TINY_SHAPES)
    done = command("train", *words, cwd=tmp_path, fresh=True)
    assert done.returncode == 0, done.stderr
    [run] = (tmp_path / "outputs" / "cnn_shapes").iterdir()
    names = {path.name for path in run.iterdir() if not path.name.startswith(("events.", "git"))}
    assert names == {
        *("config.yaml", "metrics.jsonl", "status.json", "summary.json", "environment.json"),
        *("curves.png", "samples.png", "confusion.png", "worst.png", "reliability.png"),
        *("checkpoints", "origins.json", "report.html"),
    }
    assert "top1_err" in done.stdout
    assert str(run.relative_to(tmp_path)) in done.stdout
    assert [line["step"] for line in metrics(run)] == [1, 1, 2, 2]
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert "hydra" not in stored
    assert stored["trainer"]["duration"] == "2st"
