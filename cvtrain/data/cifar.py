"""CIFAR-10 (Krizhevsky 2009): the python batches or the binary ones, in torchvision's layout."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cvtrain.data.arrays import Arrays, ArraySource
from cvtrain.errors import DataError

PYTHON, BINARY = "cifar-10-batches-py", "cifar-10-batches-bin"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "val": ["test_batch"]}
PIXELS = 3 * 32 * 32


class CIFAR10(ArraySource):
    """`root/cifar-10-batches-py` or `root/cifar-10-batches-bin`. Raises DataError."""

    classes = (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    channels = 3
    image_size = 32

    def read(self, split: str) -> Arrays:
        if (self.root / PYTHON).is_dir():
            parts = [read_python_batch(self.root / PYTHON / name) for name in BATCHES[split]]
        elif (self.root / BINARY).is_dir():
            files = [self.root / BINARY / f"{name}.bin" for name in BATCHES[split]]
            parts = [read_binary_batch(file) for file in files]
        else:
            raise DataError(
                f"neither {PYTHON} nor {BINARY}",
                str(self.root.absolute()),
                "unpack cifar-10-python.tar.gz there, or type data_dir=FOLDER, or set CVTRAIN_DATA",
                name="NO-DATA",
            )
        pixels, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
        images = torch.from_numpy(pixels.reshape(-1, 3, 32, 32))
        return Arrays(images, torch.from_numpy(labels.astype(np.int64)))


class ArraysOnly(pickle.Unpickler):
    """Unpickles arrays and plain values; whatever else a file asks for is refused, not run."""

    allowed = frozenset(
        (f"numpy.{core}.{name}")
        for core in ("core", "_core")
        for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
    ) | {"numpy.ndarray", "numpy.dtype", "_codecs.encode"}

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.allowed:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which no array needs")
        # numpy 2 renamed its core; files of either spelling are read by either version.
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_python_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [N, 3072] and labels [N] of one pickled batch."""
    try:
        with path.open("rb") as file:
            content = ArraysOnly(file, encoding="bytes").load()
        pixels, labels = content[b"data"], np.asarray(content[b"labels"])
    except FileNotFoundError as error:
        raise _unreadable(path, "is missing") from error
    except Exception as error:  # a pickle can fail in any way
        raise _unreadable(path, str(error) or type(error).__name__) from error
    return _checked(path, pixels, labels)


def read_binary_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The same from the binary version: records of one label byte and 3072 pixels."""
    try:
        records = np.fromfile(path, np.uint8).reshape(-1, 1 + PIXELS)
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    return _checked(path, records[:, 1:].copy(), records[:, 0])


def _checked(path: Path, pixels: Any, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shape = getattr(pixels, "shape", None)
    if labels.ndim != 1 or not labels.size:
        raise _unreadable(path, "holds no list of labels")
    if shape != (len(labels), PIXELS) or pixels.dtype != np.uint8:
        raise _unreadable(path, f"holds pixels of shape {shape} for {len(labels)} labels")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() > 9:
        raise _unreadable(path, "holds a label outside 0..9")
    return pixels, labels


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(f"not a CIFAR-10 batch: {why}", str(path), "unpack the official archive anew")
