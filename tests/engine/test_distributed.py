"""Two processes do what one does: the same samples, figures and weights, one run directory."""

import json
from pathlib import Path

import pytest
import torch
from ranks import Run, start, succeeded
from tiny import TINY_SHAPES, metrics, summary, write_mnist

from cvtrain.engine.checkpoint import read_checkpoint

# 50 digits in batches of 7: shares of 4 and 3; 11 validated by 5: the last batch is one sample, so
# a rank has none of it. Augmented, so that the table of uniforms has to be the same on both.
DIGITS = [
    *("recipe=lenet5_mnist_distorted", "trainer.duration=3ep", "trainer.log_every=1st"),
    *("data.batch_size=7", "eval.batch_size=5", "eval.every=1ep", "optimizer.lr=0.1"),
    *("scheduler.warmup=2st", "data_dir=digits"),
]
TIMED = [
    *("model=lenet5", "data=mnist", "recipe=none", "scheduler=constant", "data_dir=digits"),
    *("data.batch_size=10", "trainer.duration=0.03min", "hydra.run.dir=timed"),
]
SHAPES = [
    *("model=cnn", "data=shapes", "debug=smoke", "data.root=drawn", *TINY_SHAPES),
    *("trainer.accumulate=2", "hydra.run.dir=shapes"),
]


# A convolution stands still, the last layer learns alone for an epoch and a half, then everything.
PHASES = [
    *(*DIGITS, "model.freeze=[c1]", "trainer.head_first=1.5ep", "trainer.after_head=0.5"),
    *("trainer.accumulate=2", "optimizer.layer_decay=0.5"),
]
# One sample's loss is infinite, on whichever process has it; the gradients are finite everywhere.
BAD = [
    *(*DIGITS, "trust=[user_code]", "task._target_=user_code.BadSamples", "+task.bad=[11]"),
    "+task.where=loss",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each of the runs below has been, and in `codes.json` how its processes ended."""
    root = tmp_path_factory.mktemp("ranks")
    write_mnist(root / "digits", train=50, val=11)
    skipping = [*BAD, "trainer.on_nonfinite=skip"]
    runs = [
        Run("one", 1, [*DIGITS, "hydra.run.dir=one"]),
        # No directory is typed: both must agree on the one whose name holds the time.
        Run("two", 2, DIGITS),
        Run("timed", 2, TIMED, late=0.5),
        Run("skip_one", 1, [*skipping, "hydra.run.dir=skip_one"]),
        Run("skip_two", 2, [*skipping, "hydra.run.dir=skip_two"]),
        Run("phases_one", 1, [*PHASES, "hydra.run.dir=phases_one"]),
        Run("phases_two", 2, [*PHASES, "hydra.run.dir=phases_two"]),
        Run("bad_two", 2, [*BAD, "hydra.run.dir=bad_two"]),
        Run("shapes", 2, SHAPES),
    ]
    start(root, runs)
    return root


def test_two_processes_equal_one(folder: Path) -> None:
    succeeded(folder, "one")
    succeeded(folder, "two")
    [two] = (folder / "outputs" / "lenet5_mnist").iterdir()
    compare(folder / "one", two, count=3 * 7 + 3)


def compare(one: Path, two: Path, *, count: int) -> None:
    lines = list(zip(metrics(one), metrics(two), strict=True))
    assert len(lines) == count
    for left, right in lines:
        assert left.keys() == right.keys()
        for name, value in left.items():
            if name == "train/images_per_sec":
                continue
            exact = name in ("step", "epoch", "train/lr") or name.endswith("_err")
            assert right[name] == (value if exact else pytest.approx(value, rel=2e-4)), (name, left)
    elevenths = 11 * lines[-1][0]["val/top1_err"] / 100
    assert elevenths == pytest.approx(round(elevenths))  # each sample once, none padded
    weights = [read_checkpoint(run / "checkpoints" / "last.pt")["model"] for run in (one, two)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=1e-4, msg=name)
    told = [summary(run) for run in (one, two)]
    for name in ("steps", "epochs", "best/step", "val/top1_err", "val/top5_err", "parameters"):
        assert told[0][name] == told[1][name], name
    # What is counted and shown of the evaluation is that of all processes.
    assert told[0]["per_class"] == told[1]["per_class"]
    assert sum(row["samples"] for row in told[1]["per_class"].values()) == 11
    for picture in ("samples.png", "confusion.png", "worst.png"):
        assert (one / picture).read_bytes() == (two / picture).read_bytes(), picture
    assert sorted(p.name for p in one.iterdir() if "events" not in p.name) == sorted(
        p.name for p in two.iterdir() if "events" not in p.name
    )


def test_phases_on_two_processes(folder: Path) -> None:
    succeeded(folder, "phases_one")
    succeeded(folder, "phases_two")
    compare(folder / "phases_one", folder / "phases_two", count=3 * 7 + 3)


@pytest.mark.fault("N2")
def test_what_is_not_finite_on_one_process_is_skipped_by_both(folder: Path) -> None:
    succeeded(folder, "skip_one")
    succeeded(folder, "skip_two")
    told = [summary(folder / name) for name in ("skip_one", "skip_two")]
    assert told[0]["skipped_steps"] == told[1]["skipped_steps"] >= 2  # once an epoch, or left out
    count = 3 * 7 + 3 - told[0]["skipped_steps"]  # there is nothing to log of a skipped step
    compare(folder / "skip_one", folder / "skip_two", count=count)
    said = (folder / "skip_two.0.err").read_text() + (folder / "skip_two.1.err").read_text()
    lines = [line for line in said.splitlines() if line.startswith("warning: skipped")]
    assert len(lines) == told[1]["skipped_steps"]  # one each, and not one for every process
    assert all("loss=inf" in line and "train[11]" in line for line in lines)


@pytest.mark.fault("N1")
def test_what_is_not_finite_on_one_process_ends_both(folder: Path) -> None:
    assert json.loads((folder / "codes.json").read_text())["bad_two"] == [5, 5]
    for number in (0, 1):
        line = (folder / f"bad_two.{number}.err").read_text().splitlines()[-1]
        assert "error[NON-FINITE]: not finite: loss=inf" in line
        assert "train[11]" in line


def test_a_run_by_the_clock_ends_on_every_process_at_once(folder: Path) -> None:
    """Each has a clock of its own, and one began half a second late; none may wait for ever."""
    succeeded(folder, "timed")
    told = summary(folder / "timed")
    assert 0 < told["seconds"] < 30  # by the clock that was ahead
    assert metrics(folder / "timed")[-1]["step"] == told["steps"]


def test_files_on_two_processes(folder: Path) -> None:
    """Drawn on first use by whichever process comes first; in micro-batches besides."""
    succeeded(folder, "shapes")
    assert summary(folder / "shapes")["steps"] == 2
