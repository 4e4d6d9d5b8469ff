"""`environment.json` against git, the kernel and importlib themselves; no secret in it."""

import json
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

import cvtrain
from cvtrain.engine import environment
from cvtrain.engine.environment import write_environment

CPU = torch.device("cpu")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=trunk"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], capture_output=True, check=True
    )
    return done.stdout.decode().strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own, which is the current directory."""
    root = tmp_path / "mine"
    (root / "sub").mkdir(parents=True)
    (root / "code.py").write_text("a = 1\n")
    git(root, "init")
    git(root, "add", ".")
    git(root, "commit", "-m", "first")
    monkeypatch.chdir(root / "sub")
    return root


def written(run: Path) -> list[dict[str, Any]]:
    write_environment(run, CPU)
    return json.loads((run / "environment.json").read_text())["starts"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_the_machine_and_the_command(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cvtrain", "model=cnn", "data.root=a b"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MY_TOKEN", "hidden")
    [start] = written(run)
    assert start["command"] == "cvtrain model=cnn 'data.root=a b'"
    assert start["cwd"] == os.getcwd()
    assert start["cores"] == len(os.sched_getaffinity(0))
    lines = Path("/proc/meminfo").read_text().splitlines()
    assert start["memory_bytes"] == pytest.approx(1024 * int(lines[0].split()[1]), rel=0.01)
    assert start["cpu"] in Path("/proc/cpuinfo").read_text()
    assert start["versions"]["torch"] == metadata.version("torch")
    assert start["versions"]["hydra-core"] == metadata.version("hydra-core")
    assert all(start["versions"].values())
    assert start["environment"]["OMP_NUM_THREADS"] == "1"
    assert "hidden" not in (run / "environment.json").read_text()
    assert (start["device"], len(start["gpus"])) == ("cpu", torch.cuda.device_count())


def test_a_clean_repository_beside_the_code(run: Path, repository: Path) -> None:
    [start] = written(run)
    assert start["git_cwd"] == {
        "root": str(repository),
        "revision": git(repository, "rev-parse", "HEAD"),
        "branch": "trunk",
        "dirty": False,
    }
    assert not (run / "git_cwd.diff").exists()
    (repository / "untracked.bin").write_text("not of interest")
    assert written(run)[1]["git_cwd"]["dirty"] is False


def test_changes_can_be_made_again(run: Path, repository: Path) -> None:
    (repository / "code.py").write_text("a = 2\nb = 'é'\n")
    [start] = written(run)
    assert start["git_cwd"]["dirty"] is True
    assert start["git_cwd"]["diff"] == "git_cwd.diff"
    git(repository, "checkout", "code.py")
    git(repository, "apply", str(run / "git_cwd.diff"))
    assert (repository / "code.py").read_text() == "a = 2\nb = 'é'\n"
    # A second start from the same tree shares the file, one from another has its own.
    assert written(run)[1]["git_cwd"]["diff"] == "git_cwd.diff"
    (repository / "code.py").write_text("a = 3\n")
    third = written(run)[2]
    assert third["git_cwd"]["diff"] == "git_cwd_2.diff"
    assert "+a = 2" in (run / "git_cwd.diff").read_text()
    assert "+a = 3" in (run / "git_cwd_2.diff").read_text()


def test_a_large_diff_is_cut(run: Path, repository: Path) -> None:
    (repository / "code.py").write_text("é" * 3_000_000)
    written(run)
    assert (run / "git_cwd.diff").stat().st_size <= 1_000_001


def test_the_code_is_named_by_its_own_repository(run: Path) -> None:
    [start] = written(run)
    package = Path(cvtrain.__file__).parent
    try:
        tracked = git(package, "ls-files", "__init__.py")
    except (OSError, subprocess.CalledProcessError):
        tracked = ""
    assert (start["git"] is not None) == bool(tracked)
    if tracked:
        assert start["git"]["revision"] == git(package, "rev-parse", "HEAD")


def test_a_repository_that_only_holds_the_installed_package(
    run: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a project with its .venv inside: its revision says nothing of ours."""
    installed = repository / ".venv" / "cvtrain"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    monkeypatch.setattr(cvtrain, "__file__", str(installed / "__init__.py"))
    [start] = written(run)
    assert start["git"] is None
    assert start["git_cwd"]["root"] == str(repository)


def test_before_the_first_commit_and_outside(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init")
    for folder in (tmp_path / "empty", tmp_path):
        monkeypatch.chdir(folder)
        assert written(run)[-1]["git_cwd"] is None


def test_without_git(run: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(run))
    [start] = written(run)
    assert start["git"] is start["git_cwd"] is None


def test_a_slow_git_is_not_waited_for(
    run: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = repository.parent / "bin"
    slow.mkdir()
    (slow / "git").write_text("#!/bin/sh\nexec sleep 20\n")
    (slow / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow}:{os.environ['PATH']}")
    assert environment.GIT_SECONDS == 5
    monkeypatch.setattr(environment, "GIT_SECONDS", 0.2)
    begin = time.monotonic()
    [start] = written(run)
    assert time.monotonic() - begin < 5
    assert start["git"] is start["git_cwd"] is None


@pytest.mark.parametrize("text", ["", "{}", '{"starts": 3}', "[1]", "half a li"])
def test_what_cannot_be_read_is_begun_anew(run: Path, text: str) -> None:
    (run / "environment.json").write_text(text)
    assert len(written(run)) == 1
    assert len(written(run)) == 2
