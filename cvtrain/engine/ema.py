"""Exponential moving average of the weights (Polyak averaging), evaluated in their place."""

from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Ema:
    """With `decay=None` it does nothing and `model` is the trained one."""

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.source = model
        self.average = (
            None
            if decay is None
            else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        )

    @property
    def model(self) -> nn.Module:
        return self.source if self.average is None else self.average.module

    def update(self) -> None:
        if self.average is not None:
            self.average.update_parameters(self.source)

    def state_dict(self) -> dict[str, Any] | None:
        return None if self.average is None else self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        if self.average is not None and state is not None:
            self.average.load_state_dict(state)
