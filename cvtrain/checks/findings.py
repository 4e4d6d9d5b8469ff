"""What is to be looked at in a data set, one line each, the gravest first."""

from collections.abc import Iterator

import numpy as np

from cvtrain.checks.duplicates import BITS, Near, exact, near
from cvtrain.checks.look import Facts
from cvtrain.checks.parts import CLASS, Found, Part
from cvtrain.checks.statistics import classes, twice

FEW_GREY = 0.2  # a larger share of grey images is how the data are
PLAIN = 1.0  # of 255: the deviation of an image of one colour
UNBALANCED = 10  # times as many images as the smallest class has
OFF = 0.1  # of 0..1: the config normalises by other figures than these pixels have
# In this order, and what else there is of a file behind them.
KINDS = (
    *("unreadable", "damaged", "bad box", "bad label", "box twice", "two classes"),
    *("duplicate across splits", "near duplicate across splits", "duplicate", "near duplicate"),
    *("empty class", "no validation image", "unbalanced", "normalisation"),
)


class Places:
    """From the number of an image to its split and name."""

    def __init__(self, parts: list[Part], facts: Facts) -> None:
        self.parts, self.offsets = parts, facts.offsets

    def find(self, index: int) -> tuple[Part, int]:
        place = int(np.searchsorted(self.offsets, index, side="right")) - 1
        return self.parts[place], index - int(self.offsets[place])

    def name(self, index: int) -> str:
        part, number = self.find(index)
        return part.name_of(number)

    def split(self, index: int) -> str:
        return self.find(index)[0].name

    def label(self, index: int) -> str:
        part, number = self.find(index)
        return part.label(number)


def sort(found: list[Found]) -> list[Found]:
    def grave(one: Found) -> tuple[int, str]:
        known = one.kind in KINDS
        return (KINDS.index(one.kind), "") if known else (len(KINDS), one.kind)

    return sorted(found, key=grave)


def of_files(parts: list[Part], facts: Facts) -> Iterator[Found]:
    """Bad ones and odd ones."""
    places = Places(parts, facts)
    left_out = {file: why for part in parts for file, why in part.bad.items()}
    for file, why in left_out.items():
        yield Found("unreadable", str(file), why)
    for index, why in facts.bad.items():
        yield Found("unreadable", places.name(index), why)
    for index, kind, what in facts.odd:
        yield Found(kind, places.name(index), what)
    good = np.flatnonzero(facts.good)
    grey = good[facts.grey[good]]
    if 0 < len(grey) <= FEW_GREY * len(good):
        for index in grey.tolist():
            yield Found("grey among colour", places.name(index))
    for index in good.tolist():
        if facts.thumb[index].std() < PLAIN:
            yield Found("of one colour", places.name(index))


def of_classes(parts: list[Part]) -> Iterator[Found]:
    """Empty and unbalanced ones; `parts[0]` is trained on."""
    for part in parts:
        columns = classes(part)
        if part.objects is not None and CLASS not in columns:
            names = part.classes[CLASS]
            columns = {CLASS: dict(zip(names, part.objects.counts(len(names)), strict=True))}
        for column, counts in columns.items():
            of = "" if column == CLASS else f" of {column}"
            kind = "no validation image" if part.name == "val" else "empty class"
            for name in (name for name, count in counts.items() if not count):
                yield Found(kind, part.name, f"{name}{of}")
            filled = {name: count for name, count in counts.items() if count}
            if part is parts[0] and len(filled) > 1:
                yield from _unbalanced(part.name, filled, of)


def _unbalanced(split: str, counts: dict[str, int], of: str) -> Iterator[Found]:
    most, least = (end(counts, key=counts.__getitem__) for end in (max, min))
    if counts[most] >= UNBALANCED * counts[least]:
        ratio = counts[most] / counts[least]
        what = f"{counts[most]:,} of {most}, {counts[least]:,} of {least}{of}: {ratio:.0f} to 1"
        yield Found("unbalanced", split, what)


def of_boxes(parts: list[Part]) -> Iterator[Found]:
    for part in parts:
        for image in twice(part.objects) if part.objects is not None else ():
            yield Found("box twice", part.name_of(image), "the same box with the same class")


def of_pixels(facts: Facts, mean: list[float], std: list[float]) -> Iterator[Found]:
    if not facts.counted:
        return
    own = facts.moments()
    off = max(
        abs(a - b)
        for ours, theirs in zip(own, (mean, std), strict=True)
        for a, b in zip(ours, theirs * len(ours) if len(theirs) == 1 else theirs, strict=False)
    )
    if off > OFF:
        keys = (f"data.{k}=[{','.join(f'{v:.4f}' for v in vs)}]"
                for k, vs in zip(("mean", "std"), own, strict=True))  # fmt: skip
        what = "the config's mean and std are not those of the pixels; "
        yield Found("normalisation", "train", f"{what}for a network from chance: {' '.join(keys)}")


def of_duplicates(groups: list[list[int]], pairs: list[Near], places: Places) -> Iterator[Found]:
    for first, *others in groups:
        for other in others:
            yield _pair("duplicate", first, other, "the same bytes", places)
            if places.label(first) != places.label(other):
                labels = f"{places.label(first)} and {places.label(other)}"
                yield Found("two classes", places.name(first), labels, places.name(other))
    for first, other, distance in pairs:
        yield _pair("near duplicate", first, other, f"distance {distance} of {BITS}", places)


def _pair(kind: str, first: int, other: int, what: str, places: Places) -> Found:
    splits = places.split(first), places.split(other)
    if splits[0] != splits[1]:
        kind, what = f"{kind} across splits", f"{what}, {splits[0]} and {splits[1]}"
    if places.label(first) != places.label(other):
        what += f", {places.label(first)} and {places.label(other)}"
    return Found(kind, places.name(first), what, places.name(other))


def duplicates(facts: Facts) -> tuple[list[list[int]], list[Near]]:
    """Groups of the same digest, and near pairs of one from each group and of the others."""
    groups = exact(facts.digest, facts.good)
    alone = facts.good.copy()
    for _, *others in groups:
        alone[others] = False
    return groups, near(facts.thumb, np.flatnonzero(alone))
