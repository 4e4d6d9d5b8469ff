"""A disk that fills up ends the run with code 6, and costs nothing that was saved before."""

import re
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from harness import Case, Process, Result, mlp_case, result, temporary_files
from small_disk import SmallDisk

from cvtrain.engine.checkpoint import Checkpoints, read_checkpoint
from cvtrain.errors import MachineError

SIZE = 12_000_000  # bytes of a checkpoint, at least
NO_SPACE = (
    r"error\[NO-SPACE\]: {reason}: (\d[\d,]+) bytes needed, (\d[\d,]*) bytes free; "
    r".*checkpoints/step_00000012\.pt; .*resume=auto"
)


def large_case(folder: Path, mnist: Path) -> Case:
    """Large checkpoints after the steps 6, 12, 18 and 24, and nothing written in between."""
    case = mlp_case(folder, mnist)
    case.overrides += ["model.hidden=[2000]", "optimizer.lr=0.001", "trainer.checkpoint_every=6st"]
    case.overrides += ["trainer.log_every=24st", "eval.every=24st"]
    return case


@pytest.fixture
def large(tmp_path: Path, mnist: Path) -> Case:
    return large_case(tmp_path / "case", mnist)


@pytest.fixture
def on_disk(small_disk: SmallDisk, tmp_path: Path, mnist: Path) -> Case:
    case = large_case(small_disk.path / "case", mnist)
    case.output = tmp_path / "output"
    return case


def go_on(process: Process) -> Process:
    process.send(signal.SIGCONT)
    return process


def bytes_of(line: str) -> list[int]:
    """Needed and free."""
    return [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) bytes", line)]


@pytest.mark.fault("P5")
@pytest.mark.parametrize("left", [0, 1_000_000])
def test_in_mid_run(
    on_disk: Case, small_disk: SmallDisk, uninterrupted: Callable[[Case], Result], left: int
) -> None:
    """Even the last byte: the outcome is told, for which some room was kept."""
    process = on_disk.start(fault="losses 9 SIGSTOP")
    process.pause()
    small_disk.fill(leave=left)
    line = NO_SPACE.format(reason="No space left on device")
    on_disk.end(go_on(process), code=6, last=line, state="failed")
    needed, free = bytes_of(process.last_line)
    assert SIZE < needed < 1.1 * SIZE
    assert abs(free - left) < 20_000  # pages, and the little that the run writes besides
    assert on_disk.status()["last_checkpoint"] == "step_00000006.pt"
    small_disk.clear()
    on_disk.run("resume=auto")
    assert result(on_disk) == uninterrupted(on_disk)


@pytest.mark.fault("P5")
def test_a_limit_on_the_size_of_a_file(
    large: Case, uninterrupted: Callable[[Case], Result]
) -> None:
    process = large.start(fault="losses 9 SIGSTOP")
    process.pause()
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (SIZE // 2, SIZE // 2))
    line = NO_SPACE.format(reason="File too large")
    large.end(go_on(process), code=6, last=line, state="failed")
    large.run("resume=auto")
    assert result(large) == uninterrupted(large)


@pytest.mark.fault("P5")
def test_the_first_checkpoint_of_all(on_disk: Case, small_disk: SmallDisk) -> None:
    """Announced at the start."""
    small_disk.fill(leave=2 * SIZE // 3)
    process = on_disk.run(code=6, last=r"error\[NO-SPACE\]: .*step_00000006\.pt", state="failed")
    warning, _ = process.err.splitlines()[-2:]
    assert re.match(r"warning: [\d,]+ bytes free for checkpoints of up to [\d,]+ bytes", warning)
    free, size = bytes_of(warning)
    assert free <= 2 * SIZE // 3
    assert SIZE < size < 2 * SIZE


@pytest.mark.fault("P5")
@pytest.mark.parametrize(("left", "warned"), [(3.3, False), (2.7, True)])
def test_warning_at_the_start(
    on_disk: Case, small_disk: SmallDisk, left: float, warned: bool
) -> None:
    """Below room for three: two are kept, and the next is written beside them."""
    on_disk.overrides += ["optimizer=adam", "optimizer.lr=0.001", "trainer.duration=1st"]
    small_disk.fill(leave=int(left * 1.5 * SIZE))
    process = on_disk.run()
    assert ("bytes free for checkpoints" in process.err) == warned, str(process)


@pytest.mark.fault("P5")
def test_at_the_start(on_disk: Case, small_disk: SmallDisk) -> None:
    """Not a byte: nothing is begun, and nothing is left."""
    small_disk.fill(leave=0)
    on_disk.run(code=6, last=r"error\[NO-SPACE\]: .*case/run; ", state=None)
    assert not on_disk.run_dir.exists()


@pytest.mark.fault("P5")
def test_temporary_files_elsewhere_are_not_needed(mlp: Case, small_disk: SmallDisk) -> None:
    small_disk.fill(leave=0)
    mlp.run("trainer.duration=1st", env={"TMPDIR": str(small_disk.path)})


@pytest.mark.fault("P5")
def test_any_number_of_bytes_left(small_disk: SmallDisk) -> None:
    """Saved or not, whichever of the files of a save it is that no longer fits."""
    page = resource.getpagesize()
    state = {"model": {"weight": torch.zeros(9 * page, dtype=torch.uint8)}, "optimizer": {}}
    saved = 0
    for pages in range(16):
        run_dir = small_disk.path / f"run{pages}"
        run_dir.mkdir()
        Checkpoints(run_dir).save({**state, "position": {"step": 1}}, step=1, best=True)
        small_disk.fill(leave=pages * page)
        with suppress(MachineError):
            Checkpoints(run_dir).save({**state, "position": {"step": 2}}, step=2, best=False)
            saved += 1
        small_disk.clear()
        assert not temporary_files(run_dir)
        checkpoints = Checkpoints(run_dir)
        there = {path.name for path in checkpoints.folder.glob("step_*")}
        assert there == checkpoints.manifest["files"].keys()
        steps = [read_checkpoint(checkpoints.folder / name)["position"]["step"] for name in there]
        assert sorted(steps) in ([1], [1, 2])
        last = read_checkpoint(checkpoints.folder / "last.pt")["position"]["step"]
        assert last == max(steps)
    assert 0 < saved < 8
