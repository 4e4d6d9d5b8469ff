"""What is said of a picture, on the picture: boxes, masks and names, readable at every size.

Pillow rather than torchvision's drawing, which puts names over the objects and past the edge, and
paints black where masks overlap.
"""

import importlib.util
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
COLOURS = (
    *("#ff4d4f", "#1f9bff", "#2fbf4a", "#ffb000", "#b45cff", "#00bfc4", "#ff6fb5", "#8c6d31"),
    *("#7fb800", "#5a6bff", "#ff7f27", "#009e73"),
)
SMALL = 320  # pixels: smaller pictures are enlarged, by whole numbers
PAPER, INK, BAR = (24, 26, 30), (240, 242, 245), (38, 92, 148)
LINES = 5  # below a picture


def line(told: dict[str, Any], least: float = 0.0) -> str:
    """All of it in one line: `3 car, 1 bus`; `tabby (83.1 %), tiger cat (9.0 %)`."""
    if "objects" in told:
        counts = Counter(e["class"] for e in told["objects"] if e["score"] >= least)
        return ", ".join(f"{n} {name}" for name, n in counts.most_common()) or "nothing"
    said = [f"{name} ({100 * share:.1f} %)" for name, share in lines(told)]
    return ", ".join(said) or str(told.get("prediction", ""))


def lines(told: dict[str, Any]) -> list[tuple[str, float]]:
    """The names and probabilities that are said of the picture as a whole."""
    rows = told.get("top") or told.get("columns") or []
    names = (f"{row['column']} {row['class']}" if "column" in row else row["class"] for row in rows)
    return [(name, row["probability"]) for name, row in zip(names, rows, strict=True)]


def draw(
    pixels: np.ndarray, told: dict[str, Any], *, least: float = 0.0, over: bool = False
) -> np.ndarray:
    """On a copy of a picture uint8 `[H, W, 3]` (itself, if nothing is): objects of `least` or more.

    What is said of the whole stands below it, or with `over`, as in video, the first line on it.
    """
    found = [entry for entry in told.get("objects", ()) if entry["score"] >= least][::-1]
    for entry in found:
        if "mask" in entry:
            pixels = painted(pixels, entry["mask"], colour(entry["index"]))
    factor = max(1, SMALL // max(pixels.shape[:2]))
    if factor == 1 and not found and not lines(told):
        return pixels  # as many a frame: copies would cost more than drawing
    canvas = Image.fromarray(pixels)
    if factor > 1:
        size = canvas.width * factor, canvas.height * factor
        canvas = canvas.resize(size, Image.Resampling.NEAREST)
    said = lines(told)
    if "box" in told:
        found = [{**told["top"][0], "box": told["box"]}]
    frames(canvas, found, factor)
    if over and said and not found:
        overlay(canvas, f"{said[0][0]} ({100 * said[0][1]:.0f} %)")
    return np.array(canvas if over or not said else captioned(canvas, said[:LINES]))


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def painted(pixels: np.ndarray, mask: dict[str, Any], tint: str) -> np.ndarray:
    """A copy, half of that colour where the mask is."""
    from pycocotools import mask as coco

    there = coco.decode({**mask, "counts": mask["counts"].encode()}).astype(bool)
    own = np.array([int(tint[place : place + 2], 16) for place in (1, 3, 5)])
    pixels = pixels.copy()
    pixels[there] = (pixels[there].astype(np.uint16) + own) // 2
    return pixels


def frames(canvas: Image.Image, found: Sequence[dict[str, Any]], factor: float) -> None:
    """Boxes, times a factor, and the names above them; the last is the best."""
    pen, width = ImageDraw.Draw(canvas), max(2, round(max(canvas.size) / 256))
    taken: list[Box] = []
    boxes = [within(entry["box"], factor, canvas.size) for entry in found]
    for entry, box in zip(found, boxes, strict=True):
        pen.rectangle(box, outline=colour(entry["index"]), width=width)
    letters, high = font(canvas.size), round(1.3 * font(canvas.size).size)
    for entry, box in [*zip(found, boxes, strict=True)][::-1]:
        share, tint = entry.get("score", entry.get("probability", 0.0)), colour(entry["index"])
        text = fitted(f"{entry['class']} {100 * share:.0f} %", letters, canvas.width - 8)
        wide = round(pen.textlength(text, letters)) + 8
        taken.append(place := label_place(box, wide, high, canvas.size, taken))
        pen.rectangle(place, fill=tint)
        middle = place[0] + 4, (place[1] + place[3]) / 2
        pen.text(middle, text, dark_or_light(tint), letters, anchor="lm")


def within(box: Sequence[float], factor: float, size: tuple[int, int]) -> Box:
    """In whole pixels of a canvas of that width and height."""
    left, right = sorted(min(max(round(factor * side), 0), size[0] - 1) for side in box[::2])
    top, bottom = sorted(min(max(round(factor * side), 0), size[1] - 1) for side in box[1::2])
    return left, top, right, bottom


def label_place(box: Box, wide: int, high: int, size: tuple[int, int], taken: list[Box]) -> Box:
    """Above the box, else inside or below it: the first place that is free and not cut off."""
    left = max(0, min(box[0], size[0] - wide - 1))
    tops = [box[1] - high, box[1], box[3], box[3] - high]
    places = [(left, top, left + wide, top + high) for top in tops if 0 <= top < size[1] - high]
    free = (place for place in places if not any(overlapping(place, other) for other in taken))
    return next(free, places[0] if places else (left, 0, left + wide, high))


def overlapping(one: Box, other: Box) -> bool:
    across = one[0] < other[2] and other[0] < one[2]
    return across and one[1] < other[3] and other[1] < one[3]


def overlay(canvas: Image.Image, text: str) -> None:
    """A line in the upper left corner."""
    pen, letters = ImageDraw.Draw(canvas, "RGBA"), font(canvas.size, larger=1.4)
    text, high = fitted(text, letters, canvas.width - 16), round(1.5 * letters.size)
    pen.rectangle((0, 0, pen.textlength(text, letters) + 16, high), fill=(*PAPER, 200))
    pen.text((8, high / 2), text, INK, letters, anchor="lm")


def captioned(canvas: Image.Image, said: Sequence[tuple[str, float]]) -> Image.Image:
    """With the lines below it, each over a bar as long as its probability."""
    letters = font(canvas.size)
    high, margin = round(1.5 * letters.size), max(3, round(letters.size / 4))
    size = canvas.width, canvas.height + high * len(said) + 2 * margin
    whole = Image.new("RGB", size, PAPER)
    whole.paste(canvas)
    pen = ImageDraw.Draw(whole)
    for row, (text, share) in enumerate(said):
        top = canvas.height + margin + row * high
        length = share * (canvas.width - 2 * margin)
        if length >= 1:
            pen.rectangle((margin, top + 1, margin + length, top + high - 2), fill=BAR)
        number = f"{100 * share:.1f} %"
        wide, middle = round(letters.getlength(number)), top + high / 2
        text = fitted(text, letters, canvas.width - 6 * margin - wide)
        pen.text((2 * margin, middle), text, INK, letters, anchor="lm")
        pen.text((canvas.width - 2 * margin, middle), number, INK, letters, anchor="rm")
    return whole


def font(size: tuple[int, int], larger: float = 1.0) -> ImageFont.FreeTypeFont:
    """For a picture of that width and height."""
    return _font(round(larger * max(12, max(size) / 50)))


@lru_cache(4)
def _font(height: int) -> ImageFont.FreeTypeFont:
    # Matplotlib brings a font with more letters than Pillow's own; importing it takes a third of a
    # second, in the middle of a video.
    found = importlib.util.find_spec("matplotlib")
    folder = Path(str(found.origin if found else "")).parent / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / "DejaVuSans.ttf"), height)


def fitted(text: str, letters: ImageFont.FreeTypeFont, width: float) -> str:
    """On one line, cut where it would be longer than so many pixels."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def dark_or_light(tint: str) -> str:
    """What can be read on that colour."""
    red, green, blue = (int(tint[place : place + 2], 16) for place in (1, 3, 5))
    return "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 150 else "white"
