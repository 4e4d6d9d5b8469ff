"""Evaluation: every sample counted once, on one process or many."""

from typing import Any

import torch
from torch import nn

from cvtrain.data.batch import to_device
from cvtrain.data.loader import Loader
from cvtrain.engine.distributed import Ranks
from cvtrain.tasks.base import Task


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Loader,
    *,
    task: Task,
    transform: Any,
    device: torch.device,
    autocast: Any,
    ranks: Ranks,
    stop: Any = False,
    max_batches: int | None = None,
) -> dict[str, float] | None:
    """The task's figures over the loader; None when a stop was asked for in between."""
    was_training = model.training
    model.eval()
    evaluator = task.evaluator()
    try:
        for number, micro_batches in enumerate(loader.epoch(0)):
            if number == max_batches:
                break
            if ranks.any(bool(stop), device):
                return None
            for batch in micro_batches:
                prepared = transform(to_device(batch, device))
                with autocast:
                    predictions = task.predict(model, prepared)
                evaluator.update(predictions, prepared)
        evaluator.totals = ranks.sum(evaluator.totals)
        return evaluator.compute()
    finally:
        model.train(was_training)
