"""Every image looked at once, by threads: a few hundred bytes of each are kept, no pixels."""

import hashlib
import os
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from cvtrain.checks.oddities import damage, oddities
from cvtrain.checks.parts import Part
from cvtrain.data.images import BadImage, probe, read_image
from cvtrain.errors import DataError

THUMB = 18  # pixels of a side of what is compared
CHUNK = 1024  # images under way at a time
SAMPLE = 2000  # images whose pixels are all counted
GREY = 8  # of 255: as far as the channels of a grey image may differ, after JPEG


class Seen(NamedTuple):
    """Of one image. A bad one has nothing but the reason."""

    bad: str = ""
    size: tuple[int, int] = (0, 0)  # width, height in pixels, upright
    length: int = 0  # bytes of the file
    digest: bytes = bytes(16)
    thumb: NDArray[np.uint8] | None = None  # [THUMB, THUMB]
    grey: bool = False
    odd: tuple[tuple[str, str], ...] = ()
    counts: NDArray[np.int64] | None = None  # [3, 256] of the pixels, where they were asked for


class Facts:
    """Of all images of all parts, one after the other."""

    def __init__(self, parts: list[Part]) -> None:
        count = sum(part.count for part in parts)
        self.offsets = np.cumsum([0, *(part.count for part in parts)])
        self.size = np.zeros((count, 2), np.int32)
        self.length = np.zeros(count, np.int64)
        self.digest = np.zeros((count, 16), np.uint8)
        self.thumb = np.zeros((count, THUMB, THUMB), np.uint8)
        self.grey = np.zeros(count, bool)
        self.bad: dict[int, str] = {}
        self.odd: list[tuple[int, str, str]] = []
        self.counts = np.zeros((0, 256))  # [C, 256]: shares of the values 0..255, summed
        self.counted = 0  # images in there

    def add(self, index: int, seen: Seen) -> None:
        if seen.bad:
            self.bad[index] = seen.bad
            return
        assert seen.thumb is not None
        self.size[index], self.length[index] = seen.size, seen.length
        self.digest[index] = np.frombuffer(seen.digest, np.uint8)
        self.thumb[index], self.grey[index] = seen.thumb, seen.grey
        self.odd += [(index, kind, what) for kind, what in seen.odd]
        if seen.counts is not None:
            self.count(seen.counts / seen.counts[0].sum(), 1)

    def count(self, shares: NDArray[np.float64], images: int) -> None:
        """Every image weighs the same, whatever its size."""
        self.counts = shares if not self.counted else self.counts + shares
        self.counted += images

    @property
    def good(self) -> NDArray[np.bool_]:
        """`[N]`: those that can be read."""
        return np.asarray(self.size[:, 0] > 0)

    def moments(self) -> tuple[list[float], list[float]]:
        """Mean and deviation of each channel, of pixels 0..1."""
        values = np.arange(256) / 255
        shares = self.counts / max(self.counted, 1)
        mean = shares @ values
        return mean.tolist(), np.sqrt(np.maximum(shares @ values**2 - mean**2, 0)).tolist()


def look_at(parts: list[Part], *, max_pixels: int, threads: int) -> Facts:
    """Pixels are counted of the training split alone, of at most SAMPLE files of it."""
    facts = Facts(parts)
    files = [
        (first + number, file)
        for first, part in _starts(facts, parts)
        for number, file in enumerate(part.files)
    ]
    training = parts[0].count if parts else 0
    chosen = np.random.default_rng(0).permutation(training)[:SAMPLE]
    sample = set(chosen.tolist())
    for first, part in _starts(facts, parts):
        if part.images is not None:
            _look_at_arrays(facts, first, part.images, count=first == 0)
    if files:
        _look_at_files(facts, files, sample, max_pixels, threads)
    return facts


def _starts(facts: Facts, parts: list[Part]) -> Iterator[tuple[int, Part]]:
    return zip(facts.offsets.tolist(), parts, strict=False)


def _look_at_files(
    facts: Facts,
    files: list[tuple[int, Path]],
    sample: set[int],
    max_pixels: int,
    threads: int,
) -> None:
    def one(item: tuple[int, Path]) -> Seen:
        return look(item[1], max_pixels=max_pixels, count=item[0] in sample)

    with _quiet(), ThreadPoolExecutor(threads) as pool:
        bar = tqdm(
            total=len(files), desc="images", unit="", leave=False, disable=not sys.stderr.isatty()
        )
        for start in range(0, len(files), CHUNK):
            chunk = files[start : start + CHUNK]
            for (index, _), seen in zip(chunk, pool.map(one, chunk), strict=True):
                facts.add(index, seen)
                bar.update()
        bar.close()


@contextmanager
def _quiet() -> Iterator[None]:
    """What threads would switch back and forth among themselves is set once for all of them."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    own = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
        torch.set_num_threads(own)


def look(path: Path, *, max_pixels: int, count: bool) -> Seen:
    """By the same functions as training reads it."""
    try:
        header = probe(path, max_pixels=max_pixels)
        small = read_image(path, header, 2 * THUMB, 2 * THUMB)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()[:16]
        odd = (*oddities(path), *(damage(path) if header.plain else ()))
        counts = None
        if count:
            whole = read_image(path, header, header.height, header.width)
            counts = np.array(Image.fromarray(whole.numpy()).histogram()).reshape(3, 256)
    except BadImage as why:
        return Seen(bad=str(why))
    except DataError as error:  # its pixels
        return Seen(bad=error.what.removeprefix("cannot be read: ") or error.name)
    except OSError as error:
        return Seen(bad=error.strerror or type(error).__name__)
    thumb, grey = _thumbs(small.permute(2, 0, 1)[None])
    size = header.width, header.height
    return Seen("", size, header.size, digest, thumb[0], bool(grey[0]), odd, counts)


def _thumbs(images: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Of `[N, C, H, W]` uint8; and whether each is grey."""
    values = images.float()
    spread = (values.amax(1) - values.amin(1)).amax((1, 2))
    mean = values.mean(1, keepdim=True)
    small = F.interpolate(mean, (THUMB, THUMB), mode="bilinear", antialias=True)[:, 0]
    return small.round().byte().numpy(), (spread <= GREY).numpy()


def _look_at_arrays(facts: Facts, first: int, images: Tensor, *, count: bool) -> None:
    channels, height, width = images.shape[1:]
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK]
        here = slice(first + start, first + start + len(chunk))
        facts.size[here], facts.length[here] = (width, height), channels * height * width
        facts.thumb[here], facts.grey[here] = _thumbs(chunk)
        for index, pixels in enumerate(chunk.numpy(), here.start):
            digest = hashlib.sha256(pixels.tobytes()).digest()[:16]
            facts.digest[index] = np.frombuffer(digest, np.uint8)
        if count:
            values = chunk.transpose(0, 1).flatten(1)
            bins = torch.stack([channel.int().bincount(minlength=256) for channel in values])
            facts.count(bins.numpy() / (height * width), len(chunk))


def threads_of_machine() -> int:
    return min(16, len(os.sched_getaffinity(0)))
