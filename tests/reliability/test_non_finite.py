"""A number that is not finite ends the run with code 5, and is in nothing that is saved."""

import json
import re
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import test_fp16
import torch
from harness import Case, Result, checkpoint, digest, result

from cvtrain.config import OnNonfinite, Precision, TrainerConfig
from cvtrain.data.loader import Order
from cvtrain.engine.watch import Skips

FIGURES = r"error\[NON-FINITE\]: not finite: .*loss=\S+, .*lr=\S+"


def check_only_finite(case: Case) -> None:
    for path in (case.run_dir / "checkpoints").glob("step_*.pt"):
        bad = [name for name, tensor in tensors(checkpoint(path)) if not tensor.isfinite().all()]
        assert not bad, f"{path}: {bad}"
    assert all(value == value for line in case.lines() for value in line.values())  # no NaN


def tensors(value: object, name: str = "") -> list[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        return [(name, value)]
    items = value.items() if isinstance(value, dict) else ()
    return [found for key, inner in items for found in tensors(inner, f"{name}.{key}")]


@pytest.mark.fault("N1")
def test_rate_far_too_high(mlp: Case) -> None:
    process = mlp.run(
        "optimizer.lr=1e30",
        "trainer.checkpoint_every=1st",
        code=5,
        last=FIGURES + r"; step \d+, samples train\[\d+\] .*; ",
    )
    assert "lr=1e+30" in process.last_line
    check_only_finite(mlp)


@pytest.mark.fault("N1")
def test_weights_overflow_in_an_update(mlp: Case) -> None:
    """Loss and gradient of the step are finite; what the step makes of the weights is not."""
    mlp.run(
        *("optimizer.lr=1e30", "optimizer.weight_decay=1e30", "trainer.checkpoint_every=1st"),
        code=5,
        last=r"error\[NON-FINITE\]: .*step \d",
    )
    check_only_finite(mlp)


@pytest.mark.fault("N1")
@pytest.mark.parametrize(
    ("task", "figure"), [("NanPart", r"part=nan"), ("InfGradient", r"loss=\d.*grad_norm=(inf|nan)")]
)
def test_one_part_of_the_loss_or_its_gradient(mlp: Case, task: str, figure: str) -> None:
    process = mlp.run(
        f"task._target_=user_code.{task}",
        "trainer.checkpoint_every=1st",
        code=5,
        last=FIGURES + ".*; step 3, samples .*last good checkpoint .*step_00000003.pt",
    )
    assert re.search(figure, process.last_line)
    assert mlp.steps == [1, 2, 3]
    assert mlp.status()["step"] == 3
    check_only_finite(mlp)


@pytest.mark.fault("N1")
def test_figure_of_an_evaluation(mlp: Case) -> None:
    """It neither picks the best checkpoint nor is written down."""
    mlp.run(
        "task._target_=user_code.NanFigure",
        code=5,
        last=r"error\[NON-FINITE\]: not finite: .*val/top1_err=nan.*; step 12; ",
    )
    saved = checkpoint(mlp.run_dir / "checkpoints/best.pt")
    assert saved["position"]["best_step"] == saved["position"]["step"] == 6
    check_only_finite(mlp)


# Steps that are skipped

SKIP = ("trainer.on_nonfinite=skip", "trainer.checkpoint_every=1st")
STATE = ("model", "ema", "optimizer", "scaler", "schedule")
# Batch norm, momentum, a moving average of the weights: everything that a bad batch could spoil.
WITH_STATE = (*("model=cnn", "model.widths=[4,4]", "optimizer.momentum=0.9", "trainer.ema=0.9"),)


ORDER = Order(samples=96, batch_size=16, train=True, seed=0)


def sample_at(step: int) -> int:
    """A sample of this step of the first epoch; in the other epochs it comes elsewhere."""
    return int(list(ORDER.indices(0, 0))[step][0][5])


def steps_with(*samples: int) -> int:
    """How many of the steps of four epochs have one of these."""
    batches = [part for epoch in range(4) for (part,) in ORDER.indices(epoch, 0)]
    return sum(bool(torch.isin(batch, torch.tensor(samples)).any()) for batch in batches)


def bad(samples: list[int], where: str = "images") -> list[str]:
    return ["task._target_=user_code.BadSamples", f"+task.bad={samples}", f"+task.where={where}"]


def with_state(mlp: Case) -> Case:
    mlp.overrides = [o for o in mlp.overrides if not o.startswith("model")] + [*WITH_STATE]
    return mlp


def summary(case: Case) -> dict:
    return json.loads((case.run_dir / "summary.json").read_text())


def warnings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("warning: skipped")]


@pytest.mark.fault("N2")
@pytest.mark.parametrize("where", ["images", "loss"])
@pytest.mark.parametrize("clip", ["null", "0.1"])
def test_a_skipped_step_changes_nothing(mlp: Case, where: str, clip: str) -> None:
    case, sample = with_state(mlp), sample_at(3)
    process = case.run(
        *SKIP, *bad([sample], where), "trainer.duration=4st", f"trainer.clip_norm={clip}"
    )
    [line] = warnings(process.err)
    figure = "loss=(inf|nan)" if where == "loss" else "loss=nan.*grad_norm=nan"
    assert re.search(f"1 in a row: not finite: .*{figure}.*; step 3, samples ", line), line
    assert case.steps == [1, 2, 3]  # nothing of it is logged
    assert summary(case)["skipped_steps"] == 1
    assert "4 steps" in process.out
    assert "1 steps skipped" in process.out
    folder = case.run_dir / "checkpoints"
    before, after = (checkpoint(folder / f"step_0000000{step}.pt") for step in (3, 4))
    assert any(name.endswith("running_mean") for name in before["model"])
    assert any("momentum_buffer" in state for state in before["optimizer"]["state"].values())
    for name in STATE:
        assert digest(after[name]) == digest(before[name]), name
    assert after["position"]["step"] == 4
    assert (after["position"]["skipped"], after["position"]["skipped_in_a_row"]) == (1, 1)
    check_only_finite(case)


@pytest.mark.fault("N2")
def test_without_skipping_the_same_batch_ends_the_run(mlp: Case) -> None:
    """So the test above has something to skip."""
    with_state(mlp).run(
        *bad([sample_at(3)]), "trainer.checkpoint_every=1st", code=5, last=FIGURES + ".*; step 3, "
    )


@pytest.mark.fault("N2")
@pytest.mark.parametrize(
    ("most", "skipped"), [("null", 3), ("0", 0), ("1", 1), ("20", 20), ("30", 21)]
)
def test_too_many_in_a_row(mlp: Case, most: str, skipped: int) -> None:
    """From the fourth step on every gradient is infinite: 21 steps are left."""
    process = mlp.run(
        *SKIP,
        *("task._target_=user_code.InfGradient", f"trainer.max_skips={most}"),
        "trainer.clip_norm=1",
        code=0 if most == "30" else 5,
        last=""
        if most == "30"
        else FIGURES + rf"; {skipped + 1} in a row .*; step {skipped + 3}, ",
    )
    assert len(warnings(process.err)) == skipped
    last = checkpoint(mlp.run_dir / "checkpoints/last.pt")
    assert last["position"]["skipped"] == skipped
    assert mlp.steps == [1, 2, 3]
    check_only_finite(mlp)


@pytest.mark.fault("N2")
def test_a_good_step_in_between_and_the_count_begins_anew(mlp: Case) -> None:
    """One bad sample, met once in each of four epochs."""
    process = mlp.run(*SKIP, *bad([17]), "trainer.max_skips=1")
    assert len(warnings(process.err)) == 4
    assert all("1 in a row" in line for line in warnings(process.err))
    assert summary(mlp)["skipped_steps"] == 4
    assert len(mlp.steps) == 20
    check_only_finite(mlp)


@pytest.mark.fault("N2")
def test_a_resume_knows_how_many_were_skipped(
    mlp: Case, uninterrupted: Callable[[Case], Result]
) -> None:
    mlp.overrides += [*SKIP, *bad([sample_at(3), sample_at(4)])]
    expected = uninterrupted(mlp)
    mlp.run(fault="losses 4 SIGTERM", code=143)
    stopped = checkpoint(mlp.run_dir / "checkpoints/last.pt")["position"]
    assert (stopped["step"], stopped["skipped"], stopped["skipped_in_a_row"]) == (4, 1, 1)
    process = mlp.run("resume=auto")
    assert warnings(process.err)[0].startswith("warning: skipped, 2 in a row: ")
    assert result(mlp) == expected
    assert summary(mlp)["skipped_steps"] == steps_with(sample_at(3), sample_at(4))


@pytest.mark.fault("N2")
def test_fp16_skips_and_still_lowers_its_scale(tmp_path: Path) -> None:
    run = test_fp16.trainer(tmp_path / "run")
    config = TrainerConfig(precision=Precision.fp16, on_nonfinite=OnNonfinite.skip)
    run.skips = Skips(config)
    assert run.skips.most == 20
    scale, before = test_fp16.SCALE, digest(run.parts.model.state_dict())
    for batch in chain.from_iterable(map(run.parts.train.epoch, range(5))):
        run.train_step(batch)
        if not run.position.skipped_in_a_row:
            break
        scale /= 2
        assert run.scaler.get_scale() == scale
        assert digest(run.parts.model.state_dict()) == before
        assert not run.parts.optimizer.state_dict()["state"]
    assert run.position.skipped >= 1
    assert run.position.skipped_in_a_row == 0
    assert digest(run.parts.model.state_dict()) != before
    assert all(torch.isfinite(total) for total in run.window.totals.values())
    run.run.release()
