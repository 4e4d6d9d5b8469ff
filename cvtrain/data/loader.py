"""Loaders: which samples make which step is a function of (seed, epoch), and nothing else.

A loader yields, for each optimizer step, the step's micro-batches on this process. A step's samples
are cut from one global order, then shared among the processes, then among the micro-batches.
"""

import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from cvtrain.data.source import Split
from cvtrain.seeding import seed_for


class Loader(Protocol):
    steps: int  # optimizer steps (or evaluation batches) an epoch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, ...]]:
        """The micro-batches of each step from `start` on, without reading what came before."""

    def close(self) -> None:
        """End the processes that read, if there are any."""


@dataclass(frozen=True)
class Order:
    """Cuts an epoch into steps, processes and micro-batches.

    Training shuffles and drops the last, smaller step; evaluation does neither, so each sample is
    seen once, on one process, never padded.
    """

    samples: int
    batch_size: int
    train: bool
    seed: int = 0
    accumulate: int = 1
    rank: int = 0
    world_size: int = 1

    @property
    def steps(self) -> int:
        whole, rest = divmod(self.samples, self.batch_size)
        return whole if self.train or not rest else whole + 1

    def indices(self, epoch: int, start: int) -> Iterator[tuple[Tensor, ...]]:
        order = torch.arange(self.samples)
        if self.train:
            generator = torch.Generator().manual_seed(seed_for(self.seed, "order", epoch))
            order = torch.randperm(self.samples, generator=generator)
        for step in range(start, self.steps):
            together = order[step * self.batch_size : (step + 1) * self.batch_size]
            mine = together.tensor_split(self.world_size)[self.rank]
            # The last batch of an evaluation may have nothing for this process.
            yield tuple(part for part in mine.tensor_split(self.accumulate) if len(part))


class ArrayLoader:
    """Batches gathered on the device; augmentation draws from one table of uniforms an epoch."""

    def __init__(self, split: Split, order: Order) -> None:
        self.split, self.order, self.steps = split, order, order.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, ...]]:
        uniforms = None
        if self.order.train and self.split.draws:
            generator = torch.Generator().manual_seed(seed_for(self.order.seed, "uniforms", epoch))
            uniforms = torch.rand(self.order.samples, self.split.draws, generator=generator)
        for parts in self.order.indices(epoch, start):
            yield tuple(
                self.split.batch(part, None if uniforms is None else uniforms[part])
                for part in parts
            )

    def close(self) -> None:
        pass


class _Seeded(Dataset):
    """Seeds the global generators for each sample, so that any worker gives the same one."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, item: tuple[int, int]) -> Any:
        epoch, index = item
        seed = seed_for(self.seed, "sample", epoch, index)
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (transforms of others draw from it)
        return self.dataset[index]


class FileLoader:
    """Batches read by worker processes (or in this one, with none): the same bits either way."""

    def __init__(
        self, dataset: Dataset, order: Order, *, workers: int = 0, pin_memory: bool = False
    ) -> None:
        self.order, self.steps = order, order.steps
        self._plan: list[list[tuple[int, int]]] = []
        self._loader = DataLoader(
            _Seeded(dataset, order.seed),
            batch_sampler=_Plan(self._plan),
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_signals,
            collate_fn=getattr(dataset, "collate", default_collate),
            # The loader would otherwise draw its base seed from the global generator.
            generator=torch.Generator().manual_seed(0),
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, ...]]:
        steps = list(self.order.indices(epoch, start))
        self._plan[:] = [
            [(epoch, index) for index in part.tolist()] for parts in steps for part in parts
        ]
        batches = iter(self._loader)
        for parts in steps:
            yield tuple(next(batches) for _ in parts)

    def close(self) -> None:
        del self._loader  # its iterator ends the workers in good order


def _leave_signals(_: int) -> None:
    """Signals to the whole group are the main process's to answer: it ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Plan:
    """The batch sampler: a list that `FileLoader.epoch` fills anew."""

    def __init__(self, plan: list[list[tuple[int, int]]]) -> None:
        self.plan = plan

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.plan)

    def __len__(self) -> int:
        return len(self.plan)
