"""SIGKILL at any moment costs what was done since the last checkpoint, and nothing else.

CVTRAIN_KILLS=20 kills that often, and half as often inside a write.
"""

import random
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from harness import EVERY_STEP, KILLS, Case, Process, Result, result, temporary_files

INSIDE_A_WRITE = 1 if KILLS <= 3 else KILLS // 2
SIZE = 50_000_000  # bytes of a checkpoint, at least: a write that lasts


@pytest.fixture
def cases(tmp_path: Path, mnist: Path) -> Iterator[Case]:
    """The same run in one directory after the other: 24 steps, a large checkpoint every three."""
    return (
        Case(
            tmp_path / f"case{number}",
            *("data=mnist", f"data_dir={mnist}", "data.batch_size=16", "trainer.duration=4ep"),
            *("model=mlp", "model.hidden=[8000]", "optimizer.lr=0.001"),
            *("trainer.checkpoint_every=3st", *EVERY_STEP),
            inputs=(mnist,),
        )
        for number in count()
    )


@pytest.mark.fault("P1")
def test_at_random_moments(cases: Iterator[Case], uninterrupted: Callable[[Case], Result]) -> None:
    case = next(cases)
    expected = uninterrupted(case)
    moments = random.Random(1)
    killed = 0
    while killed < KILLS:
        process = case.start("resume=auto")
        wait(case, process, moments)
        if process.poll() is None:
            case.kill(process)
            killed += 1
        else:  # it got to its end in between
            case.end(process)
            assert result(case) == expected
            case = next(cases)
    case.run("resume=auto")
    assert not temporary_files(case.run_dir)
    assert result(case) == expected


def wait(case: Case, process: Process, moments: random.Random) -> None:
    """Until a moment after the first step, or one in the middle of the start."""
    before = len(case.steps)
    if moments.random() < 0.8:
        process.wait_for(lambda: len(case.steps) > before)
    process.wait_for(lambda: False, moments.uniform(0, 1))


@pytest.mark.fault("P1")
def test_inside_a_write(cases: Iterator[Case], uninterrupted: Callable[[Case], Result]) -> None:
    case = next(cases)
    expected = uninterrupted(case)
    inside = 0
    for _ in range(3 * INSIDE_A_WRITE):  # some come too late, when the file is whole
        process = case.start("resume=auto")
        assert process.wait_for(lambda: written(case) > SIZE / 3), str(process)
        case.kill(process)
        inside += 0 < written(case) < SIZE
        if inside == INSIDE_A_WRITE:
            break
    assert inside == INSIDE_A_WRITE
    # Its next start removes the file, and does not merely write the same name once more.
    case.run("resume=auto", "trainer.checkpoint_every=7st")
    assert not temporary_files(case.run_dir)
    assert result(case) == expected


def written(case: Case) -> int:
    """Bytes of the checkpoint that is being written, or was when the process was killed."""
    sizes = []
    for path in (case.run_dir / "checkpoints").glob(".step_*.tmp"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:  # renamed in between
            continue
    return sum(sizes)
