"""Optimizers: their state, without their settings."""

from typing import Any

from torch.optim import Optimizer


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """torch restores the old rates and decays too; here those of the config are meant to hold."""
    settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
