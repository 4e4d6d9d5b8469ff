"""torch.export: the graph of a network, without its Python code."""

import io
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim

from cvtrain.exports.subject import Subject

NOTE = ""
SUFFIX, EXTRA, NEEDS = ".pt2", "", ()


def packed(subject: Subject) -> bytes:
    """Raises what torch.export raises, and ValueError for what it is known not to follow."""
    if subject.counts_boxes:
        raise ValueError("torchvision's detectors ask how many boxes are left")
    shapes = tuple(dict.fromkeys(dims, Dim.AUTO) for dims in subject.varying.values())
    program = torch.export.export(
        subject.module, subject.example, dynamic_shapes=shapes, strict=False
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def opened(path: Path, subject: Subject) -> Callable[..., tuple[Tensor, ...]]:
    return torch.export.load(path).module()
