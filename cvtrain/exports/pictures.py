"""Pictures to try an export on: those of a data set where they lie at hand, else drawn ones."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cvtrain.data.scan import SUFFIXES
from cvtrain.data.shapes_draw import CLASSES, draw_scene, place_shape

REACH = (0.08, 0.2)  # radii of the shapes in a drawn picture, as shares of its side
SHAPES = 5


def files_below(root: Path, count: int) -> list[Path]:
    """The first image files that are met."""
    return list(islice(_files(root), count))


def _files(root: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(root):
        below.sort()
        yield from (Path(folder, n) for n in sorted(names) if Path(n).suffix.lower() in SUFFIXES)


def drawn(number: int, size: int) -> NDArray[np.uint8]:
    """Some shapes, uint8 `[size, size, 3]`, every second one only `[3 / 4 size, size, 3]`."""
    rng = np.random.default_rng(number)
    shapes = [place_shape(rng, str(rng.choice(CLASSES)), REACH) for _ in range(SHAPES)]
    picture, _ = draw_scene(rng, size, shapes)
    return picture[: size * 3 // 4] if number % 2 else picture
