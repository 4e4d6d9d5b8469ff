"""What is installed is what was tested: the wheel carries every YAML and finds it from anywhere."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
YAMLS = {str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("configs/**/*.yaml")}
COMPOSE = """
import json
from cvtrain.compose import compose_config
from cvtrain.config import config_dir
composed = compose_config(["model=resnet20", "data=cifar10"])
print(json.dumps([str(config_dir()), composed.choices["recipe"], composed.config.trainer.duration]))
"""


def checkout(to: Path) -> Path:
    """What git would carry, without what tests and runs leave in the tree."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("cvtrain", "configs"):
        shutil.copytree(REPOSITORY / name, to / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, to / name)
    return to


def python(*arguments: str, path: Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(path)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("pip", "hatchling"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed, so no wheel can be built without a network")
    folder = tmp_path_factory.mktemp("wheel")
    source = checkout(tmp_path_factory.mktemp("source"))
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "wheel", *options, "-w", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    [built] = folder.glob("*.whl")
    return built


def test_wheel_carries_every_yaml_and_nothing_else_of_the_tree(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    yamls = {*(f"cvtrain/{name}" for name in YAMLS), "cvtrain/models/papers.yaml"}
    assert {name for name in names if name.endswith(".yaml")} == yamls
    sources = {str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("cvtrain/**/*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"cvtrain"}


def test_wheel_has_the_command_and_its_needs(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    inside = {name.rpartition("/")[2]: name for name in archive.namelist() if ".dist-info" in name}
    assert "cvtrain = cvtrain.cli:main" in archive.read(inside["entry_points.txt"]).decode()
    metadata = archive.read(inside["METADATA"]).decode()
    for need in ("torch", "torchvision", "hydra-core", "tensorboard", "pillow"):
        assert f"Requires-Dist: {need}" in metadata
    assert "License-Expression: MIT" in metadata


def test_wheel_works_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    installed, elsewhere = tmp_path / "site packages", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(installed)
    folder, recipe, duration = json.loads(python("-c", COMPOSE, path=installed, cwd=elsewhere))
    assert Path(folder) == (installed / "cvtrain" / "configs").resolve()
    assert (recipe, duration) == ("resnet20_cifar10", "64000st")
    assert "resnet20" in python("-m", "cvtrain", "--help", path=installed, cwd=elsewhere)
    assert not list(elsewhere.iterdir())


def test_checkout_works_from_anywhere(tmp_path: Path) -> None:
    """An editable install: the package is found where it stands, the YAMLs beside it."""
    source, elsewhere = checkout(tmp_path), tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder, recipe, _ = json.loads(python("-c", COMPOSE, path=source, cwd=elsewhere))
    assert Path(folder) == (source / "configs").resolve()
    assert recipe == "resnet20_cifar10"
    # A YAML that is added is there at once.
    (source / "configs" / "model" / "brand_new.yaml").write_text("# new\n_target_: x.Y\n")
    assert "brand_new" in python("-m", "cvtrain", "--help", path=source, cwd=elsewhere)
