"""A detector that was stopped and resumed ends with the same bits, too."""

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import EVERY_STEP, Case, Result, result

SMALL = (
    *("model=faster_rcnn_tiny", "model.body.widths=[8,16,16]", "model.body.hidden=16"),
    *("model.rpn.channels=16", "model.rpn.post_nms=[40,20]", "recipe=none", "optimizer.lr=0.01"),
)


# Several sizes, none of them larger than need be.
JITTER = "data.augment.scale_jitter_boxes"
SIZES = (f"{JITTER}.target_size=[64,64]", f"{JITTER}.scale_range=[0.5,2.0]")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawn")


@pytest.fixture
def boxes(tmp_path: Path, drawn: Path) -> Case:
    """Several sizes, flips, images without objects; four steps an epoch, eight in all."""
    return Case(
        tmp_path / "case",
        *(*SMALL, "data=shapes_boxes", "data.size=64", "data.train=16", "data.val=4"),
        *(f"data.root={drawn}", "data.batch_size=4", "trainer.duration=2ep"),
        *("augment=[flip,scale_jitter_boxes,photometric]", *SIZES, *EVERY_STEP),
        *("trust=[user_code]", "task._target_=user_code.FaultyDetection"),
    )


@pytest.mark.fault("R5")
@pytest.mark.parametrize("workers", [0, 2])
def test_detection(workers: int, boxes: Case, uninterrupted: Callable[[Case], Result]) -> None:
    for at, since in ((2, 0), (4, 2), (5, 4)):
        resume = ["resume=auto"] if since else []
        fault = f"losses {at - since} SIGTERM"
        boxes.run(*resume, f"trainer.workers={workers}", fault=fault, code=143)
        assert boxes.status()["step"] == at
    boxes.run("resume=auto", "trainer.workers=1")
    assert result(boxes) == uninterrupted(boxes)
