"""What a check has found, as a page."""

from pathlib import Path
from typing import Any

import numpy as np

from cvtrain.checks import charts
from cvtrain.checks.parts import CLASS, Found
from cvtrain.checks.result import Result
from cvtrain.data.images import shown
from cvtrain.report.page import (
    Chart,
    Details,
    Part,
    Picture,
    Section,
    Table,
    Text,
    Tiles,
    write_page,
)

ROWS = 200  # of a table of what was found
MOST_BARS = 40  # of classes


def write(result: Result, path: Path) -> None:
    sections = [
        Section("Verdict", _verdict(result)),
        Section("Samples as the network sees them", _samples(result)),
        Section("Images as they are", _picture(result, "check_images.png", "")),
        Section("Classes", _classes(result)),
        Section("Images", _images(result)),
        Section("Boxes", _boxes(result)),
        Section(
            "Duplicates",
            _picture(
                result, "check_duplicates.png", "Pairs side by side, those across splits first."
            ),
        ),
        Section("Odd images", _picture(result, "check_odd.png", "Some of each kind.")),
        Section("All that was found", _found(result)),
    ]
    subtitle = f"{shown(Path(result.root).absolute())}"
    write_page(path, title=f"Data set: {result.title}", subtitle=subtitle, sections=sections)


def _verdict(result: Result) -> list[Part]:
    splits = result.figures["splits"]
    counts = ", ".join(f"{name} {split['images']:,}" for name, split in splits.items())
    kinds = result.of_kind()
    across = sum(len(found) for kind, found in kinds.items() if "across" in kind)
    classes = max((len(part.classes.get(CLASS, ())) for part in result.parts), default=0)
    tiles = [("images", f"{sum(part.count for part in result.parts):,}", counts)]
    tiles += [("classes", f"{classes:,}", "")] if classes else []
    tiles += [("unreadable", f"{len(kinds.get('unreadable', ())):,}", "")]
    tiles += [("duplicates across splits", f"{across:,}", "exact and near pairs")]
    for name, boxes in result.figures["boxes"].items():
        tiles.append(
            (f"boxes, {name}", f"{boxes['boxes']:,}", f"{boxes['an_image']['mean']} an image")
        )
    parts: list[Part] = [Text(f"Training would fail. {error}", "bad") for error in result.errors]
    if not parts:
        parts = [Text("Training would begin.", "good")]
    said = {kind: len(found) for kind, found in kinds.items()}
    if said:
        text = ", ".join(f"{kind}: {count:,}" for kind, count in said.items())
        parts.append(Text(f"To look at: {text}.", "warning"))
    return [Tiles(tiles), *parts]


def _samples(result: Result) -> list[Part]:
    caption = "The first of the first epoch, augmented; normalisation is undone."
    return _picture(result, "check_samples.png", caption)


def _classes(result: Result) -> list[Part]:
    parts: list[Part] = []
    splits = {name: split["classes"] for name, split in result.figures["splits"].items()}
    columns = list(dict.fromkeys(column for classes in splits.values() for column in classes))
    for column in columns:
        counts = {name: classes.get(column, {}) for name, classes in splits.items()}
        names = list(dict.fromkeys(name for own in counts.values() for name in own))
        title = "images of each class" if column == CLASS else f"images of each {shown(column)}"
        first = next(iter(counts.values()))
        if len(names) <= MOST_BARS:
            parts.append(Chart(charts.bars(title, {shown(n): first.get(n, 0) for n in names})))
        else:
            parts.append(Chart(charts.ranked(title, list(first.values()))))
        rows = [[shown(name), *(own.get(name, 0) for own in counts.values())] for name in names]
        parts.append(Table(["class", *counts], rows, wide=False))
    return parts


def _images(result: Result) -> list[Part]:
    facts, sizes, pixels = result.facts, result.figures["sizes"], result.figures["pixels"]
    parts: list[Part] = []
    good = facts.size[facts.good]
    if len(good) and sizes["different"] > 1:
        parts.append(Chart(charts.size_map(good)))
        parts.append(Chart(charts.histogram("short side", good.min(1), "pixels")))
        rows = [[key, *sizes[key].values()] for key in ("width", "height", "aspect")]
        head = ["pixels", *(name.replace("_", " ") for name in sizes["width"])]
        parts.append(Table(head, rows, wide=not pixels))
    elif len(good):
        width, height = good[0].tolist()
        parts.append(Text(f"All of them have {width}x{height} pixels."))
    if pixels:
        channels = ("red", "green", "blue") if len(pixels["mean"]) == 3 else ("grey",)
        keys = ("mean", "config_mean", "std", "config_std")
        values = [_for_each(pixels[key], len(channels)) for key in keys]
        rows = [[name, *column] for name, *column in zip(channels, *values, strict=True)]
        head = ["channel", "mean", "in the config", "deviation", "in the config"]
        caption = f"Pixels 0..1 of {pixels['images']:,} training images, each of the same weight."
        parts.append(Table(head, rows, caption, ["", ".4f", ".4f", ".4f", ".4f"], wide=False))
        parts.append(Chart(charts.values_of_pixels(facts.counts / facts.counted, channels)))
    return parts


def _for_each(values: list[float], channels: int) -> list[float]:
    return values * channels if len(values) == 1 else values[:channels]


def _boxes(result: Result) -> list[Part]:
    parts: list[Part] = []
    for part in result.parts:
        if part.objects is None or not len(part.objects.boxes):
            continue
        figures: dict[str, Any] = result.figures["boxes"][part.name]
        box = part.objects.boxes[~part.objects.crowd]
        width, height = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
        side, aspect = np.sqrt(width * height), np.log2(width / height)
        an_image = np.diff(part.objects.offsets)
        name = part.name
        parts.append(Chart(charts.histogram(f"{name}: boxes an image", an_image, "boxes")))
        parts.append(Chart(charts.histogram(f"{name}: root of the area", side, "pixels")))
        parts.append(Chart(charts.histogram(f"{name}: shape", aspect, "log2 of width / height")))
        keys = ("boxes", "small", "medium", "large", "crowds", "difficult", "empty_images")
        rows = [[key.replace("_", " "), figures[key]] for key in keys]
        parts.append(
            Table([name, "count"], rows, "small: below 32², large: 96² pixels", wide=False)
        )
        head = ["category", "boxes", "images", "median side"]
        rows = [[shown(n), *own.values()] for n, own in figures["categories"].items()]
        table = Table(head, rows, f"{name}: pixels of the files")
        parts.append(Details(f"{name}: {len(rows)} categories", [table]))
    return parts


def _picture(result: Result, name: str, caption: str) -> list[Part]:
    return [Picture(result.pictures[name], caption, wide=True)] if name in result.pictures else []


def _found(result: Result) -> list[Part]:
    notes = [Details("Said when the data were read", "\n".join(result.notes))]
    kinds = [_kind(kind, found) for kind, found in result.of_kind().items()]
    return [*kinds, *(notes if result.notes else [])]


def _kind(kind: str, found: list[Found]) -> Part:
    several = any(one.other for one in found)
    head = ["where", *(["and"] if several else []), "what"]
    rows = [
        [shown(one.where), *([shown(one.other)] if several else []), shown(one.what)]
        for one in found[:ROWS]
    ]
    more = f"The first {ROWS}; all are in check.csv." if len(found) > ROWS else ""
    return Details(f"{kind}: {len(found):,}", [Table(head, rows, more)])
