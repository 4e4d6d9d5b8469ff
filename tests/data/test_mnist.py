"""The IDX reader, on files that the test writes byte by byte."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import digits, write_mnist

from cvtrain.data.mnist import MNIST, FashionMNIST, read_idx
from cvtrain.data.source import Augmentations
from cvtrain.errors import DataError

TRAIN_IMAGES = "train-images-idx3-ubyte"


def mnist(root: Path) -> MNIST:
    return MNIST(root=str(root), mean=[0.1307], std=[0.3081])


@pytest.mark.parametrize("packed", [True, False])
def test_reads_what_was_written(tmp_path: Path, packed: bool) -> None:
    write_mnist(tmp_path, train=7, val=3, packed=packed)
    source = mnist(tmp_path)
    for split, count, seed in ((source.train(28, Augmentations()), 7, 0), (source.val(28), 3, 1)):
        images, labels = digits(count, seed=seed)
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert np.array_equal(split.images.numpy(), images[:, None])
        assert split.labels.tolist() == labels.tolist()
    assert source.info.classes == tuple("0123456789")
    assert (source.info.channels, source.info.image_size) == (1, 28)


def test_raw_and_packed_are_the_same_data(tmp_path: Path) -> None:
    prints = []
    for packed in (True, False):
        write_mnist(tmp_path / str(packed), packed=packed)
        prints.append(mnist(tmp_path / str(packed)).info.fingerprint)
    assert prints[0] == prints[1]
    # Another training set is noticed, if only one label differs.
    file = tmp_path / "False" / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    data = bytearray(file.read_bytes())
    data[-1] = (data[-1] + 1) % 10
    file.write_bytes(data)
    assert mnist(tmp_path / "False").info.fingerprint != prints[0]


def test_a_hand_written_file(tmp_path: Path) -> None:
    # As the authors' page has it: magic 0x00000803, sizes big-endian, rows first.
    (tmp_path / "x").write_bytes(
        bytes.fromhex("00000803 00000001 00000002 00000003") + bytes([1, 2, 3, 4, 5, 255])
    )
    assert read_idx(tmp_path / "x", dimensions=3).tolist() == [[[1, 2, 3], [4, 5, 255]]]


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        mnist(tmp_path)
    line = caught.value.line()
    assert caught.value.name == "NO-DATA"
    for word in (TRAIN_IMAGES, f"{TRAIN_IMAGES}.gz", str(tmp_path / "MNIST/raw"), "data_dir="):
        assert word in line


def test_a_missing_validation_file_is_named(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path)
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    source = mnist(tmp_path)
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte"):
        source.val(28)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:18],
        lambda data: data[:10],
        lambda data: data[:3],
        lambda data: b"",
        lambda data: data + b"\0",
        lambda data: b"<!doctype html><html>Not found</html>",
        lambda data: bytes([0, 0, 0x0D]) + data[3:],  # floats
        lambda data: data[:3] + b"\x01" + data[4:],  # labels in place of images
        lambda data: data[:4] + b"\xff\xff\xff\xff" + data[8:],
    ],
    ids=[
        "short",
        "half",
        "header",
        "sizes",
        "magic",
        "empty",
        "long",
        "html",
        "floats",
        "labels",
        "huge",
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path: Path, harm, packed: bool) -> None:
    folder = write_mnist(tmp_path, packed=packed)
    file = folder / (f"{TRAIN_IMAGES}.gz" if packed else TRAIN_IMAGES)
    data = file.read_bytes()
    file.write_bytes(gzip.compress(harm(gzip.decompress(data))) if packed else harm(data))
    with pytest.raises(DataError) as caught:
        mnist(tmp_path)
    assert TRAIN_IMAGES in caught.value.line()
    assert caught.value.code == 3


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"<!doctype html><html>Not found</html>",
        lambda data: data[:-8] + bytes(8),  # another checksum and length
        lambda data: data[:10] + b"\xff" * 40 + data[50:],  # no such kind of deflate block
        lambda data: data[: len(data) // 2] + b"\x00\xff" * 20 + data[len(data) // 2 + 40 :],
    ],
    ids=["short", "half", "empty", "html", "checksum", "deflate", "middle"],
)
def test_a_broken_archive_is_refused_by_name(tmp_path: Path, harm) -> None:
    file = write_mnist(tmp_path) / f"{TRAIN_IMAGES}.gz"
    file.write_bytes(harm(file.read_bytes()))
    with pytest.raises(DataError) as caught:
        mnist(tmp_path)
    assert TRAIN_IMAGES in caught.value.line()


def test_images_and_labels_must_pair(tmp_path: Path) -> None:
    folder, other = write_mnist(tmp_path / "a"), write_mnist(tmp_path / "b", train=9)
    file = "train-labels-idx1-ubyte.gz"
    (folder / file).write_bytes((other / file).read_bytes())
    with pytest.raises(DataError, match="48 images but 9 labels"):
        mnist(tmp_path / "a")


def test_fashion_mnist_lies_beside_it(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "MNIST").rename(tmp_path / "FashionMNIST")
    source = FashionMNIST(root=str(tmp_path), mean=[0.3], std=[0.3])
    images, labels = digits(48, seed=0)
    train = source.train(28, Augmentations())
    assert np.array_equal(train.images.numpy(), images[:, None])
    assert train.labels.tolist() == labels.tolist()
    assert source.info.classes[9] == "Ankle boot"
    with pytest.raises(DataError, match="FashionMNIST/raw"):
        FashionMNIST(root=str(tmp_path / "MNIST"), mean=[0.3], std=[0.3])


@pytest.mark.data
def test_the_real_mnist() -> None:
    root = os.environ.get("CVTRAIN_DATA")
    if not root:
        pytest.skip("set CVTRAIN_DATA to the folder that holds MNIST/raw")
    source = mnist(Path(root))
    train, val = source.train(28, Augmentations()), source.val(28)
    assert train.images.shape == (60_000, 1, 28, 28)
    assert val.images.shape == (10_000, 1, 28, 28)
    # The counts of the digits that every description of the set gives.
    assert train.labels.bincount().tolist() == [
        *(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    ]
    assert val.labels.bincount().tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    ]
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    pixels = train.images.double() / 255
    assert pixels.mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert pixels.std().item() == pytest.approx(0.3081, abs=1e-4)
