"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): the python batches or the binary ones, in torchvision's
layout.
"""

import os
import pickle
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cvtrain.data.archive import extract
from cvtrain.data.arrays import Arrays, ArraySource
from cvtrain.errors import DataError

PIXELS = 3 * 32 * 32


class CIFAR10(ArraySource):
    """`root/cifar-10-batches-py` or `root/cifar-10-batches-bin`. Raises DataError."""

    classes: tuple[str, ...] = (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    channels = 3
    image_size = 32
    python, binary = "cifar-10-batches-py", "cifar-10-batches-bin"
    batches: dict[str, list[str]] = {  # noqa: RUF012 (read only)
        "train": [f"data_batch_{i}" for i in range(1, 6)],
        "val": ["test_batch"],
    }
    label_key = b"labels"
    label_bytes = 1  # of a binary record; the last of them is the label

    def missing(self, names: list[str]) -> list[str]:
        there = (self.root / self.python).is_dir() or (self.root / self.binary).is_dir()
        return [] if there else names

    def unpack(self, names: list[str]) -> None:
        # The archive's only folder becomes `root/<python>`, in one rename; the first one stays.
        draft = self.root / f".{self.python}.{os.getpid()}.tmp"
        extract(self.root / names[0], draft)
        with suppress(OSError):
            (draft / self.python).rename(self.root / self.python)
        shutil.rmtree(draft)

    def read(self, split: str) -> Arrays:
        classes = len(self.classes)
        if (self.root / self.python).is_dir():
            files = [self.root / self.python / name for name in self.batches[split]]
            parts = [read_python_batch(file, self.label_key, classes) for file in files]
        elif (self.root / self.binary).is_dir():
            files = [self.root / self.binary / f"{name}.bin" for name in self.batches[split]]
            parts = [read_binary_batch(file, self.label_bytes, classes) for file in files]
        else:
            raise DataError(
                f"neither {self.python} nor {self.binary}",
                str(self.root.absolute()),
                "unpack the python archive there, or type data_dir=FOLDER, or set CVTRAIN_DATA",
                name="NO-DATA",
            )
        pixels, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
        images = torch.from_numpy(pixels.reshape(-1, 3, 32, 32))
        return Arrays(images, torch.from_numpy(labels.astype(np.int64)))


class CIFAR100(CIFAR10):
    """`root/cifar-100-python` or `root/cifar-100-binary`: the 100 fine classes."""

    classes = (
        *("apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle"),
        *("bottle", "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle"),
        *("caterpillar", "cattle", "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch"),
        *("crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest"),
        *("fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower"),
        *("leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain"),
        *("mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear"),
        *("pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum"),
        *("rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew"),
        *("skunk", "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar"),
        *("sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger"),
        *("tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree"),
        *("wolf", "woman", "worm"),
    )
    python, binary = "cifar-100-python", "cifar-100-binary"
    batches = {"train": ["train"], "val": ["test"]}  # noqa: RUF012 (read only)
    label_key = b"fine_labels"
    label_bytes = 2  # coarse, then fine


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


def read_python_batch(path: Path, key: bytes, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [N, 3072] and labels [N] of one pickled batch."""
    try:
        with path.open("rb") as file:
            content = ArraysOnly(file, encoding="bytes").load()
        pixels, labels = content[b"data"], np.asarray(content[key])
    except FileNotFoundError as error:
        raise _unreadable(path, "is missing") from error
    except Exception as error:  # a pickle can fail in any way
        raise _unreadable(path, str(error) or type(error).__name__) from error
    return _checked(path, pixels, labels, classes)


def read_binary_batch(path: Path, label_bytes: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The same from the binary version: records of label bytes and 3072 pixels."""
    try:
        records = np.fromfile(path, np.uint8).reshape(-1, label_bytes + PIXELS)
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    labels = records[:, label_bytes - 1]
    return _checked(path, records[:, label_bytes:].copy(), labels, classes)


def _checked(
    path: Path, pixels: Any, labels: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    shape = getattr(pixels, "shape", None)
    if labels.ndim != 1 or not labels.size:
        raise _unreadable(path, "holds no list of labels")
    if shape != (len(labels), PIXELS) or pixels.dtype != np.uint8:
        raise _unreadable(path, f"holds pixels of shape {shape} for {len(labels)} labels")
    whole = np.issubdtype(labels.dtype, np.integer)
    if not whole or labels.min() < 0 or labels.max() >= classes:
        raise _unreadable(path, f"holds a label outside 0..{classes - 1}")
    return pixels, labels


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(f"not a CIFAR batch: {why}", str(path), "unpack the official archive anew")
