"""A process that dies, or a whole group that is told to end: with workers that read the images."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import EVERY_STEP, FAULTY, Case, Result, result, tree

Reference = Callable[[Case], Result]


@pytest.fixture
def files(tmp_path: Path, shapes: Path) -> Case:
    """Images read by two workers; eight steps an epoch, 24 in all."""
    return Case(
        tmp_path / "case",
        *("data=shapes", "data.size=16", "data.train_per_class=8", "data.val_per_class=2"),
        *(f"data.root={shapes}", "data.batch_size=8", "model=cnn", "model.widths=[8]"),
        *("trainer.workers=2", "trainer.duration=3ep", "trainer.checkpoint_every=3st"),
        *(*EVERY_STEP, *FAULTY),
        inputs=(shapes,),
    )


@pytest.mark.fault("P4")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGABRT"])
def test_a_worker_dies(files: Case, uninterrupted: Reference, name: str) -> None:
    """As by a machine that runs out of memory, or by a broken decoder."""
    files.overrides += ["trainer.checkpoint_every=100st"]  # but at the ends of the epochs
    process = files.start(fault="losses 9 SIGSTOP")
    process.pause()
    _, worker, *_ = process.family()
    before = tree(files.run_dir / "checkpoints")
    os.kill(worker, signal.Signals[name])
    process.send(signal.SIGCONT)
    line = rf"error\[WORKER-DIED\]: .*\b{worker}\b.*{name}.*memory.*/dev/shm.*trainer\.workers=0"
    files.end(process, code=6, last=line, state="failed", seconds=30)
    assert tree(files.run_dir / "checkpoints") == before
    assert files.status()["step"] == 8
    files.run("resume=auto")
    assert result(files) == uninterrupted(files)


@pytest.mark.fault("P4")
def test_the_main_process_dies(files: Case, uninterrupted: Reference) -> None:
    """Its workers find out, and end."""
    process = files.start(fault="losses 9 SIGSTOP")
    process.pause()
    assert len(process.family()) > 2
    files.kill(process)
    files.run("resume=auto")
    assert result(files) == uninterrupted(files)


@pytest.mark.fault("P3")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_the_whole_group_is_told_to_end(files: Case, uninterrupted: Reference, name: str) -> None:
    """Ctrl-C in a terminal, and a batch system's end of a job, also reach the workers."""
    process = files.start(fault="losses 9 SIGSTOP")
    process.pause()
    before = process.err
    os.killpg(process.pid, signal.Signals[name])
    process.send(signal.SIGCONT)
    code = 128 + signal.Signals[name]
    files.end(process, code=code, last=f"stopped by {name} at step 9;", seconds=10)
    assert len(process.err.removeprefix(before).splitlines()) == 1
    files.run("resume=auto")
    assert result(files) == uninterrupted(files)
