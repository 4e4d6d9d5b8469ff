"""A damaged checkpoint is passed over for the one before, or refused where it was asked for."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Case, Result, mlp_case, result, sha256

pytestmark = pytest.mark.fault("R8")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    """In the middle of the weights, where nothing but the number changes."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


DAMAGES = [truncate, empty, flip_a_bit, remove]
CORRUPT = r"corrupt: sha256 {actual:.12}\S*, written as {written:.12}\S*; \S+/{name}"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, mnist: Path) -> Path:
    case = mlp_case(tmp_path_factory.mktemp("stopped") / "case", mnist)
    case.run(fault="losses 14 SIGTERM", code=143, last="stopped")
    return case.run_dir


@pytest.fixture
def stopped(mlp: Case, run_dir: Path) -> Case:
    """A run with checkpoints of the steps 12 and 14."""
    shutil.copytree(run_dir, mlp.run_dir, symlinks=True)
    return mlp


def step(case: Case, number: int) -> Path:
    return case.run_dir / f"checkpoints/step_{number:08d}.pt"


def refusal(path: Path, written: str) -> str:
    """What is said of a damaged file."""
    if not path.exists():
        return f"no such checkpoint; .*{path.name}"
    return CORRUPT.format(actual=sha256(path), written=written, name=path.name)


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest(
    stopped: Case, uninterrupted: Callable[[Case], Result], damage: Callable[[Path], None]
) -> None:
    newest = step(stopped, 14)
    written = sha256(newest)
    damage(newest)
    warning = f"warning: {refusal(newest, written)}.*the one before"
    # What is saved on the way drops it from the list: all that is listed verifies.
    process = stopped.run("resume=auto", fault="losses 1 SIGTERM", code=143, last="stopped .* 13;")
    assert len(re.findall(warning, process.err)) == 1, str(process)
    assert "resumed at step 12\n" in process.err
    process = stopped.run("resume=auto")
    assert "warning" not in process.err
    assert result(stopped) == uninterrupted(stopped)


def test_the_newest_is_the_best(mlp: Case, uninterrupted: Callable[[Case], Result]) -> None:
    """It will be found again; until then there is none, or the best of before."""
    mlp.overrides += ["trainer.checkpoint_every=2st"]
    mlp.run_until_killed(losses=13)
    folder = mlp.run_dir / "checkpoints"
    best = (folder / "best.pt").resolve()
    assert best.name == "step_00000012.pt"
    empty(best)
    mlp.run("resume=auto", fault="losses 1 SIGTERM", code=143, last="stopped .* 11;")
    mlp.run("resume=auto")
    assert result(mlp) == uninterrupted(mlp)


def test_an_older_one(stopped: Case, uninterrupted: Callable[[Case], Result]) -> None:
    flip_a_bit(step(stopped, 12))
    process = stopped.run("resume=auto")
    assert "resumed at step 14\n" in process.err
    assert result(stopped) == uninterrupted(stopped)


@pytest.mark.parametrize("damage", DAMAGES)
def test_asked_for(
    stopped: Case, mnist: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    newest = step(stopped, 14)
    written = sha256(newest)
    damage(newest)
    name = "CKPT-CORRUPT" if newest.exists() else "CKPT-MISSING"
    line = rf"error\[{name}\]: {refusal(newest, written)}; "
    for typed in (f"resume={newest}", f"init.weights={newest}"):
        other = mlp_case(tmp_path / typed.partition("=")[0], mnist)
        other.run(typed, code=4, last=line, state=None)


def test_all_of_them(stopped: Case) -> None:
    files = [step(stopped, 14), step(stopped, 12)]
    for file in files:
        truncate(file)
    line = r"error\[CKPT-CORRUPT\]: no checkpoint verifies; \S+/checkpoints"
    process = stopped.run("resume=auto", code=4, last=line, state="unseen")
    assert len(re.findall("warning: corrupt: ", process.err)) == len(files)
    assert (stopped.status()["state"], stopped.status()["exit_code"]) == ("failed", 4)


def test_the_last_of_a_finished_run(mlp: Case, uninterrupted: Callable[[Case], Result]) -> None:
    """What is lost is made once more."""
    mlp.run()
    flip_a_bit((mlp.run_dir / "checkpoints/last.pt").resolve())
    mlp.run("resume=auto")
    assert result(mlp) == uninterrupted(mlp)


@pytest.mark.parametrize("content", ["{", '{"files": 3}'])
def test_the_list(stopped: Case, content: str) -> None:
    """It is replaced as a whole, so it is another's doing."""
    file = stopped.run_dir / "checkpoints/checkpoints.json"
    file.write_text(content)
    line = r"error\[CKPT-CORRUPT\]: .*checkpoints\.json"
    stopped.run("resume=auto", code=4, last=line, state="unseen")
    assert file.read_text() == content
    assert json.loads((stopped.run_dir / "status.json").read_text())["exit_code"] in (4, 143)
