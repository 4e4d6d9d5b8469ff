"""The objects of a split's images: flat arrays, and what is wrong with them said in one line."""

import logging
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvtrain.data.images import shown
from cvtrain.data.masks import Mask, Masks
from cvtrain.data.scan import LISTED, MOST_BAD
from cvtrain.errors import ConfigError, DataError

log = logging.getLogger(__name__)

Corners = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class Objects:
    """Those of image `i` are the rows `offsets[i]` to `offsets[i + 1]` of every other array."""

    offsets: NDArray[np.int64]  # [images + 1]
    boxes: NDArray[np.float32]  # [objects, 4]: left, top, right, bottom in pixels of the file
    labels: NDArray[np.int64]  # [objects], from 1: 0 is the background
    area: NDArray[np.float32]  # [objects], pixels
    crowd: NDArray[np.bool_]  # [objects]: several, that are not told apart
    difficult: NDArray[np.bool_]  # [objects]
    learnt: NDArray[np.bool_]  # [objects]: those that are targets
    masks: Masks | None = None  # where they are asked for

    def rows(self, image: int) -> slice:
        return slice(int(self.offsets[image]), int(self.offsets[image + 1]))

    def of_images(self, kept: list[int]) -> "Objects":
        """Those of some of the images, which are given in their order."""
        counts = np.diff(self.offsets)[kept]
        rows = np.repeat(np.isin(np.arange(len(self.offsets) - 1), kept), np.diff(self.offsets))
        return Objects(
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            self.boxes[rows],
            self.labels[rows],
            self.area[rows],
            self.crowd[rows],
            self.difficult[rows],
            self.learnt[rows],
            self.masks and Masks.of([self.masks[row] for row in np.flatnonzero(rows).tolist()]),
        )

    def counts(self, classes: int) -> tuple[int, ...]:
        """Targets of each class."""
        return tuple(np.bincount(self.labels[self.learnt], minlength=classes + 1)[1:].tolist())


@dataclass
class Rows:
    """Objects as they are read, one after the other and of any image."""

    image: list[int] = field(default_factory=list)
    box: list[Corners] = field(default_factory=list)
    label: list[int] = field(default_factory=list)
    area: list[float] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    mask: list[Mask] = field(default_factory=list)  # of each object, or of none

    def add(
        self,
        image: int,
        box: Corners,
        label: int,
        *,
        area: float | None = None,
        crowd: bool = False,
        difficult: bool = False,
        mask: Mask | None = None,
    ) -> None:
        """Without an `area` that of the box is taken."""
        self.image.append(image)
        self.box.append(box)
        self.label.append(label)
        self.area.append((box[2] - box[0]) * (box[3] - box[1]) if area is None else area)
        self.crowd.append(crowd)
        self.difficult.append(difficult)
        if mask is not None:
            self.mask.append(mask)

    def sort(self, images: int, *, learn_difficult: bool = False) -> Objects:
        """By image, in the order in which they were read."""
        image = np.array(self.image, np.int64)
        order = np.argsort(image, kind="stable")
        crowd, difficult = np.array(self.crowd, bool), np.array(self.difficult, bool)
        learnt = ~crowd & (~difficult | learn_difficult)
        return Objects(
            np.searchsorted(image[order], np.arange(images + 1)).astype(np.int64),
            np.array(self.box, np.float32).reshape(-1, 4)[order],
            np.array(self.label, np.int64)[order],
            np.array(self.area, np.float32)[order],
            crowd[order],
            difficult[order],
            learnt[order],
            Masks.of([self.mask[row] for row in order]) if self.mask else None,
        )


class Mistakes:
    """What is wrong in a file of annotations: all of it is looked at before any of it is refused.

    Bad boxes are no mistakes with `on_bad_boxes=drop`, as long as they are few.
    """

    def __init__(self, file: Path, name: str, on_bad_boxes: str) -> None:
        self.file, self.name, self.drop = file, name, on_bad_boxes == "drop"
        self.listed: list[str] = []
        self.total = self.bad_boxes = self.boxes = 0
        self.notes: Counter[str] = Counter()

    def add(self, place: str, why: str) -> None:
        self.total += 1
        if len(self.listed) < LISTED:
            self.listed.append(f"{place} {why}")

    def box(self, place: str, box: Corners, width: int, height: int) -> Corners | None:
        """The part of a box that is in the image; None, and noted, where the box is bad."""
        self.boxes += 1
        if why := flaw(box, width, height):
            self.bad_box(place, why)
            return None
        inside = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height))
        self.notes["boxes reach out of their images and are clipped"] += inside != box
        return inside

    def bad_box(self, place: str, why: str) -> None:
        self.bad_boxes += 1
        self.add(place, why)

    def refuse(self, fix: str = "") -> None:
        """Raises DataError if there is something to refuse; says what was done otherwise."""
        few = self.bad_boxes <= max(1, MOST_BAD * self.boxes)
        if self.total and not (self.drop and few and self.total == self.bad_boxes):
            raise self.error(fix or self._fix(few))
        if self.bad_boxes:
            first = ", ".join(self.listed[:3]) + (", ..." if self.total > 3 else "")
            what = f"bad boxes of {self.boxes} are left out ({first})"
            log.warning("warning: %s: %d %s", shown(self.file), self.bad_boxes, what)
        if notes := [f"{count} {what}" for what, count in self.notes.items() if count]:
            log.info("%s: %s", shown(self.file), "; ".join(notes))

    def _fix(self, few: bool) -> str:
        if self.total > self.bad_boxes:
            return "mend it"
        if few:
            return "mend it, or type data.on_bad_boxes=drop to leave such boxes out"
        return f"mend it: more than {MOST_BAD:.0%} of its boxes is too much to leave out"

    def error(self, fix: str) -> DataError:
        more = f" and {self.total - len(self.listed)} more" if self.total > len(self.listed) else ""
        count = "a mistake" if self.total == 1 else f"{self.total} mistakes"
        what = f"{count}: {', '.join(self.listed)}{more}"
        return DataError(what, shown(self.file), fix, name=self.name)


def flaw(box: Corners, width: int, height: int) -> str:
    """Why a box cannot be one of an image of that size; empty if it can.

    One may reach out of its image, by annotators' slips of the hand: as far as the image is large.
    """
    left, top, right, bottom = box
    if not all(map(math.isfinite, box)):
        return "is not finite"
    if not left < right:
        return f"is {right - left:g} pixels wide"
    if not top < bottom:
        return f"is {bottom - top:g} pixels high"
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        return f"lies outside its image, {width}x{height} pixels"
    if left < -width or top < -height or right > 2 * width or bottom > 2 * height:
        return f"reaches far out of its image, {width}x{height} pixels"
    return ""


def shorten(value: Any) -> str:
    """A value of a file, to show in a line."""
    text = shown(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ConfigError for a value that is none of the choices."""
    if value not in choices:
        options = " or ".join(f"data.{key}={choice}" for choice in choices)
        raise ConfigError(f"data.{key}={value}", "", f"type {options}")
