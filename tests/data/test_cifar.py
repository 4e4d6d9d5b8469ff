"""CIFAR-10 from both of its official layouts, and pickles that are not what they say."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from cvtrain.data.cifar import CIFAR10, CIFAR100, read_binary_batch, read_python_batch
from cvtrain.data.source import Augmentations
from cvtrain.errors import DataError

TRAIN = [f"data_batch_{i}" for i in range(1, 6)]
PER_BATCH = 4


def content(number: int) -> tuple[np.ndarray, list[int]]:
    """Pixels uint8 [4, 3072] and labels of one batch: red, then green, then blue, row by row."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (PER_BATCH, 3072), dtype=np.uint8)
    return pixels, rng.integers(0, 10, PER_BATCH).tolist()


def write_python(root: Path, *, protocol: int) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number, name in enumerate([*TRAIN, "test_batch"]):
        pixels, labels = content(number)
        batch = {b"batch_label": b"x", b"labels": labels, b"data": pixels, b"filenames": [b"a.png"]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    return folder


def write_binary(root: Path) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for number, name in enumerate([*TRAIN, "test_batch"]):
        pixels, labels = content(number)
        rows = [bytes([label]) + row.tobytes() for label, row in zip(labels, pixels, strict=True)]
        (folder / f"{name}.bin").write_bytes(b"".join(rows))
    return folder


def cifar(root: Path) -> CIFAR10:
    return CIFAR10(root=str(root), mean=[0.5] * 3, std=[0.25] * 3)


@pytest.mark.parametrize("layout", ["protocol 2", "protocol 4", "protocol 5", "binary"])
def test_reads_what_was_written(tmp_path: Path, layout: str) -> None:
    if layout == "binary":
        write_binary(tmp_path)
    else:
        write_python(tmp_path, protocol=int(layout[-1]))
    source = cifar(tmp_path)
    train, val = source.train(32, Augmentations()), source.val(32)
    assert (len(train), len(val)) == (5 * PER_BATCH, PER_BATCH)
    assert train.images.dtype == torch.uint8
    assert train.labels.dtype == torch.int64
    for number, split, first in [*((n, train, n * PER_BATCH) for n in range(5)), (5, val, 0)]:
        pixels, labels = content(number)
        assert split.labels[first : first + PER_BATCH].tolist() == labels
        for image in range(PER_BATCH):
            for channel, row, column in ((0, 0, 0), (1, 2, 3), (2, 31, 31), (0, 31, 0)):
                byte = pixels[image, 1024 * channel + 32 * row + column]
                assert split.images[first + image, channel, row, column] == byte
    assert source.info.classes[:3] == ("airplane", "automobile", "bird")
    assert (source.info.channels, source.info.image_size) == (3, 32)


def test_both_layouts_are_the_same_data(tmp_path: Path) -> None:
    write_python(tmp_path / "a", protocol=2)
    write_binary(tmp_path / "b")
    sources = [cifar(tmp_path / name) for name in "ab"]
    assert torch.equal(
        sources[0].train(32, Augmentations()).images, sources[1].train(32, Augmentations()).images
    )
    assert torch.equal(sources[0].val(32).labels, sources[1].val(32).labels)
    assert sources[0].info.fingerprint == sources[1].info.fingerprint


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    """The official files: protocol 2, `str` that are bytes, numpy's core under its old name."""
    pixels = np.arange(3072, dtype=np.uint8)[None]

    def short(word: bytes) -> bytes:  # SHORT_BINSTRING, which Python 3 reads but never writes
        return b"U" + bytes([len(word)]) + word

    dtype = (
        b"cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R"
        b"(K\x03" + short(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short(b"b") + b"\x87R"
        b"(K\x01K\x01M\x00\x0c\x86" + dtype + b"\x89T\x00\x0c\x00\x00" + pixels.tobytes() + b"tb"
    )
    stream = b"\x80\x02}(" + short(b"data") + array + short(b"labels") + b"]K\x07au."
    (tmp_path / "batch").write_bytes(stream)
    read, labels = read_python_batch(tmp_path / "batch", b"labels", 10)
    assert np.array_equal(read, pixels)
    assert labels.tolist() == [7]


def test_missing_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        cifar(tmp_path)
    assert caught.value.name == "NO-DATA"
    for word in (str(tmp_path), "cifar-10-batches-py", "cifar-10-batches-bin", "data_dir="):
        assert word in caught.value.line()


@pytest.mark.parametrize("write", [lambda root: write_python(root, protocol=2), write_binary])
def test_a_missing_batch_is_named(tmp_path: Path, write) -> None:
    folder = write(tmp_path)
    [file] = folder.glob("data_batch_3*")
    file.unlink()
    with pytest.raises(DataError, match=file.name):
        cifar(tmp_path)


class Hostile:
    """Unpickles to a call, as any pickle can."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("function", ["system", "exec", "open", "getattr", "load"])
def test_a_hostile_pickle_is_refused_unrun(tmp_path: Path, function: str, protocol: int) -> None:
    marker = tmp_path / "marker"
    payload = {
        "system": Hostile(os.system, f"touch '{marker}'"),
        "exec": Hostile(exec, f"open({str(marker)!r}, 'w')"),
        "open": Hostile(open, str(marker), "w"),
        "getattr": Hostile(getattr, np.ndarray, "tofile"),
        "load": Hostile(np.load, str(marker), None, True),
    }[function]
    folder = write_python(tmp_path, protocol=2)
    batch = {b"data": payload, b"labels": [0]}
    (folder / "data_batch_2").write_bytes(pickle.dumps(batch, protocol=protocol))
    with pytest.raises(DataError) as caught:
        cifar(tmp_path)
    assert not marker.exists()
    assert str(folder / "data_batch_2") in caught.value.line()
    assert "asks for" in caught.value.line()


def python_batch(pixels: object, labels: object) -> bytes:
    return pickle.dumps({b"data": pixels, b"labels": labels}, protocol=2)


GOOD, LABELS = content(0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>Not found</html>",
        python_batch(GOOD, LABELS)[:-50],
        pickle.dumps([1, 2, 3]),
        pickle.dumps({b"data": GOOD}),
        python_batch(GOOD, LABELS[:-1]),
        python_batch(GOOD[:, :-1], LABELS),
        python_batch(GOOD.astype(np.float32), LABELS),
        python_batch(GOOD.tolist(), LABELS),
        python_batch(GOOD, [0, 1, 2, 10]),
        python_batch(GOOD, [0, 1, 2, -1]),
        python_batch(GOOD, [0.0, 1.0, 2.0, 3.0]),
        python_batch(GOOD, 3),
        python_batch(GOOD[:0], []),
        python_batch(GOOD[:0], np.zeros(0, np.int64)),
        python_batch(GOOD.astype(object), LABELS),
    ],
    ids=[
        *(
            "empty",
            "html",
            "cut",
            "list",
            "no labels",
            "few labels",
            "short rows",
            "floats",
            "lists",
        ),
        *("label 10", "label -1", "float labels", "one label", "no images", "no labels at all"),
        "objects",
    ],
)
def test_a_broken_python_batch_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "data_batch_1").write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_python_batch(tmp_path / "data_batch_1", b"labels", 10)
    assert str(tmp_path / "data_batch_1") in caught.value.line()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(3072),
        bytes(3074),
        bytes([10, *bytes(3072)]),
        bytes([0, *bytes(3072), 255, *bytes(3072)]),
    ],
    ids=["empty", "short", "long", "label 10", "label 255"],
)
def test_a_broken_binary_batch_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "data_batch_1.bin").write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_binary_batch(tmp_path / "data_batch_1.bin", 1, 10)
    assert str(tmp_path / "data_batch_1.bin") in caught.value.line()


@pytest.mark.parametrize("layout", ["python", "binary"])
def test_cifar100_has_fine_labels(tmp_path: Path, layout: str) -> None:
    """Records of a coarse and a fine label; the python files name them."""
    folder = tmp_path / f"cifar-100-{layout}"
    folder.mkdir()
    for number, name in enumerate(["train", "test"]):
        pixels, coarse = content(number)
        fine = [99, 0, 57, 8]
        if layout == "python":
            batch = {b"coarse_labels": coarse, b"fine_labels": fine, b"data": pixels}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
        else:
            rows = zip(coarse, fine, pixels, strict=True)
            data = b"".join(bytes([c, f]) + row.tobytes() for c, f, row in rows)
            (folder / f"{name}.bin").write_bytes(data)
    source = CIFAR100(root=str(tmp_path), mean=[0.5] * 3, std=[0.25] * 3)
    train = source.train(32, Augmentations())
    assert train.labels.tolist() == [99, 0, 57, 8]
    assert np.array_equal(train.images.numpy().reshape(4, -1), content(0)[0])
    assert len(source.info.classes) == 100
    assert [source.info.classes[i] for i in (99, 0, 57, 8)] == ["worm", "apple", "pear", "bicycle"]


@pytest.mark.data
def test_the_real_cifar10() -> None:
    root = os.environ.get("CVTRAIN_DATA")
    if not root:
        pytest.skip("set CVTRAIN_DATA to the folder that holds cifar-10-batches-py")
    source = cifar(Path(root))
    train, val = source.train(32, Augmentations()), source.val(32)
    assert train.images.shape == (50_000, 3, 32, 32)
    assert val.images.shape == (10_000, 3, 32, 32)
    assert train.labels.bincount().tolist() == [5_000] * 10
    assert val.labels.bincount().tolist() == [1_000] * 10
    means = train.images.double().mean((0, 2, 3)) / 255
    assert means.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-3)
