"""TorchScript, traced. torch has deprecated it in favour of torch.export; it still runs in C++."""

import io
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cvtrain.exports.subject import Subject

SUFFIX, EXTRA, NEEDS = ".pt", "", ()
NOTE = "torch has deprecated TorchScript; format=torch_export is what follows it"


def packed(subject: Subject) -> bytes:
    """Raises what torch.jit raises."""
    buffer = io.BytesIO()
    module = torch.jit.trace(subject.module, subject.example, check_trace=False)
    torch.jit.save(module, buffer)
    return buffer.getvalue()


def opened(path: Path, subject: Subject) -> Callable[..., tuple[Tensor, ...]]:
    module: Callable[..., tuple[Tensor, ...]] = torch.jit.load(path)
    return module
