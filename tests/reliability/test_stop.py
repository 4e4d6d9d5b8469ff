"""A first signal lets the step end and saves; a second one ends at once; a resume loses nothing."""

import random
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import (
    EVERY_STEP,
    KILLS,
    Case,
    Result,
    check_checkpoints,
    check_run_dir,
    mlp_case,
    result,
)

Reference = Callable[[Case], Result]
SECONDS = 10  # from a signal to the end, at most


@pytest.mark.fault("P2")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_while_data_are_drawn(tmp_path: Path, name: str) -> None:
    """Nothing is left: neither a run directory nor half a data set."""
    large = ("data.train_per_class=20000", "data.root=drawn/shapes")  # minutes of drawing
    case = Case(tmp_path / "case", "data=shapes", "model=cnn", *large)
    process = case.start()
    assert process.wait_for(lambda: list(case.folder.rglob("*.jpg"))), str(process)
    process.send(signal.Signals[name])
    code, last = 128 + signal.Signals[name], f"stopped by {name} before the first step"
    case.end(process, code=code, last=last, state=None, seconds=SECONDS)


@pytest.mark.fault("P2")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_in_a_step(mlp: Case, uninterrupted: Reference, name: str) -> None:
    mlp.run(
        fault=f"losses 9 {name}",
        code=128 + signal.Signals[name],
        last=f"stopped by {name} at step 9;",
    )
    mlp.run("resume=auto")
    assert result(mlp) == uninterrupted(mlp)


@pytest.mark.fault("P2")
def test_in_validation_and_on_with_what_the_last_line_says(
    mlp: Case, uninterrupted: Reference
) -> None:
    """Evaluation is dropped, and made up for by the resume."""
    mlp.overrides += ["eval.batch_size=4"]
    process = mlp.run(fault="predict 8 SIGTERM", code=143, last="stopped by SIGTERM at step 12;")
    assert [line["step"] for line in mlp.lines() if "val/loss" in line] == [6]
    words = shlex.split(process.last_line.partition("to go on type: cvtrain ")[2])
    mlp.overrides, typed = words, mlp.overrides
    mlp.run(where=False)
    mlp.overrides = typed
    assert result(mlp) == uninterrupted(mlp)


def test_the_last_line_names_the_config_directory(mlp: Case, tmp_path: Path) -> None:
    mine = tmp_path / "my configs"
    (mine / "model").mkdir(parents=True)
    (mine / "model/mine.yaml").write_text(
        "_target_: cvtrain.models.mlp.MLP\ntask: classification\ninput: any\nhidden: [8]\n"
    )
    mlp.overrides = [word for word in mlp.overrides if not word.startswith("model")]
    mlp.overrides += ["model=mine", "--config-dir", str(mine)]
    process = mlp.run(fault="losses 3 SIGTERM", code=143, last="stopped")
    mlp.overrides = shlex.split(process.last_line.partition("to go on type: cvtrain ")[2])
    mlp.run(where=False)


@pytest.mark.fault("P2")
def test_in_a_checkpoint_write(tmp_path: Path, mnist: Path, uninterrupted: Reference) -> None:
    case = Case(
        tmp_path / "case",
        *("data=mnist", f"data_dir={mnist}", "data.batch_size=16", "trainer.duration=1ep"),
        *("model=mlp", "model.hidden=[8000]", "optimizer.lr=0.001", "trainer.checkpoint_every=2st"),
        *EVERY_STEP,
        inputs=(mnist,),
    )
    process = case.start()
    folder = case.run_dir / "checkpoints"
    assert process.wait_for(lambda: list(folder.glob(".step_*.tmp"))), str(process)
    process.send(signal.SIGTERM)
    case.end(process, code=143, last=r"stopped by SIGTERM at step \d;", seconds=SECONDS)
    case.run("resume=auto")
    assert result(case) == uninterrupted(case)


@pytest.mark.fault("P2")
def test_second_signal_ends_at_once(mlp: Case, uninterrupted: Reference) -> None:
    process = mlp.start(fault="losses 9 SIGTERM 60")
    assert process.wait_for(lambda: mlp.steps[-1:] == [8])
    time.sleep(1)
    assert process.poll() is None  # the first one waits for the end of the step
    process.send(signal.SIGTERM)
    assert process.wait(seconds=2) == 143
    check_checkpoints(mlp.run_dir / "checkpoints", killed=False)
    mlp.run("resume=auto")
    assert result(mlp) == uninterrupted(mlp)


@pytest.mark.fault("P2")
def test_at_random_moments(tmp_path: Path, mnist: Path, uninterrupted: Reference) -> None:
    """Also while nothing listens yet: then the signal ends the process as it ends any other."""
    moments = random.Random(1)
    for number in range(KILLS):
        case = mlp_case(tmp_path / f"case{number}", mnist)
        case.overrides += ["task._target_=user_code.Slow", "eval.batch_size=1"]
        process = case.start()
        process.wait_for(lambda: False, moments.uniform(0, 2))
        process.send(signal.SIGTERM)
        if process.wait(SECONDS) == 143:
            case.end(process, code=143, last="stopped by SIGTERM", state="unseen")
        else:
            assert process.poll() in (-signal.SIGTERM, 0)
        if case.run_dir.exists():
            check_run_dir(case.run_dir)
        case.run("resume=auto")
        assert result(case) == uninterrupted(case)


@pytest.mark.fault("P2")
def test_while_a_resume_begins(mlp: Case, uninterrupted: Reference) -> None:
    """In the middle of a file: a long list of figures is written anew, and takes its time."""
    mlp.run(fault="losses 9 SIGTERM", code=143, last="stopped")
    figures = mlp.run_dir / "metrics.jsonl"
    lines = figures.read_text()
    figures.write_text('{"step": 0}\n' * 500_000 + lines)
    process = mlp.start("resume=auto")
    temporary = figures.with_name(".metrics.jsonl.tmp")
    assert process.wait_for(temporary.exists), str(process)
    process.send(signal.SIGTERM)
    mlp.end(process, code=143, last="stopped by SIGTERM", seconds=SECONDS)
    figures.write_text(lines)
    mlp.run("resume=auto")
    assert result(mlp) == uninterrupted(mlp)
