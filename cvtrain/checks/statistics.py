"""Figures of a data set: counts, sizes, pixels, classes, boxes; plain values, ready for JSON."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvtrain.checks.look import Facts
from cvtrain.checks.parts import CLASS, Part
from cvtrain.data.objects import Objects

SMALL, LARGE = 32**2, 96**2  # pixels of area: COCO's sizes of objects
DIGITS = 4  # of what is a mean


def spread(values: NDArray[Any]) -> dict[str, float]:
    """Least, quartiles and greatest; nothing of nothing."""
    if not len(values):
        return {}
    names = ("min", "quarter", "median", "three_quarters", "max")
    found = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return {name: round(value, DIGITS) for name, value in zip(names, found, strict=True)}


def sizes(facts: Facts) -> dict[str, Any]:
    size, length = facts.size[facts.good], facts.length[facts.good]
    if not len(size):
        return {}
    width, height = size.T.astype(np.int64)
    by_area = np.argsort(width * height, kind="stable")
    ends = {"smallest": by_area[0], "middle": by_area[len(size) // 2], "largest": by_area[-1]}
    return {
        "width": spread(width),
        "height": spread(height),
        "aspect": spread(width / height),  # width by height
        **{name: size[place].tolist() for name, place in ends.items()},
        "different": len(np.unique(size, axis=0)),
        "bytes": int(length.sum()),
    }


def pixels(facts: Facts, mean: list[float], std: list[float]) -> dict[str, Any]:
    """Of the training split; `mean` and `std` are what the config normalises by."""
    own = [[round(value, DIGITS) for value in column] for column in facts.moments()]
    return {
        "images": facts.counted,
        "mean": own[0],
        "std": own[1],
        "config_mean": list(mean),
        "config_std": list(std),
    }


def classes(part: Part) -> dict[str, dict[str, int]]:
    """Images of each class, by column."""
    return {
        name: dict(zip(names, _counts(part.labels[name], len(names)), strict=True))
        for name, names in part.classes.items()
        if name in part.labels
    }


def _counts(labels: NDArray[np.int64], classes: int) -> list[int]:
    return np.bincount(labels[labels >= 0], minlength=classes).tolist()


def boxes(objects: Objects, names: tuple[str, ...]) -> dict[str, Any]:
    """Of all objects of a split but crowds; sizes are in pixels of the files."""
    per_image, single = np.diff(objects.offsets), ~objects.crowd
    box, area = objects.boxes[single], objects.area[single]
    width, height = (box[:, 2] - box[:, 0]), (box[:, 3] - box[:, 1])
    return {
        "images": len(per_image),
        "boxes": int(single.sum()),
        "crowds": int(objects.crowd.sum()),
        "difficult": int(objects.difficult.sum()),
        "empty_images": int((per_image == 0).sum()),
        "an_image": {**spread(per_image), "mean": round(float(per_image.mean()), 2)},
        "small": int((area < SMALL).sum()),
        "medium": int(((area >= SMALL) & (area < LARGE)).sum()),
        "large": int((area >= LARGE).sum()),
        "side": spread(np.sqrt(width * height)),
        "aspect": spread(width / height),
        "categories": _categories(objects, single, names),
    }


def _categories(
    objects: Objects, single: NDArray[np.bool_], names: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    image = np.repeat(np.arange(len(objects.offsets) - 1), np.diff(objects.offsets))
    labels, image, area = objects.labels[single], image[single], objects.area[single]
    found = {}
    for label, name in enumerate(names, 1):
        own = labels == label
        found[name] = {
            "boxes": int(own.sum()),
            "images": len(np.unique(image[own])),
            "median_side": round(float(np.median(np.sqrt(area[own]))), 1) if own.any() else 0.0,
        }
    return found


def twice(objects: Objects) -> list[int]:
    """The images with a box that is there twice, with the same class."""
    image = np.repeat(np.arange(len(objects.offsets) - 1), np.diff(objects.offsets))
    rows = np.column_stack([image, objects.labels, objects.boxes])
    _, first, counts = np.unique(rows, axis=0, return_index=True, return_counts=True)
    return sorted({int(image[place]) for place in first[counts > 1]})


def figures(parts: list[Part], facts: Facts, mean: list[float], std: list[float]) -> dict[str, Any]:
    """All of the above."""
    return {
        "splits": {
            part.name: {
                "images": part.count,
                "left_out": len(part.bad),
                "classes": classes(part),
            }
            for part in parts
        },
        "sizes": sizes(facts),
        "pixels": pixels(facts, mean, std) if facts.counted else {},
        "boxes": {
            part.name: boxes(part.objects, part.classes[CLASS])
            for part in parts
            if part.objects is not None
        },
    }
