"""A detector that meets a number that is not finite ends with code 5; torchvision's, too."""

import json
from pathlib import Path

import pytest
from harness import Case
from test_non_finite import check_only_finite

FIGURES = r"error\[NON-FINITE\]: not finite: .*(cls|box_reg)=nan, .*grad_norm=\S+, lr=0\.001"

SMALL = (
    *("model=faster_rcnn_tiny", "model.body.widths=[8,16,16]", "model.body.hidden=16"),
    *("model.rpn.channels=16", "model.rpn.post_nms=[40,20]"),
)
TORCHVISIONS = (
    *("model=torchvision_detector", "model.name=fasterrcnn_mobilenet_v3_large_320_fpn"),
    "trainer.checkpoint_every=9ep",
)


def case(folder: Path, *words: str) -> Case:
    """Four steps an epoch."""
    return Case(
        folder / "case",
        *("data=shapes_boxes", "data.size=64", "data.train=16", "data.val=2", "recipe=none"),
        *(f"data.root={folder}/drawn", "data.batch_size=4", "trainer.duration=1ep"),
        *("trainer.log_every=1st", "trainer.checkpoint_every=1st", "optimizer.lr=0.001", *words),
    )


@pytest.mark.fault("N1")
@pytest.mark.parametrize("bad", ["pixel_nan", "box_inf", "box_nan"])
@pytest.mark.parametrize("model", [SMALL, TORCHVISIONS], ids=["ours", "torchvisions"])
def test_a_pixel_or_a_box(tmp_path: Path, model: tuple[str, ...], bad: str) -> None:
    """An infinite box ends the process inside torchvision 0.29, where it gets there."""
    spoilt = ("task._target_=user_code.BadDetection", f"+task.bad={bad}")
    run = case(tmp_path, *model, "trust=[user_code]", *spoilt)
    run.run(code=5, last=FIGURES + r"; step 2, samples .*; ")
    assert run.steps == [1, 2]
    check_only_finite(run)


@pytest.mark.fault("N1")
def test_a_loss_of_the_evaluation(tmp_path: Path) -> None:
    """With `task.val_losses` it is a figure as any."""
    spoilt = ("task.val_losses=true", "task.loss_weights={cls: 1e39}", "task.losses=[rpn_cls]")
    process = case(tmp_path, *SMALL, *spoilt).run(code=5, last=r"error\[NON-FINITE\]")
    assert "cls=inf" in process.last_line


def test_losses_of_the_evaluation_are_written(tmp_path: Path) -> None:
    run = case(tmp_path, *SMALL, "task.val_losses=true", "task.flip=true", "eval.every=2st")
    run.run()
    names = ("cls", "box", "rpn_cls", "rpn_box")
    [first, last] = [line for line in run.lines() if "val/mAP" in line]
    assert all(0 < line[f"val/{name}"] < 100 for line in (first, last) for name in names)
    assert all(first[f"val/{name}"] != last[f"val/{name}"] for name in names)
    told = json.loads((run.run_dir / "summary.json").read_text())
    assert told["val/cls"] == pytest.approx(last["val/cls"], abs=1e-3)
