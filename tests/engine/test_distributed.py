"""Two processes do what one does: the same samples, figures and weights, one run directory."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import TINY_SHAPES, metrics, summary, write_mnist

from cvtrain.engine.checkpoint import read_checkpoint

# Starts the command once per rank, with the environment that torchrun would give. Forked from one
# process that has the imports behind it, for they take longer than all of these runs.
DRIVER = """
import json, os, signal, sys, time
import matplotlib.backends.backend_agg, torch.utils.tensorboard, cvtrain.verbs.train
from cvtrain.cli import main
from cvtrain.engine.logs import Logs

def rank(number, world_size, port, late, arguments, errors):
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.alarm(60)  # whoever waits for ever dies of it
    if world_size > 1:
        os.environ |= {
            "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
        }
    if number == 0 and late:
        opened = Logs.open
        Logs.open = lambda *a, **k: (time.sleep(late), opened(*a, **k))[1]
    sys.argv = ["cvtrain", *arguments]
    main()

def start(name, world_size, port, late, arguments):
    children = []
    for number in range(world_size):
        child = os.fork()
        if child == 0:
            try:
                rank(number, world_size, port, late, arguments, f"{name}.{number}.err")
            except SystemExit as end:
                os._exit(end.code)
            finally:
                os._exit(99)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

print(json.dumps({run[0]: start(*run) for run in json.loads(sys.argv[1])}))
"""

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


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each of the runs below has been, and in `codes.json` how its processes ended."""
    root = tmp_path_factory.mktemp("ranks")
    write_mnist(root / "digits", train=50, val=11)
    runs = [
        ("one", 1, 0, 0, [*DIGITS, "hydra.run.dir=one"]),
        # No directory is typed: both must agree on the one whose name holds the time.
        ("two", 2, free_port(), 0, DIGITS),
        ("timed", 2, free_port(), 0.5, TIMED),
        ("skip_one", 1, 0, 0, [*BAD, "trainer.on_nonfinite=skip", "hydra.run.dir=skip_one"]),
        (
            "skip_two",
            2,
            free_port(),
            0,
            [*BAD, "trainer.on_nonfinite=skip", "hydra.run.dir=skip_two"],
        ),
        ("phases_one", 1, 0, 0, [*PHASES, "hydra.run.dir=phases_one"]),
        ("phases_two", 2, free_port(), 0, [*PHASES, "hydra.run.dir=phases_two"]),
        ("bad_two", 2, free_port(), 0, [*BAD, "hydra.run.dir=bad_two"]),
        ("shapes", 2, free_port(), 0, SHAPES),
    ]
    command = [sys.executable, "-c", DRIVER, json.dumps(runs)]
    paths = [str(Path(__file__).parents[1] / "reliability"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    (root / "codes.json").write_text(done.stdout.splitlines()[-1])
    return root


def succeeded(folder: Path, name: str) -> None:
    codes = json.loads((folder / "codes.json").read_text())[name]
    said = "\n".join(file.read_text() for file in sorted(folder.glob(f"{name}.*.err")))
    assert not any(codes), f"{codes}: {said}"


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
