"""MNIST (LeCun, Cortes, Burges) and Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): IDX files, gzipped
or raw, in torchvision's layout.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from cvtrain.data.arrays import Arrays, ArraySource
from cvtrain.errors import DataError

FILES = {"train": "train", "val": "t10k"}  # the test set is what a run is validated on


class MNIST(ArraySource):
    """`root/MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]`. Raises DataError."""

    classes = tuple("0123456789")
    channels = 1
    image_size = 28
    place = "MNIST/raw"

    @property
    def folder(self) -> Path:
        return self.root / self.place

    def missing(self, names: list[str]) -> list[str]:
        """A packed file is not missed where it lies unpacked."""
        there = (self.folder / name for name in names)
        return [f.name for f in there if not f.exists() and not f.with_suffix("").exists()]

    def read(self, split: str) -> Arrays:
        folder = self.folder
        images = read_idx(folder / f"{FILES[split]}-images-idx3-ubyte", dimensions=3)
        labels = read_idx(folder / f"{FILES[split]}-labels-idx1-ubyte", dimensions=1)
        if len(images) != len(labels) or (len(labels) and labels.max() > 9):
            raise DataError(f"{len(images)} images but {len(labels)} labels of 0..9", str(folder))
        return Arrays(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long())


class FashionMNIST(MNIST):
    """The same four files below `root/FashionMNIST/raw`."""

    classes = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    place = "FashionMNIST/raw"


def read_idx(path: Path, *, dimensions: int) -> np.ndarray:
    """A uint8 array of an IDX file, from `path` or `path.gz`; DataError if there is neither."""
    packed = path.with_name(f"{path.name}.gz")
    if not path.exists() and not packed.exists():
        raise DataError(
            f"no {path.name} nor {packed.name}",
            str(path.parent.absolute()),
            "put the four IDX files there, or type data_dir=FOLDER (the one that holds "
            f"{'/'.join(path.parts[-3:-1])}), or set CVTRAIN_DATA",
            name="NO-DATA",
        )
    try:
        data = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read: {error}", str(packed), "fetch the file anew") from error
    # Magic number: two zero bytes, 0x08 for unsigned bytes, the number of dimensions; the sizes.
    start = 4 + 4 * dimensions
    whole = len(data) >= start and data[:4] == bytes([0, 0, 8, dimensions])
    shape = tuple(np.frombuffer(data[4:start], ">u4").tolist()) if whole else ()
    if not whole or len(data) - start != math.prod(shape):
        raise DataError("not the IDX file it is named", str(path), "fetch the file anew")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()
