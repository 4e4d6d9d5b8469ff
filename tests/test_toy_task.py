"""A task that is no classification, of a user's own package: the seams hold, nothing is special."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from tiny import command, metrics, summary

from cvtrain.engine.checkpoint import read_checkpoint

TESTS = Path(__file__).parent
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
TOY = [
    *("--config-dir", str(TESTS / "toy" / "configs"), "model=toy_net", "data=toy_line"),
    *("optimizer=adam", "optimizer.lr=0.03", "scheduler=cosine", "trainer.duration=12ep"),
    *("trainer.log_every=7st", "trainer.checkpoint_every=35st", "trainer.accumulate=2"),
    "eval.every=5ep",
]


def toy(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return command(*TOY, *arguments, cwd=cwd, env=ENVIRONMENT)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("toy")
    done = toy("trust=[toy]", "hydra.run.dir=run", cwd=root)
    assert done.returncode == 0, done.stderr
    return root / "run", done.stdout


def test_it_learns(trained: tuple[Path, str]) -> None:
    run, _ = trained
    told = summary(run)
    assert (told["model"], told["data"], told["recipe"]) == ("toy_net", "toy_line", "none")
    assert told["steps"] == 120
    # The noise alone leaves 0.0004; predicting the mean leaves 1.1.
    assert told["val/mse"] < 0.01
    assert told["val/r2"] > 0.99
    logged = [line for line in metrics(run) if "train/fit" in line]
    assert logged[0]["train/fit"] > 10 * logged[-1]["train/fit"]
    assert all(line["train/loss"] == line["train/fit"] for line in logged)
    # The task says that more is better, and best.pt follows it.
    best = max(line["val/r2"] for line in metrics(run) if "val/r2" in line)
    assert told["best/r2"] == best
    assert (
        yaml.safe_load((run / "config.yaml").read_text())["task"]["_target_"]
        == "toy.line.Regression"
    )
    assert (run / "curves.png").stat().st_size > 0


def test_the_table_does_not_take_it_for_an_error_rate(trained: tuple[Path, str]) -> None:
    _, printed = trained
    lines = [line for line in printed.splitlines() if "r2" in line or "mse" in line]
    assert len(lines) == 3
    assert not any("%" in line for line in lines)


def test_it_resumes_to_the_same_bits(trained: tuple[Path, str]) -> None:
    run, _ = trained
    checkpoints = sorted((run / "checkpoints").glob("step_*.pt"))
    steps = {read_checkpoint(file)["position"]["step"]: file for file in checkpoints}
    before = steps[105]  # in the middle of an epoch of ten steps
    done = toy("trust=[toy]", f"resume={before}", "hydra.run.dir=again", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    ends = [read_checkpoint(r / "checkpoints" / "last.pt") for r in (run, run.parent / "again")]
    for name, tensor in ends[0]["model"].items():
        assert torch.equal(ends[1]["model"][name], tensor), name
    assert ends[0]["position"]["metrics"] == ends[1]["position"]["metrics"]
    assert summary(run.parent / "again")["val/r2"] == summary(run)["val/r2"]


def test_without_trust_it_is_refused(tmp_path: Path) -> None:
    done = toy("hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("cvtrain: error[TARGET]: ")
    assert "toy.line." in line
    assert "trust=[" in line
    assert not (tmp_path / "run").exists()


def test_it_does_not_mix_with_pictures(tmp_path: Path) -> None:
    done = toy("trust=[toy]", "model=cnn", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert "a classification network cannot train on regression data" in line
    assert "toy_net" in line
    assert not (tmp_path / "run").exists()
