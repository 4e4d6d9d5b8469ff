"""Accumulation by construction: uneven micro-batches give the whole batch's gradient."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from cvtrain.config import EvalConfig, Precision, TrainerConfig
from cvtrain.engine.checkpoint import Checkpoints
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.logs import Logs
from cvtrain.engine.plan import Parts, Plan
from cvtrain.engine.schedule import ConstantLR
from cvtrain.engine.signals import StopFlag
from cvtrain.engine.trainer import Trainer
from cvtrain.errors import ConfigError
from cvtrain.tasks.base import Metric, Task
from cvtrain.tasks.classification import Classification

WEIGHTS = [0.1, 5.0, 1.0, 0.5]


class Batch(NamedTuple):
    images: Tensor
    labels: Tensor
    boxes: Tensor  # a target for the marked samples only
    marked: Tensor


def whole_batch(count: int = 11) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        torch.randn(count, 1, 3, 3, generator=generator),
        torch.randint(4, (count,), generator=generator),
        torch.randn(count, 4, generator=generator),
        torch.arange(count) < 4,  # unevenly spread over the micro-batches: some have none
    )


def micro_batches(batch: Batch, sizes: list[int]) -> tuple[Batch, ...]:
    assert sum(sizes) == len(batch.labels)
    return tuple(Batch(*part) for part in zip(*(c.split(sizes) for c in batch), strict=True))


class TwoLosses(Task):
    """As a detector has them: one loss over all samples, one over the marked ones."""

    primary = Metric("cls", higher_is_better=False)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        out, counts = model(batch.images), self.counts(model, batch)
        misses = F.smooth_l1_loss(out[batch.marked], batch.boxes[batch.marked], reduction="sum")
        return {
            "cls": (F.cross_entropy(out, batch.labels, reduction="sum"), counts["cls"]),
            "box": (misses, counts["box"]),
            "seen": (torch.ones(()), torch.ones(())),  # a figure, no part of the loss
        }

    def counts(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {
            "cls": torch.tensor(float(len(batch.labels))),
            "box": batch.marked.sum(),
            "seen": torch.ones(()),
        }


class Uncountable(TwoLosses):
    counts = Task.counts

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        return {"cls": (model(batch.images).sum(), torch.ones(()))}


class Recording(SGD):
    """Keeps the gradients that a step was taken with."""

    def step(self, closure: Any = None) -> None:
        params = self.param_groups[0]["params"]
        self.gradients = [None if p.grad is None else p.grad.clone() for p in params]
        super().step(closure)


class NoLoader:
    steps = 100

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, ...]]:
        raise AssertionError("train_step is called directly")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 16), nn.Tanh(), nn.Linear(16, 4))


def trainer(task: Task, run_dir: Path, **config: Any) -> Trainer:
    model = network()
    optimizer = Recording(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["initial_lr"] = 0.1
    parts = Parts(None, NoLoader(), NoLoader(), lambda b: b, model, task, optimizer, ConstantLR())  # type: ignore[arg-type]
    return Trainer(
        parts,
        Plan(
            batch_size=11,
            total=10,
            seconds=None,
            log_every=1,
            eval_every=10,
            checkpoint_every=10,
        ),
        config=TrainerConfig(precision=Precision.fp32, **config),
        eval_config=EvalConfig(),
        device=torch.device("cpu"),
        seed=0,
        run=None,
        logs=Logs(run_dir, active=False),
        checkpoints=Checkpoints(run_dir),
        stop=StopFlag(),
        ranks=Ranks(),
        about={},
    )


def expected_gradients(task: Task, batch: Batch) -> list[Tensor]:
    """What a user would write for the whole batch at once."""
    model = network()
    out = model(batch.images)
    if isinstance(task, Classification):
        weights = None if task.class_weights is None else torch.tensor(WEIGHTS)
        loss = F.cross_entropy(out, batch.labels, weight=weights)
    else:
        marked = batch.marked
        boxes = F.smooth_l1_loss(out[marked], batch.boxes[marked], reduction="sum") / marked.sum()
        loss = F.cross_entropy(out, batch.labels) + boxes
    return list(torch.autograd.grad(loss, list(model.parameters())))


def distance(left: list[Tensor], right: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(left, right, strict=True))


TASKS = {
    "plain": lambda: Classification(num_classes=4),
    "weights": lambda: Classification(num_classes=4, class_weights=WEIGHTS),
    "two losses": TwoLosses,
}


@pytest.mark.parametrize("sizes", [[11], [6, 5], [4, 4, 3], [1, 9, 1], [1] * 11], ids=str)
@pytest.mark.parametrize("task", TASKS)
def test_the_whole_batchs_gradient(task: str, sizes: list[int], tmp_path: Path) -> None:
    made, batch = TASKS[task](), whole_batch()
    run = trainer(made, tmp_path)
    run.train_step(micro_batches(batch, sizes))
    expected = expected_gradients(made, batch)
    assert distance(run.parts.optimizer.gradients, expected) < 1e-6
    norm = torch.stack([g.square().sum() for g in expected]).sum().sqrt()
    torch.testing.assert_close(run.grad_norm, norm)


@pytest.mark.parametrize("task", ["weights", "two losses"])
def test_averaging_averages_would_be_another_gradient(task: str) -> None:
    """The mistake that these tests are for is far larger than their tolerance."""
    made, batch = TASKS[task](), whole_batch()
    parts = [expected_gradients(made, part) for part in micro_batches(batch, [6, 5])]
    mean = [(a + b) / 2 for a, b in zip(*parts, strict=True)]
    assert distance(mean, expected_gradients(made, batch)) > 1e-2


@pytest.mark.parametrize("task", TASKS)
def test_logged_figures_are_the_whole_batchs(task: str, tmp_path: Path) -> None:
    """Over two steps and any micro-batches: sums over counts, divided once."""
    written = []
    for sizes in ([11], [2, 8, 1]):
        run = trainer(TASKS[task](), tmp_path)
        run.window_clock, run.window_step = 0.0, 0
        run.logs.scalars = lambda values, **_: written.append(values)  # type: ignore[method-assign]
        for seed in (0, 1):
            torch.manual_seed(seed)
            batch = whole_batch()._replace(images=torch.randn(11, 1, 3, 3))
            run.train_step(micro_batches(batch, sizes))
        run.log()
    once, split = (
        {k: v for k, v in values.items() if k != "train/images_per_sec"} for values in written
    )
    assert split == pytest.approx(once, rel=1e-5)
    if task == "two losses":
        assert once["train/loss"] == pytest.approx(once["train/cls"] + once["train/box"])
        assert once["train/seen"] == 1


def test_clipping_sees_the_whole_batch(tmp_path: Path) -> None:
    batch = whole_batch()
    results = []
    for sizes in ([11], [4, 4, 3]):
        run = trainer(Classification(num_classes=4), tmp_path, clip_norm=0.05)
        run.train_step(micro_batches(batch, sizes))
        results.append(run.parts.optimizer.gradients)
        norm = torch.stack([g.square().sum() for g in results[-1]]).sum().sqrt()
        assert norm.item() == pytest.approx(0.05, rel=1e-4)
        assert run.grad_norm > 0.05  # what is reported is the norm before
    assert distance(*results) < 1e-6


def test_a_task_without_counts_cannot_accumulate(tmp_path: Path) -> None:
    batch = whole_batch()
    trainer(Uncountable(), tmp_path).train_step((batch,))
    with pytest.raises(ConfigError, match=r"Uncountable cannot accumulate.*trainer\.accumulate=1"):
        trainer(Uncountable(), tmp_path).train_step(micro_batches(batch, [6, 5]))


def test_frozen_parameters_are_left_alone(tmp_path: Path) -> None:
    """Every parameter is in the optimizer from the first step, frozen ones without a gradient."""
    run = trainer(Classification(num_classes=4), tmp_path)
    frozen = run.parts.model[1]
    frozen.requires_grad_(False)
    before = frozen.weight.clone()
    for group in run.parts.optimizer.param_groups:
        group.update(momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        run.train_step(micro_batches(whole_batch(), [6, 5]))
    assert torch.equal(frozen.weight, before)
    assert run.parts.optimizer.gradients[0] is None
    assert run.parts.optimizer.gradients[2] is not None
