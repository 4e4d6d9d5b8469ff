"""What was found, as sheets of pictures."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cvtrain.checks.findings import Places
from cvtrain.checks.look import Facts
from cvtrain.data.images import BadImage, probe, read_image
from cvtrain.errors import DataError
from cvtrain.metrics.sheet import CELL, sheet

PAIRS, ODD, SOME = 16, 24, 32  # shown
COLUMNS = 8


def of_pairs(
    groups: list[list[int]], near: Sequence[tuple[int, int, int]], places: Places, facts: Facts
) -> NDArray[np.uint8] | None:
    """Duplicates side by side, those across splits first; None where there are none."""
    pairs = [(group[0], other, "same bytes") for group in groups for other in group[1:]]
    pairs += [(first, other, f"{distance} bits apart") for first, other, distance in near]
    pairs.sort(key=lambda pair: places.split(pair[0]) == places.split(pair[1]))
    shown = [(i, what) for first, other, what in pairs[:PAIRS] for i in (first, other)]
    captions = [[places.name(i).rpartition("/")[2], _about(places, i), what] for i, what in shown]
    return _sheet([i for i, _ in shown], captions, places, facts)


def of_some(places: Places, facts: Facts) -> NDArray[np.uint8] | None:
    """Images as they are, spread over the training split."""
    good = np.flatnonzero(facts.good[: facts.offsets[:2][-1]])
    chosen = np.linspace(0, len(good) - 1, min(SOME, len(good))).astype(int)
    indices = good[chosen].tolist()
    return _sheet(indices, [[_about(places, i)] for i in indices], places, facts)


def of_odd(places: Places, facts: Facts) -> NDArray[np.uint8] | None:
    """A few of each kind of odd ones."""
    kinds = list(dict.fromkeys(kind for _, kind, _ in facts.odd))
    each = max(1, ODD // max(1, len(kinds)))
    shown = [
        (index, kind)
        for kind in kinds
        for index in [i for i, own, _ in facts.odd if own == kind][:each]
    ][:ODD]
    captions = [[kind, places.name(i).rpartition("/")[2], _about(places, i)] for i, kind in shown]
    return _sheet([i for i, _ in shown], captions, places, facts)


def _about(places: Places, index: int) -> str:
    return ", ".join(filter(None, (places.split(index), places.label(index))))


def _sheet(
    indices: list[int], captions: list[list[str]], places: Places, facts: Facts
) -> NDArray[np.uint8] | None:
    pictures = [_picture(i, places, facts) for i in indices]
    return sheet(pictures, captions, columns=min(COLUMNS, len(indices))) if indices else None


def _picture(index: int, places: Places, facts: Facts) -> NDArray[np.uint8] | None:
    """uint8 `[H, W, 3]`, no larger than a cell of a sheet."""
    part, number = places.find(index)
    if part.images is not None:
        pixels = part.images[number].permute(1, 2, 0).numpy()
        return pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, :1].repeat(3, axis=2)
    width, height = facts.size[index].tolist()
    scale = min(1.0, CELL / max(width, height, 1))
    try:
        header = probe(part.files[number], max_pixels=width * height)
        small = max(1, round(height * scale)), max(1, round(width * scale))
        return read_image(part.files[number], header, *small).numpy()
    except (BadImage, DataError):  # it was there before
        return None
