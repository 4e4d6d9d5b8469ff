"""1, 2 and 4 processes: the same losses, and the same figures of one checkpoint."""

import csv
import json
from pathlib import Path

import pytest
from ranks import Run, start, succeeded
from tiny import metrics, summary, write_mnist

STEPS = ("trainer.duration=20st", "trainer.log_every=1st", "trainer.threads=1")
# Neither batch norm nor dropout, whose draws are a process's own.
LENET = [
    *("model=lenet5", "data=mnist", "data_dir=digits", "recipe=none", "optimizer.lr=0.05"),
    *("data.batch_size=16", "eval.batch_size=5", *STEPS),
]
# Group norm; regions that hang on nothing but the image. (Where a network proposes them itself, the
# last digit of a score can decide on one.)
DETECTOR = [
    *("model=fast_rcnn_tiny", "data=shapes_boxes", "data_dir=drawn", "data.batch_size=8"),
    *("data.size=64", "data.train=40", "data.val=11", *STEPS, "eval.every=20st"),
]
BN = ["model=cnn", "model.widths=[4,8]", "trainer.ema=0.9", *LENET[1:]]
RUNS = {"lenet": LENET, "detector": DETECTOR, "bn": BN}
NUMBERS = (1, 2, 4)
EVALUATED = {"lenet_1": NUMBERS, "detector_1": NUMBERS, "lenet_2": (2,), "bn_2": (2,)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("processes")
    write_mnist(root / "digits", train=96, val=43)
    start(
        root,
        [
            Run(f"{name}_{number}", number, [*words, f"hydra.run.dir={name}_{number}"])
            for name, words in RUNS.items()
            for number in NUMBERS
            if name != "bn" or number == 2
        ],
    )
    start(
        root,
        [
            Run(f"eval_{run}_{number}", number, ["eval", f"run={run}", f"out=eval_{run}_{number}"])
            for run, numbers in EVALUATED.items()
            for number in numbers
        ],
    )
    return root


@pytest.mark.parametrize("number", NUMBERS[1:])
@pytest.mark.parametrize("name", ["lenet", "detector"])
def test_losses_are_those_of_one_process(folder: Path, name: str, number: int) -> None:
    succeeded(folder, f"{name}_{number}")
    one, many = (metrics(folder / f"{name}_{count}") for count in (1, number))
    losses = [
        (left[key], right[key])
        for left, right in zip(one, many, strict=True)
        for key in left
        if key.startswith("train/") and key not in ("train/images_per_sec", "train/grad_norm")
    ]
    assert len(losses) >= 20 * 2
    for left, right in losses:
        assert right == pytest.approx(left, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("run", ["lenet_1", "detector_1"])
def test_one_checkpoint_has_the_same_figures(folder: Path, run: str) -> None:
    """Each sample once, none padded: counts and mAP to the last bit."""
    told = []
    for number in NUMBERS:
        succeeded(folder, f"eval_{run}_{number}")
        told.append(summary(folder / f"eval_{run}_{number}"))
    names = [name for name in told[0] if name.startswith("val/") and name != "val/loss"]
    assert len(names) >= 2
    for name in names:
        assert told[0][name] == told[1][name] == told[2][name], name
    tables = []
    for number in NUMBERS:
        with (folder / f"eval_{run}_{number}" / "samples.csv").open(newline="") as file:
            tables.append([row["id"] for row in csv.DictReader(file)])
    assert tables[0] == tables[1] == tables[2] == sorted(set(tables[0]), key=int)


@pytest.mark.parametrize("run", ["lenet_1", "lenet_2", "bn_2"])
def test_figures_while_training_are_those_of_its_checkpoint(folder: Path, run: str) -> None:
    """With batch norm too, whose statistics every process has gathered for itself."""
    succeeded(folder, f"eval_{run}_{run[-1]}")
    told = summary(folder / f"eval_{run}_{run[-1]}")
    assert told["stored"].startswith("exactly these 3 figures")


def test_it_says_how_many_share_a_batch(folder: Path) -> None:
    said = [(folder / f"lenet_2.{rank}.err").read_text() for rank in (0, 1)]
    assert "2 processes share each batch of 16, threads: 1" in said[0]
    assert said[1] == ""  # one log
    starts = json.loads((folder / "lenet_2" / "environment.json").read_text())["starts"]
    assert len(starts) == 1
