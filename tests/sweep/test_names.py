"""The same words lead to the same places, in whatever order they are typed."""

import pytest

from cvtrain.sweep.names import Typed, job_name

GRID = ["model=lenet5,cnn", "data=mnist", "optimizer.lr=0.1,0.01", "trust=[mine]"]


def test_axes_and_jobs() -> None:
    typed = Typed.parse([*GRID, "hydra/launcher=joblib", "hydra.launcher.n_jobs=3"])
    assert typed.axes == ["model", "optimizer.lr"]
    assert typed.fixed == ["data=mnist", "trust=[mine]"]
    assert typed.fixed_keys == ["data", "trust"]
    assert typed.hydra == ["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"]
    assert [job[0] + " " + job[2] for job in typed.jobs] == [
        *("model=lenet5 optimizer.lr=0.1", "model=lenet5 optimizer.lr=0.01"),
        *("model=cnn optimizer.lr=0.1", "model=cnn optimizer.lr=0.01"),
    ]


def test_a_search_has_no_grid() -> None:
    typed = Typed.parse(["optimizer.lr=interval(0.1,1)", "data=mnist", "hydra/sweeper=optuna"])
    assert (typed.axes, typed.jobs) == (["optimizer.lr"], [])


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (GRID[::-1], True),
        ([*GRID[:2], "optimizer.lr=0.1,0.01,0.001", GRID[3]], True),  # further values
        ([*GRID, "hydra/launcher=joblib"], True),  # the same jobs, run in another way
        ([*GRID[:3], "trust=[other]"], False),
        ([*GRID, "seed=0,1"], False),
        ([*GRID, "seed=1"], False),
    ],
)
def test_the_name_of_a_sweep(words: list[str], same: bool) -> None:
    name = Typed.parse(GRID).name
    assert name.startswith("model_lr-")
    assert (Typed.parse(words).name == name) == same


def test_the_names_of_jobs() -> None:
    swept = {"model": "lenet5", "optimizer.lr": "0.1", "seed": "0"}
    words = ["data=mnist", "model=lenet5", "optimizer.lr=0.1", "seed=0"]
    name = job_name(words, swept)
    assert name.startswith("lenet5-lr_0.1-seed_0-")
    assert job_name(words[::-1], swept) == name
    assert job_name(["data=cifar10", *words[1:]], swept) != name


@pytest.mark.parametrize(
    "value", ["/photos/of ants", "'a/../b'", "[1,2]", "{a: 1}", "x" * 300, "ä\n", "", "-", "=,="]
)
def test_any_value_makes_a_name_of_a_file(value: str) -> None:
    name = job_name([f"data.root={value}"], {"data.root": value})
    assert name.isascii()
    assert len(name) < 100
    assert not set(name) & set(" /,='[]{}\n")
    assert name[0] not in ".-"
    assert name != job_name(["data.root=other"], {"data.root": "other"})
