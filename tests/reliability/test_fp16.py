"""fp16 with a scaled loss: a resume after a skipped step goes on with the same scale and bits.

The command refuses fp16 on a CPU, so the trainer is built here.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from harness import checkpoint, digest
from torch import nn

from cvtrain.config import EvalConfig, Precision, TrainerConfig
from cvtrain.data.arrays import Arrays
from cvtrain.data.batch import DataInfo
from cvtrain.data.loader import ArrayLoader, Order
from cvtrain.data.source import Source
from cvtrain.engine.checkpoint import Checkpoints
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.logs import Logs
from cvtrain.engine.plan import Parts, Plan
from cvtrain.engine.rundir import RunDir
from cvtrain.engine.schedule import ConstantLR
from cvtrain.engine.signals import StopFlag
from cvtrain.engine.trainer import Trainer
from cvtrain.models.mlp import MLP
from cvtrain.tasks.classification import Classification

CPU = torch.device("cpu")
STEPS = 20
SCALE = 2.0**24  # the gradients of the first steps overflow fp16, so these are skipped


class Noise(Source):
    """Images of noise, eight classes."""

    def __init__(self) -> None:
        self.mean, self.std = [0.5], [0.25]
        self.info = DataInfo("noise", tuple("abcdefgh"), 1, 8, "")
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (64, 1, 8, 8), generator=generator, dtype=torch.uint8)
        self.arrays = Arrays(images, torch.arange(64) % 8)


class StopAfter(Classification):
    """Asks for a stop in the step of this number."""

    def __init__(self, step: int | None, stop: StopFlag) -> None:
        super().__init__(num_classes=8)
        self.left, self.stop = step, stop

    def losses(self, model: nn.Module, batch: Any) -> Any:
        if self.left is not None:
            self.left -= 1
            self.stop.signum = 15 if self.left == 0 else 0
        return super().losses(model, batch)


def trainer(folder: Path, *, stop_after: int | None = None) -> Trainer:
    source, stop = Noise(), StopFlag()
    torch.manual_seed(0)
    model = MLP(num_classes=8, image_size=8, hidden=(32, 16))  # three layers
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    parts = Parts(
        source,
        ArrayLoader(source.arrays, Order(64, 16, train=True)),
        ArrayLoader(source.arrays, Order(64, 64, train=False)),
        source.transform(image_size=8, channels=1, device=CPU, channels_last=False),
        model,
        StopAfter(stop_after, stop),
        optimizer,
        ConstantLR(),
    )
    made = Trainer(
        parts,
        Plan(16, total=STEPS, seconds=None, log_every=1, eval_every=4, checkpoint_every=4),
        config=TrainerConfig(precision=Precision.fp16),
        eval_config=EvalConfig(),
        device=CPU,
        seed=0,
        run=RunDir.take(folder, resume=True, exact=True),
        logs=Logs(folder),
        checkpoints=Checkpoints(folder),
        stop=stop,
        ranks=Ranks(),
        about={},
    )
    # Growing again within the run: the count of good steps since the last skip matters too.
    made.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=5)
    return made


def run(folder: Path, *, stop_after: int | None = None) -> dict[str, Any]:
    """Train in `folder`, from its last checkpoint if it has one; what is saved at the end."""
    made = trainer(folder, stop_after=stop_after)
    state = made.checkpoints.load_last()
    if state:
        made.load(state, source=str(folder))
    try:
        made.fit()
    finally:
        made.logs.close()
        made.run.release()
    return checkpoint(folder / "checkpoints/last.pt")


@pytest.mark.fault("R4")
def test_resume_after_a_skipped_step(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    stopped = run(tmp_path / "parts", stop_after=1)
    assert stopped["scaler"]["scale"] == SCALE / 2  # skipped
    assert not stopped["optimizer"]["state"]  # and nothing was updated

    stopped = run(tmp_path / "parts", stop_after=12)
    assert stopped["scaler"]["_growth_tracker"] % 5 != 0  # good steps, too few to grow yet

    resumed = run(tmp_path / "parts")
    assert resumed["position"]["step"] == STEPS
    assert resumed["scaler"] == whole["scaler"]
    names = ("model", "optimizer", "scaler")
    assert digest([resumed[n] for n in names]) == digest([whole[n] for n in names])
