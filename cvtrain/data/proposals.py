"""Where objects may be: boxes from outside the network, for one that judges regions (Fast R-CNN).

`grid` are windows all over the image, `selective_search` those of Uijlings et al. 2013; any others
come from a file (see proposal_files.py), or from a run whose RPN's `cvtrain proposals` wrote down.
"""

import hashlib
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from torchvision.ops import box_iou

from cvtrain.data.download import sha256_of
from cvtrain.data.images import shown
from cvtrain.data.objects import Objects
from cvtrain.data.proposal_files import (
    Stored,
    compute_once,
    read_npz,
    read_results,
    refused,
    sizes_of,
)
from cvtrain.data.scan import Scan
from cvtrain.data.selective_search import load_opencv, selective_search
from cvtrain.errors import ConfigError

VERSION = 1  # of what the methods give: files of another one are not read
MOST = 100_000  # boxes of an image
SHRINK, RATIOS, STEP = 1.6, (0.5, 1.0, 2.0), 0.5  # of the windows of a grid
CHECKED = 1000  # images of a split whose recall is measured
IOUS = (0.5, 0.7)
IN_RUN = "proposals"  # the folder of a run that holds its RPN's

log = logging.getLogger(__name__)


class Boxes(Protocol):
    """The proposals of a split."""

    def of(self, image: int) -> NDArray[np.float32]:
        """`[P, 4]`: left, top, right, bottom in pixels of the file."""


@dataclass(frozen=True)
class Grid:
    """The same windows for all images of one size."""

    sizes: NDArray[np.int64]  # [images, 2]: height and width in pixels
    count: int

    def of(self, image: int) -> NDArray[np.float32]:
        height, width = self.sizes[image].tolist()
        return windows(height, width, self.count)


@lru_cache(maxsize=512)
def windows(height: int, width: int, count: int) -> NDArray[np.float32]:
    """`[count, 4]` windows of an image, the largest first: left, top, right, bottom.

    They have the area of the image, then 1.6^2 times less and so on, are half as wide as high, as
    wide, and twice as wide (cut at the image's borders), and stand evenly, at most half their width
    and height apart. Of the smallest, a share is taken, spread evenly, so that there are `count`.
    """
    levels: list[NDArray[np.float64]] = []
    left, side = count, math.sqrt(height * width)
    while left > 0:
        shapes = [_placed(height, width, side / math.sqrt(r), side * math.sqrt(r)) for r in RATIOS]
        level = np.concatenate(shapes)
        spread = np.linspace(0, len(level) - 1, min(left, len(level))).round().astype(int)
        levels.append(level[spread])
        left -= len(spread)
        side /= SHRINK
    return np.concatenate(levels).astype(np.float32)


def _placed(height: int, width: int, high: float, wide: float) -> NDArray[np.float64]:
    """Windows of `high` times `wide` pixels, all over an image."""
    high, wide = min(high, height), min(wide, width)
    rows = np.linspace(0, height - high, 1 + math.ceil((height - high) / (STEP * high)))
    columns = np.linspace(0, width - wide, 1 + math.ceil((width - wide) / (STEP * wide)))
    top, left = (corner.ravel() for corner in np.meshgrid(rows, columns, indexing="ij"))
    return np.stack([left, top, left + wide, top + high], 1)


class Split(NamedTuple):
    """What proposals are made for."""

    name: str  # train or val
    found: Scan
    objects: Objects
    ids: Sequence[int | str]  # of the images, as a json has them


@dataclass(frozen=True)
class Proposer:
    """`grid`, `selective_search`, a FILE (.npz or .json), a FOLDER of one for each split, or a RUN.

    `count` is how many boxes an image has at most, `smallest` how large a side of selective
    search's is, in pixels of the file. Raises ConfigError.
    """

    method: str
    count: int = 2000
    smallest: int = 20

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST:
            what = f"data.proposals_count={self.count}"
            raise ConfigError(what, "", f"type a number of boxes, 1 to {MOST}")
        if self.smallest < 1:
            what = f"data.proposals_min={self.smallest}"
            raise ConfigError(what, "", "type a number of pixels, at least 1")
        if self.method not in ("grid", "selective_search") and not Path(self.method).exists():
            raise ConfigError(
                f"data.proposals={shown(self.method)} is neither a method nor a file",
                "",
                "type data.proposals=grid, data.proposals=selective_search or data.proposals=FILE",
            )

    def key(self, found: Scan) -> str:
        """Of the images, the method and its settings."""
        said = (VERSION, self.method, self.count, self.smallest, found.fingerprint())
        return hashlib.sha256(repr(said).encode()).hexdigest()[:16]

    def fingerprint(self, split: Split) -> str:
        """Of the proposals of a split, known before they are computed. Raises DataError."""
        if self.method in ("grid", "selective_search"):
            return self.key(split.found)
        file = self.file(split.name)
        try:
            return f"{self.count}/{sha256_of(file)}"
        except OSError as error:
            raise refused(file, f"cannot be read: {error.strerror}") from error

    def file(self, split: str) -> Path:
        """The user's, or a run's. Raises DataError for a folder that has none for the split."""
        path = Path(self.method)
        if not path.is_dir():
            return path
        of_run = path / IN_RUN / f"{split}.npz"
        for file in (path / f"{split}.npz", path / f"{split}.json", of_run):
            if file.exists():
                return file
        if (path / "checkpoints").is_dir():
            fix = f"type cvtrain proposals run={shown(path)}"
            raise refused(path, f"is a run without {IN_RUN}/{split}.npz", fix)
        raise refused(path, f"has neither {split}.npz nor {split}.json")

    def boxes(self, name: str, splits: Mapping[str, Split]) -> Boxes:
        """Those of a split; says what they are worth. Raises DataError, MachineError.

        A single json has to tell its images apart from those of the other splits.
        """
        split = splits[name]
        boxes = self._boxes(split, [other for other in splits.values() if other is not split])
        met, images, count = recalls(boxes, split.objects)
        shares = " and ".join(f"{met[at]:.1%} at IoU {at}" for at in IOUS)
        text = "%s: %s proposes %s boxes an image, which meet %s of the objects (of %d images)"
        log.info(text, name, shown(self.method), f"{count:,.0f}", shares, images)
        return boxes

    def _boxes(self, split: Split, others: list[Split]) -> Boxes:
        if self.method == "grid":
            return Grid(sizes_of(split.found), self.count)
        if self.method == "selective_search":
            return self._searched(split)
        file = self.file(split.name)
        if file.suffix != ".json":
            return replace(read_npz(file, split.found), most=self.count)
        for other in others if file == Path(self.method) else ():
            if shared := sorted(set(split.ids) & set(other.ids)):
                images = f"{split.name} and {other.name} images"
                what = f"is to be of {images}, both of which have {shared[0]!r}"
                fix = "type data.proposals=FOLDER for one that holds train.json and val.json"
                raise refused(file, what, fix)
        return replace(read_results(file, split.ids), most=self.count)

    def _searched(self, split: Split) -> Stored:
        found, key = split.found, self.key(split.found)
        stored = found.root / "proposals" / f"{self.method}-{split.name}-{key}.npz"
        cv2 = None if stored.exists() else load_opencv()

        def propose(image: int) -> NDArray[np.int64]:
            file, header = found.files[image], found.headers[image]
            return selective_search(cv2, file, header, count=self.count, smallest=self.smallest)

        threads = len(os.sched_getaffinity(0))  # OpenCV works without Python's lock
        return compute_once(stored, found, key, propose, threads=threads)


def recalls(boxes: Boxes, objects: Objects) -> tuple[dict[float, float], int, float]:
    """The share of the objects that a box meets, by IoU; of how many images; their mean boxes.

    Crowds and what is difficult do not count. Of a large split some images stand for all.
    """
    images = len(objects.offsets) - 1
    chosen = np.unique(np.linspace(0, images - 1, min(images, CHECKED)).round().astype(int))
    best, counts = [torch.zeros(0)], []
    for image in chosen.tolist():
        rows = objects.rows(image)
        told = ~objects.crowd[rows] & ~objects.difficult[rows]
        proposed = torch.from_numpy(boxes.of(image))
        counts.append(len(proposed))
        # One of no size, that meets nothing, where there are none.
        overlap = box_iou(
            torch.from_numpy(objects.boxes[rows][told]), F.pad(proposed, (0, 0, 0, 1))
        )
        best.append(overlap.max(1).values)
    met = torch.cat(best)
    shares = {at: (met >= at).double().mean().item() if len(met) else 1.0 for at in IOUS}
    return shares, len(chosen), float(np.mean(counts)) if counts else 0.0
