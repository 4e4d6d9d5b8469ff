"""TensorBoard's HPARAMS table of real runs, as its own backend makes it of their files."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hparams_table import Shown
from tensorboard.plugins.hparams import api_pb2
from tiny import summary, write_mnist

from cvtrain.compose import compose_config
from cvtrain.hparams import plain, write_columns, write_settings
from cvtrain.verbs.train import train

RUNS: dict[str, tuple[str, ...]] = {
    "a": ("model=lenet5", "optimizer.lr=0.02", "optimizer.nesterov=true", "optimizer.momentum=0.9"),
    "b": ("model=mlp", "optimizer=adam", "trainer.clip_norm=1", "seed=1"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that differ in network and optimizer; the first was extended when it was done."""
    folder = tmp_path_factory.mktemp("runs")
    write_mnist(folder / "data", train=50, val=23)
    extended = ("trainer.duration=2ep", "resume=auto", "resume_allow=[trainer.duration]")
    for name, words in (*RUNS.items(), ("a", (*RUNS["a"], *extended))):
        typed = [
            *("data=mnist", "recipe=none", "scheduler=constant", "data.batch_size=25"),
            *("trainer.duration=1ep", "trainer.threads=1", f"data_dir={folder / 'data'}"),
            *(f"hydra.run.dir={folder / name}", *words),
        ]
        try:
            train(compose_config(typed), typed)
        finally:
            logging.getLogger("cvtrain").handlers = []
    return folder


def test_a_row_for_each_run(folder: Path) -> None:
    shown = Shown(folder)
    assert shown.groups.keys() == {"a", "b"}
    for group in shown.groups.values():
        assert [session.status for session in group.sessions] == [api_pb2.STATUS_SUCCESS]


def test_settings(folder: Path) -> None:
    """Of both, with their types; of the one that was extended, what it was extended to."""
    shown = Shown(folder)
    first, second = shown.values("a"), shown.values("b")
    assert (first["model"], second["model"]) == ("lenet5", "mlp")
    assert (first["optimizer"], second["optimizer"]) == ("sgd", "adam")
    assert first["optimizer.lr"] == 0.02
    assert first["optimizer.nesterov"] is True
    assert (first["seed"], second["seed"]) == (0, 1)
    assert (first["trainer.clip_norm"], second["trainer.clip_norm"]) == ("None", 1)
    assert (first["trainer.duration"], second["trainer.duration"]) == ("2ep", "1ep")
    assert len(list((folder / "a").glob("*.hparams"))) == 1


def test_columns_are_those_of_all_runs(folder: Path) -> None:
    """What only one of them has, too, and first what differs."""
    shown = Shown(folder)
    assert {"optimizer.nesterov", "optimizer.amsgrad"} <= shown.settings.keys()
    differ = [name for name, info in shown.settings.items() if info.differs]
    assert {"model", "seed", "optimizer.lr", "trainer.clip_norm"} <= set(differ)
    assert "data.batch_size" not in differ
    assert list(shown.settings)[: len(differ)] == differ


def test_figures_are_the_last_ones(folder: Path) -> None:
    shown = Shown(folder)
    for run in ("a", "b"):
        told = {k: v for k, v in summary(folder / run).items() if k.startswith("val/")}
        assert len(told) == 3
        found = shown.metrics(run)
        assert {name: found[name] for name in told} == {
            name: float(np.float32(value)) for name, value in told.items()
        }


def test_a_folder_above_can_choose_the_columns(folder: Path, tmp_path: Path) -> None:
    """As a sweep does: what differs, and the figures in its order."""
    for name, settings in (("x", {"lr": 0.1, "on": True}), ("y", {"lr": 0.2, "on": False})):
        (tmp_path / name).mkdir()
        write_settings(tmp_path / name, {**settings, "same": 1})
    several = [{"lr": 0.1, "on": True, "same": 1}, {"lr": 0.2, "on": False, "same": 1, "w": "a"}]
    for _ in range(2):
        write_columns(tmp_path, several, ["val/err", "val/loss"])
    assert len(list(tmp_path.glob("*.hparams"))) == 1
    shown = Shown(tmp_path)
    assert list(shown.settings) == ["lr", "on", "w"]
    assert shown.figures == ["val/err", "val/loss"]
    interval = shown.settings["lr"].domain_interval
    assert (interval.min_value, interval.max_value) == (0.1, 0.2)
    assert shown.groups.keys() == {"x", "y"}
    assert shown.values("x") == {"lr": 0.1, "on": True, "same": 1}


@pytest.mark.parametrize(
    ("value", "shown"),
    [(True, True), (3, 3), (0.5, 0.5), (None, "None"), ([1, 2], "[1, 2]"), (float("inf"), "inf")],
)
def test_values_that_the_table_can_hold(value: Any, shown: Any) -> None:
    assert plain(value) == shown
    assert type(plain(value)) is type(shown)
