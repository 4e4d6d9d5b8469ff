"""Draws `shapes_boxes`: textured scenes of up to eight shapes, annotated as COCO's images are.

Shapes overlap a little. Here and there an image has none at all, or a crowd: many small shapes of
one class, with one box and mask around them all. Masks are those that the shapes are painted by:
polygons where all of a shape is seen, else run lengths.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from cvtrain.data.shapes_draw import (
    CLASSES,
    FloatArray,
    PlacedShape,
    appearing,
    draw_scene,
    outlines,
)

VERSION = 1  # of the pictures: another one never meets images that this one drew
_MOST = 8  # objects in an image
_EMPTY, _CROWDED = 0.03, 0.05  # shares of the images
# Radii of the circumscribed circles, as fractions of the image side: most of them, and small ones.
_REACH, _SMALL = (0.065, 0.3), (0.03, 0.065)
_FEW = 0.06  # share of small ones
_CROWD, _MEMBER = 0.16, (0.022, 0.035)  # radii of a crowd and of its members
_APART = 0.85  # least distance of two centres, as a share of the sum of the radii
_TRIES = 30  # to find a place; then there is one object less
_SEEN = 0.5  # share of a shape; one of which less is seen is not annotated


@dataclass(frozen=True)
class _Thing:
    """One object: a shape, or the members of a crowd."""

    shapes: list[PlacedShape]
    crowd: bool = False


def _things(rng: Generator) -> list[_Thing]:
    if rng.random() < _EMPTY:
        return []
    things: list[_Thing] = []
    circles: list[PlacedShape] = []
    if rng.random() < _CROWDED:
        name = str(rng.choice(CLASSES))
        circles += _placed(rng, name, _CROWD, [])
        members: list[PlacedShape] = []
        for _ in range(int(rng.integers(6, 11))):
            members += _placed(rng, name, rng.uniform(*_MEMBER), members, circles[0])
        things.append(_Thing(members, crowd=True))
    for _ in range(int(rng.integers(1, _MOST + 1))):
        low, high = _SMALL if rng.random() < _FEW else _REACH
        radius = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        shapes = _placed(rng, str(rng.choice(CLASSES)), radius, circles)
        circles += shapes
        things += [_Thing(shapes)] if shapes else []
    return things


def _placed(
    rng: Generator,
    name: str,
    radius: float,
    others: Sequence[PlacedShape],
    within: PlacedShape | None = None,
) -> list[PlacedShape]:
    """A shape wholly inside and far enough from the others; none where no place is found."""
    for _ in range(_TRIES):
        x, y = rng.uniform(radius, 1 - radius, size=2)
        if within:
            away = (within.radius - radius) * np.sqrt(rng.random())
            turn = rng.uniform(0, 2 * np.pi)
            x, y = within.x + away * np.cos(turn), within.y + away * np.sin(turn)
        if all(np.hypot(x - o.x, y - o.y) >= _APART * (radius + o.radius) for o in others):
            return [PlacedShape(name, x, y, radius, angle=rng.uniform(0, 2 * np.pi))]
    return []


def draw_annotated(rng: Generator, size: int) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """An image (size, size, 3) and its annotations, without their ids."""
    things = _things(rng)
    image, masks = draw_scene(rng, size, [shape for thing in things for shape in thing.shapes])
    seen = _seen(masks)
    annotations, first = [], 0
    for thing in things:
        members = slice(first, first + len(thing.shapes))
        first = members.stop
        whole = np.max(masks[members], axis=0) >= 0.5
        mask = np.sum(seen[members], axis=0) >= 0.5
        if mask.sum() >= max(_SEEN * whole.sum(), 1):
            complete = bool((mask == whole).all()) and not thing.crowd
            annotations.append(_annotation(thing, mask, complete=complete))
    return image, annotations


def _seen(masks: list[FloatArray]) -> list[FloatArray]:
    """What is left of each when the later ones are painted over it."""
    seen: list[FloatArray] = []
    left: Any = 1.0
    for mask in reversed(masks):
        seen.append(mask * left)
        left = left * (1 - mask)
    return seen[::-1]


def _annotation(thing: _Thing, mask: NDArray[np.bool_], *, complete: bool) -> dict[str, Any]:
    """`complete`: all of it is seen, so that its outline is its polygon (if it has no hole)."""
    across, down = (np.flatnonzero(mask.any(axis)).tolist() for axis in (0, 1))
    left, top, right, bottom = across[0], down[0], across[-1] + 1, down[-1] + 1
    outline, *holes = outlines(thing.shapes[0])
    polygon = [(outline * len(mask)).round(2).ravel().tolist()]
    return {
        "category_id": CLASSES.index(thing.shapes[0].name) + 1,
        "bbox": [left, top, right - left, bottom - top],
        "area": int(mask.sum()),
        "iscrowd": int(thing.crowd),
        "segmentation": polygon if complete and not holes else _run_lengths(mask),
    }


def _run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Column by column, beginning with the pixels before the first of the mask."""
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *ends.tolist(), flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def draw_instances(root: Path, *, size: int, train: int, val: int, seed: int = 0) -> None:
    """Writes the data set, images of `size` x `size` pixels, as the new directory `root`.

    It appears whole or not at all, as that of `draw_folder`. Raises OSError.
    """
    with appearing(root) as draft:
        (draft / "annotations").mkdir(parents=True)
        for split, count in (("train2017", train), ("val2017", val)):
            (draft / split).mkdir()
            top = _drawn_split(draft / split, size=size, count=count, seed=seed)
            file = draft / "annotations" / f"instances_{split}.json"
            file.write_text(json.dumps(top), encoding="utf-8")


def _drawn_split(folder: Path, *, size: int, count: int, seed: int) -> dict[str, Any]:
    """The json of the images drawn; each has its own generator, so none depends on the others."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        rng = np.random.default_rng([seed, number, *f"{folder.name}/boxes".encode()])
        pixels, found = draw_annotated(rng, size)
        name = f"{number:012d}.jpg"
        Image.fromarray(pixels).save(folder / name, quality=90)
        images.append({"id": number, "file_name": name, "width": size, "height": size})
        for each in found:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **each})
    categories = [
        {"id": number, "name": name, "supercategory": "shape"}
        for number, name in enumerate(CLASSES, 1)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}
