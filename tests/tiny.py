"""Tiny data sets, written in the real formats, and the real command: what many tests start from."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

# Enough for two steps of everything; drawn in a tenth of a second.
TINY_SHAPES = ("data.size=16", "data.train_per_class=4", "data.val_per_class=2")


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
    *arguments: str, cwd: Path, env: dict[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """`cvtrain ARGUMENTS` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "cvtrain", *arguments],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def summary(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
