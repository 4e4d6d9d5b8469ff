"""A number that is not finite ends the run with code 5, and is in nothing that is saved."""

import re

import pytest
import torch
from harness import Case, checkpoint

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


def test_rate_far_too_high(mlp: Case) -> None:
    process = mlp.run(
        "optimizer.lr=1e30",
        "trainer.checkpoint_every=1st",
        code=5,
        last=FIGURES + r"; step \d+, samples train\[\d+\] .*; ",
    )
    assert "lr=1e+30" in process.last_line
    check_only_finite(mlp)


def test_weights_overflow_in_an_update(mlp: Case) -> None:
    """Loss and gradient of the step are finite; what the step makes of the weights is not."""
    mlp.run(
        *("optimizer.lr=1e30", "optimizer.weight_decay=1e30", "trainer.checkpoint_every=1st"),
        code=5,
        last=r"error\[NON-FINITE\]: .*step \d",
    )
    check_only_finite(mlp)


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
