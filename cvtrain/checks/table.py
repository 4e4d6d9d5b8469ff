"""What a check has found, as lines for a terminal."""

from collections.abc import Iterator
from typing import Any

from cvtrain.checks.parts import CLASS, Found
from cvtrain.checks.result import Result
from cvtrain.data.images import shown

LISTED, CLASSES = 5, 10  # of a kind, and of classes
OF_CLASSES = ("empty class", "no validation image")


def table(result: Result) -> str:
    figures = result.figures
    lines = [f"{result.title}: {shown(result.root)}"]
    counts = [f"{name} {split['images']:,}" for name, split in figures["splits"].items()]
    lines += _row("images", ", ".join(counts) or "none")
    lines += _sizes(figures["sizes"])
    lines += _pixels(figures["pixels"])
    for name, split in figures["splits"].items():
        for column, classes in split["classes"].items():
            lines += _row("classes" if column == CLASS else shown(column), _classes(name, classes))
    for name, boxes in figures["boxes"].items():
        lines += _boxes(name, boxes)
    for kind, found in result.of_kind().items():
        lines += _found(kind, found)
    if not result.found:
        lines += _row("found", "nothing to look at")
    lines += [f"  training would fail: {error}" for error in result.errors]
    return "\n".join(lines)


def _found(kind: str, found: list[Found]) -> Iterator[str]:
    """Of classes, of which there may be hundreds, the names in a line."""
    yield from _row(kind, f"{len(found):,}")
    if kind in OF_CLASSES:
        names = ", ".join(shown(one.what) for one in found[:CLASSES])
        yield f"    {names}" + (", ..." if len(found) > CLASSES else "")
        return
    yield from (f"    {_said(one)}" for one in found[:LISTED])
    if len(found) > LISTED:
        yield f"    and {len(found) - LISTED:,} more in check.csv"


def _row(name: str, text: str) -> list[str]:
    return [f"  {name:<11} {text}"]


def _said(one: Found) -> str:
    other = f" = {shown(one.other)}" if one.other else ""
    if one.kind.startswith("near"):
        other = other.replace(" = ", " ~ ", 1)
    return shown(one.where) + other + (f": {shown(one.what)}" if one.what else "")


def _sizes(sizes: dict[str, Any]) -> Iterator[str]:
    if sizes:
        ends = (f"{k} {w}x{h}" for k in ("smallest", "middle", "largest") for w, h in [sizes[k]])
        many = f", {sizes['different']:,} sizes" if sizes["different"] > 1 else ""
        yield from _row("pixels", f"{', '.join(ends)}{many}; {sizes['bytes'] / 1e6:,.1f} MB")


def _pixels(pixels: dict[str, Any]) -> Iterator[str]:
    for name in ("mean", "std") if pixels else ():
        own, theirs = (
            " ".join(f"{value:.4f}" for value in pixels[key]) for key in (name, f"config_{name}")
        )
        of = f" of {pixels['images']:,} training images" if name == "mean" else ""
        yield from _row(name, f"{own}{of}; in the config {theirs}")


def _classes(split: str, classes: dict[str, int]) -> str:
    filled = {name: count for name, count in classes.items() if count}
    if not filled:
        return f"{split}: no image in any of {len(classes)}"
    most, least = (end(filled, key=filled.__getitem__) for end in (max, min))
    ends = f"{filled[least]:,} ({shown(least)}) to {filled[most]:,} ({shown(most)}) images"
    if filled[least] == filled[most]:
        ends = f"{filled[most]:,} images each"
    empty = len(classes) - len(filled)
    return f"{split}: {len(classes)}, of {ends}" + (f"; {empty} empty" if empty else "")


def _boxes(split: str, boxes: dict[str, Any]) -> Iterator[str]:
    an_image = boxes["an_image"]
    yield from _row(
        "boxes",
        f"{split}: {boxes['boxes']:,}, {an_image['mean']:.1f} an image (at most "
        f"{an_image['max']:.0f}), {boxes['empty_images']:,} images without",
    )
    if boxes["boxes"]:
        shares = (f"{boxes[k] / boxes['boxes']:.0%} {k}" for k in ("small", "medium", "large"))
        side, aspect = boxes["side"], boxes["aspect"]
        more = "".join(f", {boxes[k]:,} {k}" for k in ("crowds", "difficult") if boxes[k])
        yield from _row(
            "",
            f"{', '.join(shares)}; side {side['min']:.0f} to {side['max']:.0f} pixels, "
            f"width/height {aspect['min']:.2f} to {aspect['max']:.2f}{more}",
        )
