"""Many processes, as torchrun or SLURM set them up; with one, every call here does nothing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Ranks:
    """This process among `world_size`; rank 0 writes what is written."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @classmethod
    def from_environment(cls) -> "Ranks":
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        if not all(name in os.environ for name in names):
            return cls()
        return cls(*(int(os.environ[name]) for name in names))

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """The process group, for as long as the run lasts."""
        if self.world_size == 1:
            yield
            return
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        try:
            yield
        finally:
            dist.destroy_process_group()

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        if self.world_size == 1:
            return model
        devices = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def sum(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each named tensor (of one shape everywhere), added over the processes, in one message."""
        if self.world_size == 1 or not values:
            return values
        names = sorted(values)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        flat = [values[name].detach().double().to(device).flatten() for name in names]
        together = torch.cat(flat)
        dist.all_reduce(together)
        parts = together.split([len(part) for part in flat])
        return {
            name: part.view(values[name].shape) for name, part in zip(names, parts, strict=True)
        }

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, on every process, in the order of ranks."""
        if self.world_size == 1:
            return [value]
        box = [None] * self.world_size
        dist.all_gather_object(box, value)
        return box

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether any process raised its flag: all of them then act at the same step."""
        if self.world_size == 1:
            return flag
        raised = torch.tensor(float(flag), device=device)
        dist.all_reduce(raised)
        return bool(raised.item())

    def all(self, flag: Tensor) -> Tensor:
        """Whether a bool scalar on the device holds on every process; nothing waits for it here."""
        if self.world_size == 1:
            return flag
        held = flag.float()
        dist.all_reduce(held, dist.ReduceOp.MIN)
        return held.bool()

    def agree(self, value: Any) -> Any:
        """Rank 0's value, on every process."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]


def without_sync(model: nn.Module, last: bool) -> Any:
    """Gradients are exchanged on the last micro-batch of a step only."""
    if last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()
