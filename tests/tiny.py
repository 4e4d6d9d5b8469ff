"""Tiny data sets, written in the real formats, and the real command: what many tests start from."""

import gzip
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from forked import ALL_FRESH, fork
from PIL import Image

# Enough for two steps of everything; drawn in a tenth of a second.
TINY_SHAPES = ("data.size=16", "data.train_per_class=4", "data.val_per_class=2")
TINY_TABLE = ("data.size=16", "data.train=40", "data.val=16")
TINY_DRAWN = {"shapes": TINY_SHAPES, "shapes_labels": TINY_TABLE, "shapes_box": TINY_TABLE}
TINY_DRAWN |= {"shapes_boxes": ("data.size=64", "data.train=16", "data.val=6")}


def idx_bytes(array: np.ndarray) -> bytes:
    """The IDX format as its authors describe it: magic number, big-endian sizes, bytes."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def digits(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright row that tells the class, uint8 [N, 28, 28], and labels [N]."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 100, (count, 28, 28), dtype=np.uint8)
    labels = rng.integers(0, 10, count, dtype=np.uint8)
    images[np.arange(count), 2 + 2 * labels] = 250
    return images, labels


def write_mnist(root: Path, *, train: int = 48, val: int = 10, packed: bool = True) -> Path:
    """`root/MNIST/raw` with four IDX files; returns that folder."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix, count, seed in (("train", train, 0), ("t10k", val, 1)):
        images, labels = digits(count, seed=seed)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx_bytes(array)
            if packed:
                (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(data))
            else:
                (folder / f"{prefix}-{name}-ubyte").write_bytes(data)
    return folder


def command(
    *arguments: str,
    cwd: Path,
    env: dict[str, str] | None = None,
    timeout: float = 120,
    fresh: bool = False,
) -> subprocess.CompletedProcess[str]:
    """`cvtrain ARGUMENTS` in a process of its own; `fresh`: in an interpreter of its own."""
    if fresh or ALL_FRESH:
        return subprocess.run(
            [sys.executable, "-m", "cvtrain", *arguments],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    with TemporaryDirectory() as output:
        process = fork(list(arguments), folder=cwd, output=Path(output), env=env)
        try:
            process.join(timeout)
            if process.exitcode is None:
                raise subprocess.TimeoutExpired(arguments, timeout)
        finally:
            if process.exitcode is None:
                process.kill()
        texts = [(Path(output) / name).read_text() for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(arguments, process.exitcode, *texts)


def summary(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def write_cifar(root: Path, *, classes: int = 10, count: int = 24) -> None:
    """The python version: pickled batches of random images."""
    rng = np.random.default_rng(0)
    fine = classes == 100
    folder = root / ("cifar-100-python" if fine else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    names = ["train", "test"] if fine else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name in names:
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = rng.integers(0, classes, count).tolist()
        batch = {b"fine_labels" if fine else b"labels": labels, b"data": pixels}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def write_images(
    root: Path,
    *,
    classes: tuple[str, ...] = ("ants", "bees"),
    splits: tuple[str, ...] = ("train", "val"),
    count: int = 6,
    size: tuple[int, int] = (48, 40),
) -> None:
    """`root/<split>/<class>/<number>.jpg`, a smooth picture each."""
    rng = np.random.default_rng(0)
    for split in splits:
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
                coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")


def write_table(root: Path, *, boxes: bool, count: int = 36) -> None:
    """`root/{train,val}.csv` of labels, or of a class and its box, and their images."""
    write_images(root, classes=("photos",), count=count)
    for split in ("train", "val"):
        rows = ["path,class,x1,y1,x2,y2" if boxes else "path,kind,large"]
        for number in range(count):
            name = ("ant", "bee", "wasp")[number % 3]
            cells = f"{name},{number % 7},3,{20 + number % 9},30" if boxes else f"{name},"
            if not boxes and number % 4:  # the fourth has no such label
                cells += str(number % 2)
            rows.append(f"{split}/photos/{number}.jpg,{cells}")
        (root / f"{split}.csv").write_text("\n".join(rows) + "\n")


def write_objects(root: Path, *, count: int = 12, size: tuple[int, int] = (64, 48)) -> None:
    """`root/{train,val}`: images with a bright rectangle and a dark one each, wide and tall ones,
    every fourth empty; as COCO (`annotations/*.json`) and as VOC (`Annotations/*.xml`).
    """
    rng, names = np.random.default_rng(0), ("car", "dog")
    for folder in ("annotations", "Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        (root / split).mkdir()
        images, annotations, stems = [], [], []
        for number in range(1, count + 1):
            width, height = size if number % 3 else size[::-1]
            pixels = rng.integers(90, 140, (height, width, 3), dtype=np.uint8)
            boxes = [] if number % 4 == 0 else [(4, 6, 16 + number, 20), (30, 24, 12, 9 + number)]
            xml = ""
            for label, (left, top, across, down) in enumerate(boxes):
                pixels[top : top + down, left : left + across] = 250 * (1 - label)
                box = [left, top, min(across, width - left), min(down, height - top)]
                annotations.append({"bbox": box, "image_id": number, "category_id": 7 + label})
                edges = (box[0] + 1, box[1] + 1, box[0] + box[2], box[1] + box[3])
                keys = ("xmin", "ymin", "xmax", "ymax")
                corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(keys, edges, strict=True))
                xml += f"<object><name>{names[label]}</name><bndbox>{corners}</bndbox></object>"
            stem = f"{split}{number:03}"
            Image.fromarray(pixels).save(root / split / f"{stem}.jpg", quality=95)
            shutil.copy(root / split / f"{stem}.jpg", root / "JPEGImages")
            (root / f"Annotations/{stem}.xml").write_text(f"<annotation>{xml}</annotation>")
            stems.append(stem)
            said = {"file_name": f"{stem}.jpg", "width": width, "height": height}
            images.append({"id": number, **said})
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(stems))
        for number, annotation in enumerate(annotations):
            annotation |= {"id": number, "iscrowd": 0, "area": 100.0, "segmentation": []}
        categories = [{"id": 7 + label, "name": name} for label, name in enumerate(names)]
        top = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"annotations/{split}.json").write_text(json.dumps(top))


def write_data(name: str, root: Path) -> list[str]:
    """Tiny data for `data=NAME` below `root`; what to type besides. One line for a new data set."""
    if name in ("mnist", "fashion_mnist"):
        write_mnist(root)
        if name == "fashion_mnist":
            (root / "MNIST").rename(root / "FashionMNIST")
    elif name in ("cifar10", "cifar100"):
        write_cifar(root, classes=int(name.removeprefix("cifar")))
    elif name == "imagenet":
        write_images(root / name, classes=("n01440764", "n01443537", "n01484850"))
    elif name == "folder":
        write_images(root / name)
    elif name in ("csv", "csv_box"):
        write_table(root / name, boxes=name == "csv_box")
    elif name == "coco":
        write_objects(root / name)
        splits = [f"data.{s}_json=annotations/{s}.json" for s in ("train", "val")]
        return [f"data_dir={root}", *splits, "data.train_dir=train", "data.val_dir=val"]
    elif name == "voc":
        write_objects(root / "VOCdevkit")
        return [f"data_dir={root}", "data.train_sets=[train]", "data.val_sets=[val]"]
    return [f"data_dir={root}", *TINY_DRAWN.get(name, ())]


# A child's ru_maxrss begins with its parent's, this one with the program.
PEAK = r"int(re.search(r'VmHWM:\s+(\d+)', open('/proc/self/status').read())[1])"  # kilobytes
