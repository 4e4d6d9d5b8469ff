"""TensorBoard's curves: a run does not end for them, and a resumed one draws no step twice."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from harness import Case, Result, result
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.fault("C4")

WARNING = "warning: TensorBoard is off for this run: .*; metrics.jsonl goes on\n"


def event_files(case: Case) -> list[Path]:
    return list(case.run_dir.glob("events.out.tfevents.*"))


def test_unwritable_at_the_start(mlp: Case, uninterrupted: Callable[[Case], Result]) -> None:
    """The directory's path leaves no room for a name as long as that of an event file."""
    expected = uninterrupted(mlp)
    mlp.run_dir = mlp.folder / "run"
    while (rest := os.pathconf("/", "PC_PATH_MAX") - 1 - 38 - len(str(mlp.run_dir)) - 1) > 0:
        mlp.run_dir /= "x" * min(200, rest if rest <= 200 else rest - 2)
    process = mlp.run()
    assert len(re.findall(WARNING, process.err)) == 1, str(process)
    assert not event_files(mlp)
    assert result(mlp) == expected


def test_its_disk_fills_up(mlp: Case, uninterrupted: Callable[[Case], Result]) -> None:
    """/dev/full is one that is; the writer opens its file anew for each write."""
    process = mlp.start(fault="losses 9 SIGSTOP")
    process.pause()
    (file,) = event_files(mlp)
    file.unlink()
    file.symlink_to("/dev/full")
    process.send(signal.SIGCONT)
    mlp.end(process)
    assert len(re.findall(WARNING, process.err)) == 1, str(process)
    assert "No space left on device" in process.err
    assert result(mlp) == uninterrupted(mlp)


@pytest.mark.parametrize("ends", [[5, 10, 9], [10, 1, 12]])
def test_no_step_twice(mlp: Case, ends: list[int]) -> None:
    """Killed before and after its first checkpoint: the curves are those of metrics.jsonl."""
    for losses in ends:
        mlp.run_until_killed("resume=auto", losses=losses)
        newest = max(int(file.name.split(".")[3]) for file in event_files(mlp))
        time.sleep(max(0, newest + 1 - time.time()))  # files are ordered by the second
    mlp.run("resume=auto")
    curves = EventAccumulator(str(mlp.run_dir), size_guidance={"scalars": 0}).Reload()
    lines = mlp.lines()
    names = {name for line in lines for name in line} - {"step", "epoch"}
    assert names == set(curves.Tags()["scalars"]) - {"train/images_per_sec"}
    assert {"train/loss", "val/loss"} < names
    for name in names:
        points = [(line["step"], np.float32(line[name])) for line in lines if name in line]
        assert [(event.step, event.value) for event in curves.Scalars(name)] == points, name
