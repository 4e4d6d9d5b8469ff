"""The device, the precision and what is set for the length of a run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from cvtrain.config import Precision, TrainerConfig
from cvtrain.engine.distributed import Ranks
from cvtrain.errors import ConfigError, MachineError


def pick_device(wanted: str, ranks: Ranks, gpus: Sequence[int] = ()) -> torch.device:
    """Raises MachineError (NO-CUDA): a run asked onto a GPU is never silently put on the CPU.

    `gpus` are those that the processes of this run take, where others run beside it.
    """
    cuda = torch.cuda.is_available()
    if wanted == "auto":
        wanted = "cuda" if cuda else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(
            f"trainer.device={wanted} is no device", "", "type cpu, cuda or cuda:1"
        ) from error
    if device.type != "cuda":
        return device
    index = ranks.local_rank if device.index is None else device.index
    if device.index is None and gpus:
        index = gpus[ranks.local_rank]
    if not cuda or index >= torch.cuda.device_count():
        raise MachineError(
            f"{device} was asked for, {torch.cuda.device_count()} GPUs are there",
            f"torch {torch.__version__}, built for CUDA {torch.version.cuda}",
            "type trainer.device=cpu, or look at nvidia-smi and the driver",
            name="NO-CUDA",
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def device_name(device: torch.device) -> str:
    """What decides on the last bits of a result: the card, or what of the CPU torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.backends.cpu.get_cpu_capability()})"


def pick_precision(wanted: Precision, device: torch.device) -> Precision:
    """`auto` becomes what the device is good at. Raises ConfigError for fp16 on the CPU."""
    if wanted is Precision.auto:
        if device.type != "cuda":
            return Precision.fp32
        return Precision.bf16 if torch.cuda.is_bf16_supported(False) else Precision.fp16
    if wanted is Precision.fp16 and device.type == "cpu":
        raise ConfigError(
            "fp16 is some 250 times slower than fp32 on a CPU",
            "trainer.precision",
            "type trainer.precision=bf16",
        )
    return wanted


def mixed_precision(
    precision: Precision, device: torch.device
) -> tuple[torch.autocast, torch.amp.GradScaler]:
    """Both do nothing where the precision does not need them."""
    fp16 = precision is Precision.fp16
    reduced = torch.float16 if fp16 else torch.bfloat16
    autocast = torch.autocast(device.type, reduced, enabled=fp16 or precision is Precision.bf16)
    return autocast, torch.amp.GradScaler(device.type, enabled=fp16)


def seed_generators(seed: int, device: torch.device) -> None:
    """The generators that a network on `device` draws from.

    `torch.manual_seed` would also queue a call for each device that is not in use, and keep the
    stack that it came from: 0.1 ms and a little memory, each step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextmanager
def settings(config: TrainerConfig) -> Iterator[None]:
    """torch's global switches for one run; the jobs of a sweep share a process, so all go back."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    cudnn, matmul = torch.backends.cudnn, torch.get_float32_matmul_precision()
    benchmark, allow_tf32 = cudnn.benchmark, cudnn.allow_tf32
    try:
        torch.set_num_threads(config.threads or threads)
        torch.use_deterministic_algorithms(config.deterministic)
        cudnn.benchmark = not config.deterministic
        tf32 = config.precision is not Precision.fp32
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        cudnn.allow_tf32 = tf32
        # Subnormal numbers slow a CPU sixfold once a network has learnt its batch.
        torch.set_flush_denormal(True)
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        cudnn.benchmark, cudnn.allow_tf32 = benchmark, allow_tf32
        torch.set_float32_matmul_precision(matmul)
