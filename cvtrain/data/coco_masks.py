"""The masks of an instances json, checked: pycocotools believes what it is given.

It takes the memory that a mask asks for, and of wrong run lengths makes pixels of what lies there.
"""

from typing import Any

import numpy as np

from cvtrain.data.masks import Mask, Numbers
from cvtrain.data.objects import shorten


def packed(segmentation: Any) -> Any:
    """Polygons as arrays, which take a quarter of the memory of lists; all else as it is."""
    if isinstance(segmentation, list):
        return [_array(polygon) for polygon in segmentation]
    return segmentation


def _array(values: Any) -> Any:
    if isinstance(values, list) and set(map(type, values)) <= {float, int}:
        try:
            return np.array(values, np.float64)
        except OverflowError:  # of an int beyond all floats
            pass
    return values


def read_mask(segmentation: Any, height: int, width: int) -> Mask:
    """Of an image of that size in pixels; `segmentation` is packed.

    Raises ValueError, which says why it is no mask of the image.
    """
    if isinstance(segmentation, dict):
        return _runs(segmentation, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError(f"is {shorten(segmentation)}, neither polygons nor run lengths")
    for number, polygon in enumerate(segmentation):
        if not isinstance(polygon, np.ndarray):
            raise ValueError(f"has polygon {number}, which is {shorten(polygon)}, no numbers")
        if why := _flaw(polygon, height, width):
            raise ValueError(f"has polygon {number}, which {why}")
    return segmentation


def _flaw(polygon: Numbers, height: int, width: int) -> str:
    """Why a polygon cannot be one of an image of that size; empty if it can.

    One may reach out of its image as boxes may. Memory to paint it is as it is long.
    """
    if len(polygon) < 6 or len(polygon) % 2:
        return f"has {len(polygon)} numbers, not pairs for three corners or more"
    corners, size = polygon.reshape(-1, 2), np.array([width, height], np.float64)
    if not (np.abs(corners - size / 2) <= 1.5 * size).all():
        if not np.isfinite(polygon).all():
            return "is not finite"
        return f"reaches far out of its image, {width}x{height} pixels"
    length = np.abs(np.diff(corners, axis=0, prepend=corners[-1:])).max(1).sum()
    if length > (height + 2) * (width + 2):
        return f"is {length:.0f} pixels long, more than its image has, {width}x{height}"
    return ""


def _runs(rle: dict[str, Any], height: int, width: int) -> Numbers:
    size, counts, pixels = rle.get("size"), rle.get("counts"), height * width
    if size != [height, width]:
        what = f"[{height}, {width}], height and width of its image"
        raise ValueError(f"has size {shorten(size)}, not {what}")
    if isinstance(counts, str):
        counts = _uncompressed(counts, pixels)
    if not isinstance(counts, list) or not set(map(type, counts)) <= {int}:
        raise ValueError(f"has counts {shorten(counts)}, no whole numbers")
    if counts and not 0 <= min(counts) <= max(counts) <= pixels:
        wrong = next(count for count in counts if not 0 <= count <= pixels)
        raise ValueError(f"has a run of {shorten(wrong)} pixels in an image of {pixels}")
    if sum(counts) != pixels:
        raise ValueError(f"has runs of {sum(counts)} pixels together in an image of {pixels}")
    return np.array(counts, np.float64)


def _uncompressed(text: str, pixels: int) -> list[int]:
    """Five bits of a number a character, the lowest first; 32 says that more follow, 16 in the
    last that it is negative. From the fourth on, numbers are differences to the last but one.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 30 or len(counts) > pixels + 1:
            raise ValueError(f"has counts {shorten(text)}, no run lengths")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16) << (shift - 4)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError(f"has counts {shorten(text)}, which are cut off")
    return counts
