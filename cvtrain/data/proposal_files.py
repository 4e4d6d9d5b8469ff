"""Files of proposals: read and checked, or computed once for all processes.

An .npz holds `names` of images (their paths below the root of the data), `sizes` int [N, 2] (height
and width in pixels), `offsets` int [N + 1] and `boxes` [offsets[N], 4]: rows `offsets[i]` to
`offsets[i + 1]` are those of image i, best first: left, top, right, bottom in pixels of the image
as it is in its file. `key`, if there, is the fingerprint of what it was computed from. It may hold
more images than a split has, in any order. A json is a list as of COCO's results: `image_id`,
`bbox` (left, top, width, height) and, if there, `score`.
"""

import json
import logging
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cvtrain.data.download import locked, part_of
from cvtrain.data.images import shown
from cvtrain.data.objects import shorten
from cvtrain.data.scan import Scan
from cvtrain.errors import DataError
from cvtrain.files import sync_directory, whole, writing

log = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]

OTHER = "type data.proposals=FILE for another one, or data.proposals=grid"
# What numpy raises over a file that is not there, is damaged or is something else.
UNREADABLE = (
    *(OSError, ValueError, TypeError, AttributeError, EOFError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True)
class Stored:
    """Those of image `i` are the rows `offsets[i]` to `offsets[i + 1]` of `boxes`."""

    offsets: NDArray[np.int64]  # [images + 1]
    boxes: NDArray[Any]  # [proposals, 4], int16 or float32
    most: int | None = None  # of an image; the others are not given

    def of(self, image: int) -> NDArray[np.float32]:
        """`[P, 4]`: left, top, right, bottom in pixels of the file."""
        rows = self.boxes[self.offsets[image] : self.offsets[image + 1]]
        return rows[: self.most].astype(np.float32)


def names_of(found: Scan) -> list[str]:
    """Of the images, as a file of proposals has them."""
    return [*found.files.names()]


def sizes_of(found: Scan) -> NDArray[np.int64]:
    """`[images, 2]`: height and width in pixels."""
    return np.stack([found.headers.height, found.headers.width], 1).astype(np.int64)


def write_npz(
    file: Path,
    names: Sequence[str],
    sizes: NDArray[np.int64],
    boxes: Sequence[NDArray[Any]],
    *,
    key: str = "",
    typed: str = "data.root",
) -> None:
    """Whole or not at all; `typed` is the key that leads elsewhere. Raises MachineError."""
    offsets = np.cumsum([0, *map(len, boxes)])
    flat = np.concatenate([np.zeros((0, 4), np.int16), *boxes])
    if np.abs(flat).max(initial=0) < 2**15 and (flat == np.rint(flat)).all():
        flat = flat.astype(np.int16)
    else:
        flat = flat.astype(np.float32)
    texts = np.array(names, np.str_)
    with whole(file, size=flat.nbytes, key=typed) as temporary, temporary.open("wb") as out:
        np.savez(out, names=texts, sizes=sizes, offsets=offsets, boxes=flat, key=np.array(key))
        out.flush()
        os.fsync(out.fileno())
    sync_directory(file.parent)


def read_npz(file: Path, found: Scan, *, key: str | None = None) -> Stored:
    """Those of the images of a split; with a `key` only a file that has it. Raises DataError."""
    fix = OTHER if key is None else "remove it, and it is computed anew"
    try:
        with np.load(file) as archive:
            arrays: Arrays = {name: archive[name] for name in ("names", "sizes", "offsets")}
            boxes = archive["boxes"]
            there = "" if key is None else str(archive["key"])
    except KeyError as error:
        what = f"is no .npz of proposals: {str(error.args[0]).partition(' is not')[0]} is missing"
        raise refused(file, what, fix) from error
    except UNREADABLE as error:
        why = getattr(error, "strerror", None) or "it is damaged, or something else"
        raise refused(file, f"is no .npz of proposals: {why}", fix) from error
    if wrong := _wrong(arrays, boxes):
        raise refused(file, f"is no .npz of proposals: {wrong}", fix)
    if key is not None and there != key:
        raise refused(file, f"was made of something else, {shorten(there)}, not {key}", fix)
    return _gathered(file, arrays, boxes, found)


def _wrong(arrays: Arrays, boxes: NDArray[Any]) -> str:
    """What no file of proposals can have; empty if there is nothing."""
    names, sizes, offsets = arrays["names"], arrays["sizes"], arrays["offsets"]
    if names.ndim != 1 or names.dtype.kind != "U":
        return "names are no list of texts"
    if sizes.shape != (len(names), 2) or sizes.dtype.kind not in "iu":
        return f"sizes are {sizes.dtype} {list(sizes.shape)}, not integers [{len(names)}, 2]"
    if offsets.shape != (len(names) + 1,) or offsets.dtype.kind not in "iu":
        return f"offsets are {offsets.dtype} {list(offsets.shape)}, not [{len(names) + 1}] integers"
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "iuf":
        return f"boxes are {boxes.dtype} {list(boxes.shape)}, not numbers [P, 4]"
    if offsets[0] != 0 or offsets[-1] != len(boxes) or (offsets[1:] < offsets[:-1]).any():
        return f"offsets do not divide its {len(boxes)} boxes"
    bad = ~(np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1))
    return f"boxes[{bad.argmax()}] is {boxes[bad.argmax()].tolist()}" if bad.any() else ""


def _gathered(file: Path, arrays: Arrays, boxes: NDArray[Any], found: Scan) -> Stored:
    """The rows of the images of a split, in its order."""
    numbers = {str(name): number for number, name in enumerate(arrays["names"])}
    names, offsets = names_of(found), arrays["offsets"].astype(np.int64)
    if missing := [name for name in names if name not in numbers]:
        what = f"lacks {len(missing)} of {len(names)} images, as {shown(missing[0])}"
        raise refused(file, what)
    rows = np.array([numbers[name] for name in names], np.int64)
    other = (arrays["sizes"][rows] != sizes_of(found)).any(1)
    if other.any():
        first = int(other.argmax())
        height, width = arrays["sizes"][rows[first]].tolist()
        header = found.headers[first]
        what = f"has {shown(names[first])} as {width}x{height} pixels"
        raise refused(file, f"{what}, which has {header.width}x{header.height}")
    if list(rows) == list(range(len(offsets) - 1)):
        return Stored(offsets, boxes)
    parts = [boxes[offsets[row] : offsets[row + 1]] for row in rows]
    return Stored(np.cumsum([0, *map(len, parts)]), np.concatenate(parts))


def read_results(file: Path, ids: Sequence[int | str]) -> Stored:
    """Those of the images that have these ids, best first. Raises DataError."""
    try:
        nodes = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise refused(file, f"cannot be read as a json: {why}") from error
    if not isinstance(nodes, list):
        raise refused(file, f"has a {type(nodes).__name__} at its top, no list")
    numbers = {id_: number for number, id_ in enumerate(ids)}
    images, scores, boxes = [], [], []
    for place, node in enumerate(nodes):
        image, score, box = _result(file, f"[{place}]", node)
        if image in numbers:
            images.append(numbers[image])
            scores.append(score)
            boxes.append(box)
    if not boxes:
        what = f"has no box for any of {len(ids)} images, of ids as {ids[0]!r}"
        raise refused(file, f"{what}, among {len(nodes)}")
    if (empty := len(ids) - len(set(images))) > 0:
        log.warning("warning: %s: nothing for %d of %d images", shown(file), empty, len(ids))
    order = np.lexsort((-np.array(scores), np.array(images)))
    offsets = np.searchsorted(np.array(images)[order], np.arange(len(ids) + 1))
    return Stored(offsets.astype(np.int64), np.array(boxes, np.float32)[order])


def _result(file: Path, place: str, node: Any) -> tuple[int | str, float, list[float]]:
    """The image, the score, and left, top, right, bottom."""
    if not isinstance(node, dict) or type(node.get("image_id")) not in (int, str):
        raise refused(file, f"{place} is {shorten(node)}, no object with an image_id")
    box, score = node.get("bbox"), node.get("score", 0.0)
    numbers = [*box, score] if isinstance(box, list) else []
    if len(numbers) != 5 or not all(type(n) in (int, float) and abs(n) < 1e9 for n in numbers):
        raise refused(file, f"{place} has bbox {shorten(box)} and score {shorten(score)}")
    left, top, width, height, score = numbers
    if not (width > 0 and height > 0):
        raise refused(file, f"{place}.bbox is {width:g}x{height:g} pixels")
    return node["image_id"], score, [left, top, left + width, top + height]


def refused(file: Path, what: str, fix: str = OTHER) -> DataError:
    return DataError(what, shown(file.absolute()), fix, name="PROPOSALS")


def compute_once(
    file: Path, found: Scan, key: str, propose: Callable[[int], NDArray[Any]], *, threads: int
) -> Stored:
    """`propose` of every image, from its file if there is one. Raises DataError, MachineError.

    One process computes, however many start. What is done of a start that was ended is in a part,
    from which the next one goes on.
    """
    if not file.exists():
        with writing(file.parent, key="data.root"):
            file.parent.mkdir(parents=True, exist_ok=True)
            with locked(file):
                if not file.exists():  # by the process that was waited for
                    boxes = _compute(file, len(found.files), propose, threads)
                    write_npz(file, names_of(found), sizes_of(found), boxes, key=key)
                    part_of(file).unlink()
    return read_npz(file, found, key=key)


def _compute(
    file: Path, images: int, propose: Callable[[int], NDArray[Any]], threads: int
) -> list[NDArray[Any]]:
    with part_of(file).open("a+b") as part:
        boxes = _kept(part)[:images]
        terminal, have = sys.stderr.isatty(), f", {len(boxes)} are done" if boxes else ""
        if not terminal:
            log.info("proposals of %d images%s; %d threads: %s", images, have, threads, shown(file))
        pool = ThreadPoolExecutor(threads)
        try:
            found = pool.map(propose, range(len(boxes), images))
            with tqdm(
                found, total=images, initial=len(boxes), desc="proposals", disable=not terminal
            ) as bar:
                for each in bar:
                    np.save(part, each)
                    part.flush()
                    boxes.append(each)
        finally:  # else it would do all the others first
            pool.shutdown(cancel_futures=True)
    return boxes


def _kept(part: IO[bytes]) -> list[NDArray[Any]]:
    """The arrays that are whole; what comes after them is cut off."""
    boxes: list[NDArray[Any]] = []
    end = part.seek(0)
    try:
        while True:
            boxes.append(np.load(part))
            end = part.tell()
    except (EOFError, ValueError, OSError):
        part.truncate(end)
        part.seek(end)
    return boxes
