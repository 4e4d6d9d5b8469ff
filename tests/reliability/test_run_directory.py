"""A run directory belongs to one run, and one that cannot be written is refused first of all."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Case, Result, mlp_case, result, tree

import cvtrain

NOBODY = 65534
NOT_WRITABLE = r"error\[NOT-WRITABLE\]: "


def test_a_file_in_its_place(mlp: Case) -> None:
    file = mlp.folder.parent / "file"
    file.write_text("")
    mlp.run(f"hydra.run.dir={file}/run", where=False, code=6, last=NOT_WRITABLE + ".*file/run; ")
    assert file.read_text() == ""


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


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run a command as another user")
def test_a_directory_of_someone_else(readable: Path, mnist: Path) -> None:
    if not all(folder.stat().st_mode & 0o001 for folder in Path(cvtrain.__file__).parents):
        pytest.skip("another user cannot enter the folder that cvtrain is in")
    data = shutil.copytree(mnist, readable / "data")
    for path in (data, *data.rglob("*")):
        path.chmod(0o755)
    case = mlp_case(readable / "case", data)
    before = tree(readable)
    case.run(user=NOBODY, code=6, last=NOT_WRITABLE + "cannot write: .*/case/run; ")
    left = {name: content for name, content in tree(readable).items() if "_output" not in name}
    assert left == before


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
