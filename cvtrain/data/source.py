"""What a data set is to the rest: an info record, splits, and the transform of its batches."""

from typing import Any, Protocol

import torch
from torch import Tensor

from cvtrain.data.batch import DataInfo, Normalise


class Split(Protocol):
    """Array data: everything in memory, a batch is an index. (File data: a torch `Dataset`.)"""

    draws: int  # uniform random numbers that augmentation takes per sample

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> "Split": ...

    def batch(self, index: Tensor, uniforms: Tensor | None) -> Any:
        """The typed batch of the samples `index` [N]; `uniforms` is [N, draws] in training."""


class Source:
    """Base of every data set. The constructor reads what `info` needs and refuses what is missing.

    A split is a torch `Dataset` (file data, read by workers) or a `Split` (array data).
    """

    info: DataInfo
    mean: list[float]
    std: list[float]

    def train(self, augment: list[Any]) -> Any:
        raise NotImplementedError

    def val(self) -> Any:
        raise NotImplementedError

    def transform(
        self, *, image_size: int, channels: int, device: torch.device, channels_last: bool
    ) -> Any:
        """From a loader's uint8 batch to what the task's network takes."""
        return Normalise(
            mean=self.mean,
            std=self.std,
            image_size=image_size,
            channels=channels,
            device=device,
            channels_last=channels_last,
        )

    def name_of(self, index: int) -> str:
        """How a training sample is named in an error."""
        return f"train[{index}]"
