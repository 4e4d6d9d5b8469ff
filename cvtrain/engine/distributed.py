"""Many processes, as `trainer.devices`, torchrun or SLURM start them; with one, every call here
does nothing.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from cvtrain.engine.signals import StopFlag
from cvtrain.errors import MachineError
from cvtrain.outcome import of_another

OF_A_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
FIRST_PORT, PORTS = 20000, 10000  # SLURM: a job meets at one of these


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
        """As the launcher says, torchrun or srun; else one process."""
        env = os.environ
        if all(name in env for name in OF_A_LAUNCHER):
            return cls(*(int(env[name]) for name in OF_A_LAUNCHER))
        tasks = int(env.get("SLURM_STEP_NUM_TASKS", 1))  # of an srun; sbatch alone sets none
        if tasks == 1:
            return cls()
        # With --gpus-per-task a process sees one GPU, its own, which is then number 0.
        alone = env.get("CUDA_VISIBLE_DEVICES", ",").count(",") == 0
        return cls(int(env["SLURM_PROCID"]), 0 if alone else int(env["SLURM_LOCALID"]), tasks)

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """The process group, for as long as the run lasts.

        Raises MachineError (PORT-IN-USE, NO-MASTER).
        """
        if self.world_size == 1:
            yield
            return
        meet_in_slurm()
        if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
            what, fix = "WORLD_SIZE is set, MASTER_ADDR and MASTER_PORT are not", "type torchrun"
            raise MachineError(what, "", f"{fix}, or trainer.devices=N", name="NO-MASTER")
        # gloo beside nccl: what is agreed on each step does not wait for the GPU.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with self.together():
            dist.init_process_group(backend, rank=self.rank, world_size=self.world_size)
        try:
            yield
        finally:
            dist.destroy_process_group()

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is raised here because another process is gone becomes that one's error; where
        nobody knows it, a MachineError (RANK-DIED).
        """
        try:
            yield
        except RuntimeError as error:
            text = str(error)
            if "EADDRINUSE" in text:
                port = os.environ.get("MASTER_PORT")
                what, fix = f"port {port} is in use", "type torchrun --standalone, which finds one"
                fix += ", or export another MASTER_PORT"
                raise MachineError(what, "MASTER_PORT", fix, name="PORT-IN-USE") from error
            if not isinstance(error, dist.DistError) and "gloo/" not in text:
                raise
            if (first := of_another()) is not None:
                raise first from error
            what, where = "another process ended", f"process {self.rank} of {self.world_size}"
            fix = "look at its own line; then type resume=auto"
            raise MachineError(what, where, fix, name="RANK-DIED") from error

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        if self.world_size == 1:
            return model
        devices = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Rank 0's values, into those of every process: batch norm's statistics are each its own
        until the next step.
        """
        for tensor in tensors if self.world_size > 1 else ():
            dist.broadcast(tensor, 0)

    def sum(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each named tensor (of one shape everywhere), added over the processes, in one message."""
        if self.world_size == 1 or not values:
            return values
        names = sorted(values)
        # A process that has seen no batch has its zeros on the CPU.
        device = "cuda" if "nccl" in dist.get_backend_config() else "cpu"
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

    def any(self, flag: bool) -> bool:
        """Whether any process raised its flag: all of them then act at the same step."""
        return bool(self._largest(int(flag)))

    def stopped(self, stop: StopFlag) -> bool:
        """Whether any process was told to end: all of them then know by which signal."""
        if signum := self._largest(stop.signum):
            stop.signum = signum
        return bool(stop)

    def _largest(self, value: int) -> int:
        if self.world_size == 1:
            return value
        largest = torch.tensor(value)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest.item())

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


def meet_in_slurm() -> None:
    """srun says who there is, not where they meet: on the first node, at a port of the job's."""
    env = os.environ
    if "MASTER_ADDR" in env or "SLURM_STEP_NODELIST" not in env:
        return
    # gpu[003-005,9] begins with gpu003
    first = re.match(r"([^,\[]+)(?:\[(\d+))?", env["SLURM_STEP_NODELIST"])
    env["MASTER_ADDR"] = "".join(part or "" for part in first.groups()) if first else "localhost"
    step = int(env.get("SLURM_JOB_ID", 0)) + int(env.get("SLURM_STEP_ID", 0))
    env.setdefault("MASTER_PORT", str(FIRST_PORT + step % PORTS))


def without_sync(model: nn.Module, last: bool) -> Any:
    """Gradients are exchanged on the last micro-batch of a step only."""
    if last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()
