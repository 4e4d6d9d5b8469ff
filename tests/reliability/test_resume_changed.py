"""What may differ between a run and its resume, what may not, and that a new value is used."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from harness import Case, Result, checkpoint, mlp_case, result

pytestmark = pytest.mark.fault("R7")


def stop(case: Case) -> None:
    case.run(fault="losses 8 SIGTERM", code=143, last="stopped by SIGTERM at step 8;")


def last(case: Case) -> dict:
    return checkpoint(case.run_dir / "checkpoints/last.pt")


def test_how_a_run_is_driven(
    mlp: Case, mnist: Path, tmp_path: Path, uninterrupted: Callable[[Case], Result]
) -> None:
    """The same data in another place, other intervals, other workers: the same bits."""
    stop(mlp)
    moved = shutil.copytree(mnist, tmp_path / "moved")
    mlp.run(
        *("resume=auto", f"data_dir={moved}", "trainer.workers=1", "trainer.log_every=3st"),
        *("trainer.checkpoint_every=5st", "eval.batch_size=3", "trainer.progress=no"),
    )
    assert result(mlp).state == uninterrupted(mlp).state


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("optimizer.momentum=0.5", r"optimizer\.momentum: 0\.9 -> 0\.5"),
        ("scheduler.warmup=2st", r"scheduler\.warmup: \S+ -> 2st"),
        ("trainer.accumulate=2", r"trainer\.accumulate: 1 -> 2"),
        ("trainer.ema=0.9", r"trainer\.ema: \S+ -> 0\.9"),
        ("trainer.clip_norm=1", r"trainer\.clip_norm: \S+ -> 1"),
        ("trainer.duration=5ep", r"trainer\.duration: 4ep -> 5ep"),
        ("model.dropout=0.5", r"model\.dropout: \S+ -> 0\.5"),
    ],
)
def test_what_a_run_computes(stopped: Case, change: str, named: str) -> None:
    line = rf"error\[RESUME-CHANGED\]: .*{named}; .*resume_allow=\["
    stopped.run("resume=auto", change, code=2, last=line)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, mnist: Path) -> Case:
    case = mlp_case(tmp_path_factory.mktemp("stopped") / "case", mnist)
    stop(case)
    return case


def test_all_that_differs_is_named_at_once(stopped: Case) -> None:
    """And allowing one of them does not allow the others."""
    process = stopped.run(
        *("resume=auto", "optimizer.lr=0.1", "seed=1", "data.batch_size=8"),
        "resume_allow=[optimizer.lr]",
        code=2,
        last=r"error\[RESUME-CHANGED\]: .*data\.batch_size: 16 -> 8, seed: 0 -> 1; ",
    )
    assert "optimizer.lr: " not in process.last_line


def test_a_rate_of_zero_is_used(mlp: Case) -> None:
    """Nothing moves any more."""
    stop(mlp)
    before = last(mlp)["model"]
    mlp.run("resume=auto", "optimizer.lr=0", "resume_allow=[optimizer.lr]")
    after = last(mlp)
    assert after["position"]["step"] == 24
    assert all(torch.equal(tensor, before[name]) for name, tensor in after["model"].items())


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_another_number_of_threads(mlp: Case) -> None:
    """It goes on, and says that the bits are others."""
    stop(mlp)
    process = mlp.run("resume=auto", "trainer.threads=2")
    assert len(re.findall("warning: not bit-exact: threads 1 -> 2\n", process.err)) == 1
