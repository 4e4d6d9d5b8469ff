"""Small data, written once, and a fresh run directory for each test."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Case, Result, mlp_case, result, write_mnist
from small_disk import SmallDisk

from cvtrain.data.shapes_draw import VERSION, draw_folder

# Processes are forked, and looked up in /proc.
collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]


@pytest.fixture(scope="session")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mnist(tmp_path_factory.mktemp("mnist"))


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 images of 16 pixels for training; with batches of 16, four steps an epoch."""
    root = tmp_path_factory.mktemp("shapes")
    draw_folder(root / f"v{VERSION}-16px-8-2", size=16, train_per_class=8, val_per_class=2)
    return root


@pytest.fixture
def mlp(tmp_path: Path, mnist: Path) -> Case:
    """A small network on small digits: 24 steps, in which a signal can be made to arrive."""
    return mlp_case(tmp_path / "case", mnist)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """64 MB that can be filled up; skips where the machine gives no user namespaces."""
    disk = SmallDisk(tmp_path / "disk", size=64_000_000)
    yield disk
    disk.unmount()


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Result]:
    """The result of a case's command, run once from beginning to end, for all who ask for it."""
    known: dict[tuple[str, ...], Result] = {}

    def reference(case: Case) -> Result:
        key = tuple(case.overrides)
        if key not in known:
            whole = Case(tmp_path_factory.mktemp("whole"), *key, inputs=case.inputs)
            whole.run()
            known[key] = result(whole)
        return known[key]

    return reference
