"""Evaluation: every sample counted once, on one process or many."""

from typing import Any

import torch
from torch import nn

from cvtrain.data.batch import to_device
from cvtrain.data.loader import Loader
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.signals import StopFlag
from cvtrain.tasks.base import Evaluator, Showing, Task


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
    stop: StopFlag | None = None,
    max_batches: int | None = None,
) -> Evaluator | None:
    """What the task's evaluator holds of all processes; None when a stop came in between."""
    training = [module for module in model.modules() if module.training]  # not frozen batch norm
    model.eval()
    evaluator = task.evaluator()
    try:
        for number, micro_batches in enumerate(loader.epoch(0)):
            if number == max_batches:
                break
            if stop is not None and ranks.stopped(stop):
                return None
            for batch in micro_batches:
                prepared = transform(to_device(batch, device))
                with autocast:
                    predictions = task.predict(model, prepared)
                evaluator.update(predictions, prepared)
        evaluator.totals = ranks.sum(evaluator.totals)
        if isinstance(evaluator, Showing):
            evaluator.merge(ranks.gather(evaluator.kept()))
        return evaluator
    finally:
        for module in training:
            module.training = True
