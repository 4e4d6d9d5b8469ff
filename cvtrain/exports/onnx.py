"""ONNX, by torch's exporter; detectors that it cannot follow by the one before, which traces."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cvtrain.exports.subject import Subject

NOTE = ""
SUFFIX, EXTRA, NEEDS = ".onnx", "onnx", ("onnx", "onnxscript", "onnxruntime")
OPSET = 18  # of 2022: RoiAlign as torchvision has it is there since 16
MOST = 2**31 - 1  # bytes of a protobuf
FOUND = {0: "detections"}


def packed(subject: Subject) -> bytes:
    """Raises what the exporters raise, ValueError for one of over 2 GB."""
    import onnx

    if sum(tensor.nbytes for tensor in subject.network.state_dict().values()) > MOST:
        raise ValueError("more than 2 GB, which one file of ONNX cannot hold")
    try:
        model = (
            onnx.load_from_string(traced(subject)) if subject.counts_boxes else exported(subject)
        )
    except Exception:  # of many kinds
        if not subject.detects:
            raise
        model = onnx.load_from_string(traced(subject))
    for name, dims in (_axes(subject) if subject.detects else {}).items():
        _name(next(o for o in (*model.graph.input, *model.graph.output) if o.name == name), dims)
    for key, value in subject.about.items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


def exported(subject: Subject) -> Any:
    program = torch.onnx.export(
        subject.module,
        subject.example,
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=list(subject.inputs),
        output_names=list(subject.outputs),
        dynamic_shapes=tuple(subject.varying.values()),
    )
    assert program is not None
    return program.model_proto


def traced(subject: Subject) -> bytes:
    buffer = io.BytesIO()
    torch.onnx.export(
        subject.module,
        subject.example,
        buffer,  # type: ignore[arg-type]  # it takes one
        dynamo=False,
        opset_version=OPSET,
        input_names=list(subject.inputs),
        output_names=list(subject.outputs),
        dynamic_axes=_axes(subject),
    )
    return buffer.getvalue()


def opened(path: Path, subject: Subject) -> Callable[..., tuple[Tensor, ...]]:
    """By onnxruntime, on the CPU."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # its errors are raised, too
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        given = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(output) for output in session.run(None, given))

    return run


def _axes(subject: Subject) -> dict[str, dict[int, str]]:
    return subject.varying | dict.fromkeys(subject.outputs, FOUND)


def _name(value: Any, dims: dict[int, str]) -> None:
    """A dimension of any size, by the name that a reader looks for."""
    for number, name in dims.items():
        value.type.tensor_type.shape.dim[number].dim_param = name
