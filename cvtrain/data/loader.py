"""Loaders: which samples make which step is a function of (seed, epoch), and nothing else.

A loader yields, for each optimizer step, the step's micro-batches on this process. A step's samples
are cut from one global order, then shared among the processes, then among the micro-batches.
"""

import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from cvtrain.data.batch import to_device
from cvtrain.errors import CvtrainError, MachineError
from cvtrain.seeding import seed_for


class Loader(Protocol):
    steps: int  # optimizer steps (or evaluation batches) an epoch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, ...]]:
        """The micro-batches of each step from `start` on, without reading what came before."""

    def peek(self, count: int) -> Any:
        """A batch of the first `count` samples of epoch 0, read in this process, to look at."""

    def close(self) -> None:
        """End the processes that read, if there are any."""


@dataclass(frozen=True)
class Order:
    """Cuts an epoch into steps, processes and micro-batches.

    Training shuffles and drops the last, smaller step; evaluation does neither, so each sample is
    seen once, on one process, never padded. `chosen` (int64 `[samples]`) are the ones of a larger
    split that are used at all. With `weights` (`[samples]`) training draws in their proportions,
    with replacement, so that a sample can come several times an epoch, or not at all. With `groups`
    (int64, of every sample of the split) a step of training holds samples of one group, as far as
    that goes: one step for each further group may be mixed.
    """

    samples: int
    batch_size: int
    train: bool
    seed: int = 0
    accumulate: int = 1
    rank: int = 0
    world_size: int = 1
    chosen: Tensor | None = None
    weights: Tensor | None = None
    groups: Tensor | None = None

    @property
    def steps(self) -> int:
        whole, rest = divmod(self.samples, self.batch_size)
        return whole if self.train or not rest else whole + 1

    def indices(self, epoch: int, start: int) -> Iterator[tuple[Tensor, ...]]:
        order = self._order(epoch)
        for step in range(start, self.steps):
            together = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield self.parts(together)

    def first(self, count: int) -> Tensor:
        """The first samples of epoch 0, over all processes."""
        return self._order(0)[:count]

    def _order(self, epoch: int) -> Tensor:
        order = torch.arange(self.samples)
        generator = torch.Generator().manual_seed(seed_for(self.seed, "order", epoch))
        if self.train:
            order = (
                torch.randperm(self.samples, generator=generator)
                if self.weights is None
                else self.weights.multinomial(self.samples, replacement=True, generator=generator)
            )
        order = order if self.chosen is None else self.chosen[order]
        if self.groups is None or not self.train:
            return order
        return self._grouped(order, self.groups[order], generator)

    def _grouped(self, order: Tensor, groups: Tensor, generator: torch.Generator) -> Tensor:
        """The same samples: steps of one group each, then those that are left, all shuffled.

        What is dropped at the end is what came last, whatever its group.
        """
        size, whole, left = self.batch_size, [], []
        for group in groups.unique():
            places = (groups == group).nonzero()[:, 0]
            end = len(places) - len(places) % size
            whole.append(places[:end])
            left.append(places[end:])
        rest = torch.cat(left).sort().values
        end = len(rest) - len(rest) % size
        steps = torch.cat([*whole, rest[:end]]).view(-1, size)
        shuffled = steps[torch.randperm(len(steps), generator=generator)]
        return order[torch.cat([shuffled.flatten(), rest[end:]])]

    def parts(self, together: Tensor) -> tuple[Tensor, ...]:
        """Of a whole step's rows, this process's, cut into its micro-batches."""
        mine = together.tensor_split(self.world_size)[self.rank]
        # The last batch of an evaluation may have nothing for this process.
        return tuple(part for part in mine.tensor_split(self.accumulate) if len(part))


class _Augmented:
    """What both loaders share: the order, and what the split's `augment` does to a batch."""

    def __init__(self, split: Any, order: Order) -> None:
        self.split, self.order, self.steps = split, order, order.steps
        self.augment: Any = getattr(split, "augment", None) if order.train else None
        self.mixing = bool(self.augment is not None and self.augment.mixes)

    def _uniforms(self, epoch: int) -> Tensor | None:
        """The epoch's table of uniforms, a row for each sample."""
        if self.augment is None or not self.augment.draws:
            return None
        generator = torch.Generator().manual_seed(seed_for(self.order.seed, "uniforms", epoch))
        return torch.rand(len(self.split), self.augment.draws, generator=generator)

    def _changed(self, batch: Any, uniforms: Tensor | None, index: Tensor) -> Any:
        return batch if uniforms is None else self.augment(batch, uniforms[index])

    def _mixed(self, batch: Any, epoch: int, step: int) -> Any:
        if not self.mixing:
            return batch
        return self.augment.mix(batch, seed_for(self.order.seed, "mix", epoch, step))

    def close(self) -> None:
        pass


class ArrayLoader(_Augmented):
    """Batches gathered on the device; augmentation draws from one table of uniforms an epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, ...]]:
        uniforms = self._uniforms(epoch)
        # Partners come from the whole step, whatever the number of processes: each makes all of it.
        order = replace(self.order, rank=0, world_size=1, accumulate=1)
        steps = (order if self.mixing else self.order).indices(epoch, start)
        for step, parts in enumerate(steps, start):
            batches = tuple(self._changed(self.split.batch(part), uniforms, part) for part in parts)
            if self.mixing:
                batches = self._share(self._mixed(batches[0], epoch, step))
            yield batches

    def _share(self, batch: Any) -> tuple[Any, ...]:
        """This process's micro-batches of a whole step's batch."""
        columns = [self.order.parts(column) for column in batch]
        return tuple(type(batch)(*fields) for fields in zip(*columns, strict=True))

    def peek(self, count: int) -> Any:
        index = self.order.first(count)
        batch = self._changed(self.split.batch(index), self._uniforms(0), index)
        return self._mixed(batch, 0, 0)


class _Seeded(Dataset):
    """Seeds the global generators for each sample, so that any worker gives the same one.

    What a sample's file is guilty of goes back as a value: an exception would arrive from a worker
    as the text of its traceback.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, item: tuple[int, int]) -> Any:
        epoch, index = item
        seed = seed_for(self.seed, "sample", epoch, index)
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (transforms of others draw from it)
        try:
            return self.dataset[index]
        except CvtrainError as error:
            return error


class _Collate:
    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        errors = (sample for sample in samples if isinstance(sample, CvtrainError))
        return next(errors, None) or self.collate(samples)


class FileLoader(_Augmented):
    """Batches read by worker processes (or in this one, with none): the same bits either way."""

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
        *,
        workers: int = 0,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(dataset, order)
        self.device, self.workers = device or torch.device("cpu"), workers
        self._plan: list[list[tuple[int, int]]] = []
        self._batches: Any = None
        self._collate = _Collate(getattr(dataset, "collate", default_collate))
        self._loader = DataLoader(
            _Seeded(dataset, order.seed),
            batch_sampler=_Plan(self._plan),
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            persistent_workers=workers > 0,
            worker_init_fn=_leave_signals,
            collate_fn=self._collate,
            # The loader would otherwise draw its base seed from the global generator.
            generator=torch.Generator().manual_seed(0),
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, ...]]:
        uniforms = self._uniforms(epoch)
        steps = list(self.order.indices(epoch, start))
        self._plan[:] = [
            [(epoch, index) for index in part.tolist()] for parts in steps for part in parts
        ]
        self._batches = batches = iter(self._loader)
        if self.workers:
            # torch's handler raises in any line of this process, even where all errors are caught.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for step, parts in enumerate(steps, start):
            # Partners come from what this process reads at once: the micro-batch.
            yield tuple(
                self._mixed(self._ready(self._next(batches), uniforms, part), epoch, step)
                for part in parts
            )

    def _ready(self, batch: Any, uniforms: Tensor | None, index: Tensor) -> Any:
        if isinstance(batch, CvtrainError):
            raise batch
        return self._changed(to_device(batch, self.device), uniforms, index)

    def peek(self, count: int) -> Any:
        index = self.order.first(count)
        batch = self._collate([self._loader.dataset[(0, i)] for i in index.tolist()])
        return self._mixed(self._ready(batch, self._uniforms(0), index), 0, 0)

    def _next(self, batches: Iterator[Any]) -> Any:
        """The next batch. Raises MachineError (WORKER-DIED)."""
        try:
            return next(batches)
        except StopIteration:
            raise
        except Exception as error:  # of several kinds, as a connection that is reset
            workers = {worker.sentinel: worker for worker in getattr(batches, "_workers", ())}
            dead = [workers[ended] for ended in wait(list(workers), timeout=1)] if workers else []
            if not dead:
                raise
            dead[0].join()  # its pipe is closed, but it may still be writing its core
            code = dead[0].exitcode or 0
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise MachineError(
                f"a process that reads data died: pid {dead[0].pid}, {how}",
                f"trainer.workers={len(workers)}",
                "look at the memory and at /dev/shm, or type trainer.workers=0; then resume=auto",
                name="WORKER-DIED",
            ) from error

    def close(self) -> None:
        # By hand: after an error the traceback holds the iterator, and exit waits for the workers.
        if hasattr(self._batches, "_shutdown_workers"):
            self._batches._shutdown_workers()
        del self._loader, self._batches


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
