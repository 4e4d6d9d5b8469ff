"""A checkpoint or a data file that asks for code is refused by name, and its code never runs."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import Case, forge


class Hostile:
    """Unpickled by a careless reader, it runs a shell command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def zip_file(path: Path, content: Any) -> None:
    torch.save(content, path)


def legacy_file(path: Path, content: Any) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def bare_pickle(path: Path, content: Any) -> None:
    path.write_bytes(pickle.dumps(content))


def old_pickle(path: Path, content: Any) -> None:
    path.write_bytes(pickle.dumps(content, protocol=0))


def distributed(path: Path, content: Any) -> None:
    """As torch.distributed.checkpoint writes it: a directory with a pickled `.metadata`."""
    path.mkdir()
    (path / ".metadata").write_bytes(pickle.dumps(content))
    (path / "__0_0.distcp").write_bytes(b"")


FORMATS = [zip_file, legacy_file, bare_pickle, old_pickle, distributed]


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "code_has_run"


def test_the_pickle_is_hostile(tmp_path: Path, marker: Path) -> None:
    bare_pickle(tmp_path / "file", {"model": Hostile(marker)})
    pickle.loads((tmp_path / "file").read_bytes())
    assert marker.exists()


@pytest.mark.fault("S1")
@pytest.mark.parametrize("key", ["resume", "init.weights"])
@pytest.mark.parametrize("write", FORMATS)
def test_checkpoint(
    mlp: Case, tmp_path: Path, marker: Path, write: Callable[[Path, Any], None], key: str
) -> None:
    path = tmp_path / "from the internet.pt"
    content = {"model": Hostile(marker), "optimizer": {}, "position": {}, "config": ""}
    write(path, content)
    named = "pickle that can run code" if write is distributed else r"posix\.system"
    line = rf"error\[CKPT-UNSAFE\]: .*{named}.*from the internet\.pt"
    mlp.run(f"{key}={path}", code=4, last=line, state=None)
    assert not marker.exists()


@pytest.mark.fault("S1")
@pytest.mark.parametrize("resume", ["resume=auto", "resume={run_dir}"])
def test_checkpoint_of_a_run_directory(mlp: Case, marker: Path, resume: str) -> None:
    """Listed with its right hash: a whole run directory from someone else."""
    mlp.run("trainer.duration=1st")
    forge(mlp, model=Hostile(marker))
    mlp.run(
        resume.format(run_dir=mlp.run_dir),
        "trainer.duration=1st",
        code=4,
        last=r"error\[CKPT-UNSAFE\]: .*posix\.system",
        state="unseen",
    )
    assert not marker.exists()


@pytest.mark.fault("S1")
@pytest.mark.parametrize("content", [{}, {"data": 1, "labels": 2}])
def test_data_batch(tmp_path: Path, marker: Path, content: dict[str, Any]) -> None:
    """CIFAR-10's own format is a pickle."""
    folder = tmp_path / "data/cifar-10-batches-py"
    folder.mkdir(parents=True)
    bare_pickle(folder / "data_batch_1", {**content, "extra": Hostile(marker)})
    case = Case(
        tmp_path / "case",
        "data=cifar10",
        "model=cnn",
        f"data_dir={tmp_path}/data",
        inputs=(folder,),
    )
    case.run(code=3, last=r"error\[DATA\]: .*posix\.system.*data_batch_1; ")
    assert not marker.exists()
