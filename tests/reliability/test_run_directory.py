"""A run directory belongs to one run, and one that cannot be written is refused first of all."""

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Case, Result, check_run_dir, checkpoint, mlp_case, result, tree

import cvtrain

NOBODY = 65534
NOT_WRITABLE = r"error\[NOT-WRITABLE\]: "


@pytest.mark.fault("P6")
def test_a_file_in_its_place(mlp: Case) -> None:
    file = mlp.folder.parent / "file"
    file.write_text("")
    mlp.run(f"hydra.run.dir={file}/run", where=False, code=6, last=NOT_WRITABLE + ".*file/run; ")
    assert file.read_text() == ""


@pytest.mark.fault("P6")
def test_where_nobody_may_write(mlp: Case) -> None:
    """Not even root."""
    place = "/sys/cvtrain/run"
    mlp.run(f"hydra.run.dir={place}", where=False, code=6, last=f"{NOT_WRITABLE}.*{place}; ")


@pytest.fixture
def readable() -> Iterator[Path]:
    """A folder that everyone may enter and only its owner may write to; pytest's are private."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def shared(readable: Path, mnist: Path) -> Case:
    """A case that another user can run."""
    if os.getuid() == 0 and not all(
        folder.stat().st_mode & 0o001 for folder in Path(cvtrain.__file__).parents
    ):
        pytest.skip("another user cannot enter the folder that cvtrain is in")
    data = shutil.copytree(mnist, readable / "data")
    for path in (data, *data.rglob("*")):
        path.chmod(0o755)
    return mlp_case(readable / "case", data)


@pytest.mark.fault("P6")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can run a command as another user")
@pytest.mark.parametrize("resume", [[], ["resume=auto"]])
def test_a_directory_of_someone_else(shared: Case, resume: list[str]) -> None:
    """Found out before data are read, and with nothing changed."""
    if resume:
        shared.run("trainer.duration=1st")
    shared.inputs[0].chmod(0o700)  # whoever looks at the data first has another complaint
    before = tree(shared.folder)
    shared.run(*resume, user=NOBODY, code=6, last=NOT_WRITABLE + ".*/case/run; ", state="unseen")
    assert tree(shared.folder) == before
    assert shared.run_dir.exists() == bool(resume)


@pytest.mark.fault("P6")
def test_read_only_from_now_on(shared: Case, uninterrupted: Callable[[Case], Result]) -> None:
    user = NOBODY if os.getuid() == 0 else None  # no permission counts for root
    shared.folder.chmod(0o777)
    process = shared.start(fault="losses 9 SIGSTOP", user=user)
    process.pause()
    folders = [shared.run_dir, shared.run_dir / "checkpoints"]
    for folder in folders:
        folder.chmod(0o555)
    process.send(signal.SIGCONT)
    line = NOT_WRITABLE + "cannot write: Permission denied; .*checkpoints/step_00000012.pt; "
    shared.end(process, code=6, last=line, state="unseen")
    check_run_dir(shared.run_dir)
    for folder in folders:
        folder.chmod(0o755)
    shared.run("resume=auto", user=user)
    assert result(shared) == uninterrupted(shared)


@pytest.mark.fault("X1")
@pytest.mark.parametrize("resume", [[], ["resume=auto"]])
def test_two_runs(
    mlp: Case, mnist: Path, uninterrupted: Callable[[Case], Result], resume: list[str]
) -> None:
    """The second is told who holds the directory, and the first does not notice."""
    second = second_case(mlp, mnist)
    process = mlp.start(fault="losses 9 SLEEP 60")
    assert process.wait_for(lambda: mlp.steps[-1:] == [8]), str(process)
    time.sleep(0.5)  # TensorBoard's file follows; from now on nothing changes
    held = rf"error\[BUSY\]: held by process {process.pid} on \S+ since \d{{4}}-.*{mlp.run_dir}"
    second.run(*resume, code=7, last=held, state=None)
    mlp.kill(process)
    mlp.run("resume=auto")  # whoever died holds nothing any more
    assert result(mlp) == uninterrupted(mlp)


@pytest.mark.fault("X1")
def test_two_runs_at_once(mlp: Case, mnist: Path, uninterrupted: Callable[[Case], Result]) -> None:
    cases = [mlp, second_case(mlp, mnist)]
    for case in cases:
        case.overrides.append("task._target_=user_code.Slow")
    processes = [case.start() for case in cases]
    codes = [process.wait() for process in processes]
    assert sorted(codes) == [0, 7], [str(process) for process in processes]
    winner, loser = (processes[codes.index(code)] for code in (0, 7))
    assert loser.last_line.startswith("cvtrain: error[BUSY]: ")
    mlp.end(winner)
    assert result(mlp) == uninterrupted(mlp)


def second_case(first: Case, mnist: Path) -> Case:
    """The same command, in the same directory."""
    second = mlp_case(first.folder, mnist)
    second.output = first.output.with_name("second_output")
    return second


@pytest.mark.fault("X1")
def test_two_runs_named_by_the_same_second(mlp: Case, mnist: Path) -> None:
    """A directory's default name is the time; the second run takes another name."""
    cases = [mlp, second_case(mlp, mnist)]
    for _ in range(5):  # the seconds may differ by chance
        processes = [case.start("trainer.duration=2st", where=False) for case in cases]
        assert [process.wait() for process in processes] == [0, 0]
        named = sorted(path.name for path in mlp.folder.glob("outputs/mlp_mnist/*"))
        if doubled := [name for name in named if name.endswith("_2")]:
            break
    assert doubled[0].removesuffix("_2") in named
    for path in mlp.folder.glob("outputs/mlp_mnist/*"):
        check_run_dir(path)
        assert checkpoint(path / "checkpoints/last.pt")["position"]["step"] == 2
        assert json.loads((path / "status.json").read_text())["state"] == "done"
    assert len(named) % 2 == 0
