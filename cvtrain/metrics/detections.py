"""Truths and detections image by image, as compact arrays: what the measures of detection read."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor


class ImageDetections(NamedTuple):
    """Of one image in the pixels of its file; boxes are left, top, right, bottom."""

    size: tuple[int, int]  # height, width
    boxes: np.ndarray  # float32 [m, 4]
    labels: np.ndarray  # int32 [m], from 1 on
    crowd: np.ndarray  # bool [m]
    difficult: np.ndarray  # bool [m]
    area: np.ndarray  # float32 [m], pixels of the object, which are fewer than of its box
    rles: list[bytes] | None  # compressed run lengths of each mask, where masks are asked for
    found_boxes: np.ndarray  # float32 [n, 4]
    scores: np.ndarray  # float32 [n]
    found_labels: np.ndarray  # int32 [n]
    found_rles: list[bytes] | None


class Detections:
    """By the image's number, so that each counts once, whichever process had it.

    `masks` is whether the masks are kept; None: where both the truth and what was found have them.
    """

    def __init__(self, *, masks: bool | None = False) -> None:
        self._masks = masks
        self.images: dict[int, ImageDetections] = {}

    def __len__(self) -> int:
        return len(self.images)

    @property
    def masks(self) -> bool:
        """Whether there are masks to measure."""
        if self._masks is None:
            kept = [image.found_rles is not None for image in self.images.values()]
            return bool(kept) and all(kept)
        return self._masks

    def add(self, number: int, truth: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """One image: its truth (`size`, `boxes`, `labels`; `crowd`, `difficult`, `area`, `rles`)
        and what was found (`boxes`, `scores`, `labels`; `rles`), tensors or arrays.

        Detections that are not finite are left out. A number seen before changes nothing.
        """
        if number in self.images:
            return
        height, width = (int(side) for side in truth["size"])
        boxes = _array(truth["boxes"], np.float32).reshape(-1, 4)
        found_boxes = _array(found["boxes"], np.float32).reshape(-1, 4)
        scores = _array(found["scores"], np.float32)
        usable = np.isfinite(found_boxes).all(1) & np.isfinite(scores)
        rles = found_rles = None
        both = "rles" in truth and "rles" in found
        if both if self._masks is None else self._masks:
            rles = _codes(truth["rles"], boxes, (height, width))
            codes = [found["rles"][row] for row in np.flatnonzero(usable)]
            found_rles = _codes(codes, found_boxes[usable], (height, width))
        count = len(boxes)
        area = truth.get("area")
        self.images[number] = ImageDetections(
            (height, width),
            boxes,
            _array(truth["labels"], np.int32),
            _array(truth.get("crowd", np.zeros(count)), np.bool_),
            _array(truth.get("difficult", np.zeros(count)), np.bool_),
            areas(boxes) if area is None else _array(area, np.float32),
            rles,
            found_boxes[usable],
            scores[usable],
            _array(found["labels"], np.int32)[usable],
            found_rles,
        )

    def kept(self) -> dict[int, ImageDetections]:
        """To be sent to other processes."""
        return self.images

    def merge(self, kept: Iterable[dict[int, ImageDetections]]) -> None:
        """Take what `kept` gave on every process; in the order of the numbers afterwards."""
        together = dict(self.images)
        for images in kept:
            together.update(images)
        self.images = dict(sorted(together.items()))


def areas(boxes: np.ndarray) -> np.ndarray:
    """`[n]` of boxes `[n, 4]`; 0 where one is inside out."""
    return np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(1)


def encode_masks(masks: Tensor | np.ndarray) -> list[bytes]:
    """Compressed run lengths of masks `[n, H, W]` or `[n, 1, H, W]`, bool or of 0 and 1."""
    from pycocotools import mask

    array = _array(masks, np.uint8)
    array = array.reshape(-1, *array.shape[-2:])
    # One at a time: what is copied into Fortran's order is never larger than an image.
    return [mask.encode(np.asfortranarray(one))["counts"] for one in array]


def _array(values: Any, dtype: Any) -> np.ndarray:
    """A copy of its own: a view would keep a whole batch in memory."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    return np.array(values, dtype)


def _codes(
    rles: Sequence[str | bytes | None], boxes: np.ndarray, size: tuple[int, int]
) -> list[bytes]:
    """As bytes; an object without a mask has its box as one."""
    from pycocotools import mask

    def filled(box: np.ndarray) -> bytes:
        sides = np.maximum(box[2:] - box[:2], 0)
        return mask.frPyObjects(np.array([[*box[:2], *sides]], np.float64), *size)[0]["counts"]

    return [
        filled(box) if rle is None else rle.encode() if isinstance(rle, str) else rle
        for rle, box in zip(rles, boxes, strict=True)
    ]
