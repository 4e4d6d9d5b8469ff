"""What detections look like: over the truth, as curves, as bars by category, and the mistakes."""

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cvtrain.metrics.detection_mistakes import FALSE, IGNORED, Mistake, match
from cvtrain.metrics.detections import ImageDetections
from cvtrain.metrics.sheet import CELL, readable, sheet, shorten

TRUE, HIT, WRONG, EXCUSED = "#2ecc40", "#1f8fff", "#ff3b30", "#b0b0b0"
SIDE = 640  # pixels: the longer side of an image with its boxes
CURVES, BARS = 20, 80  # so many categories are drawn


def draw_detections(
    picture: np.ndarray,
    record: ImageDetections,
    classes: Sequence[str],
    *,
    least: float = 0.3,
    most: int = 20,
) -> np.ndarray:
    """Predictions over the truth on a picture uint8 `[H, W, 3]`, as one of SIDE pixels.

    Truth is green, with its name where it is missed, crowds and difficult objects grey; of the
    `most` best predictions of `least` or more, hits are blue and the others red.
    """
    canvas, scale = _enlarged(picture)
    hits = match(record)
    shown = [
        row for row in np.argsort(-record.scores, kind="stable") if record.scores[row] >= least
    ]
    seen = set(hits[shown].tolist())
    for place, box in enumerate(record.boxes):
        excused = bool(record.crowd[place] or record.difficult[place])
        text = "" if excused or place in seen else _name(classes, record.labels[place])
        _frame(canvas, box * scale, EXCUSED if excused else TRUE, text, 4, below=True)
    for row in shown[:most][::-1]:  # the best on top
        colour = {FALSE: WRONG, IGNORED: EXCUSED}.get(int(hits[row]), HIT)
        text = f"{_name(classes, record.found_labels[row])} {100 * record.scores[row]:.0f}"
        _frame(canvas, record.found_boxes[row] * scale, colour, text, 2)
    return np.array(canvas)


def draw_mistakes(
    found: Sequence[Mistake], image_of: Callable[[int], np.ndarray | None], classes: Sequence[str]
) -> np.ndarray:
    """A sheet of crops around them; false detections red, objects green, as `draw_detections`.

    `image_of` gives uint8 `[H, W, 3]` of an image's number, or None.
    """
    tiles: list[np.ndarray | None] = []
    for mistake in found:
        picture = image_of(mistake.number)
        tiles.append(None if picture is None else _crop(picture, mistake))
    return sheet(tiles, [_caption(mistake, classes) for mistake in found], columns=4)


def draw_curves(precision: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Precision over recall at IoU 0.5 and 0.75, of `[10, 101, K]` as COCO's measure gives it.

    Of many categories the best and the worst, by AP at 0.5; and the mean of all.
    """
    known = np.flatnonzero((precision > -1).any((0, 1)))
    order = known[np.argsort(-precision[0][:, known].mean(0), kind="stable")]
    shown, recall = _ends(order.tolist(), CURVES), np.linspace(0, 1, precision.shape[1])
    figure = _figure(11, 5)
    for axes, place, name in zip(figure.subplots(1, 2), (0, 5), ("0.5", "0.75"), strict=True):
        for number, label in enumerate(shown):
            curve = precision[place, :, label]
            text = f"{shorten(readable(str(classes[label])), 20)} {100 * curve.mean():.0f}"
            style: dict[str, Any] = {"color": _colour(number), "linewidth": 1}
            axes.plot(recall, curve, label=text, **style)
        if len(known):
            mean = precision[place][:, known].mean(1)
            text = f"mean of {len(known)}: {100 * mean.mean():.1f}"
            axes.plot(recall, mean, color="black", linewidth=2.5, label=text)
            legend = axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
            for entry in legend.get_texts():
                entry.set_parse_math(False)  # a $ is a $
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        axes.set_title(f"IoU {name} or more")
        axes.grid(alpha=0.3)
    return _drawn(figure)


def draw_categories(categories: dict[str, float]) -> np.ndarray:
    """Bars of AP by category, per cent, the best first; of many the best and the worst."""
    order = sorted(categories, key=lambda name: -categories[name])
    shown = _ends(order, BARS)
    values = [categories[name] for name in shown]
    figure = _figure(7, max(0.21 * len(shown), 0.6) + 0.9)
    axes = figure.subplots()
    places = range(len(shown))
    axes.barh(places, values, color="#4c78a8", height=0.75)
    names = [shorten(readable(name), 26) for name in shown]
    axes.set_yticks(places, names, fontsize=8)
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    for place, value in zip(places, values, strict=True):
        axes.text(value + 0.6, place, f"{value:.1f}", va="center", fontsize=7)
    if values:
        mean = sum(categories.values()) / len(categories)
        axes.axvline(mean, color="grey", linewidth=1, linestyle=":", zorder=0)
        axes.set_title(f"AP, mean of {len(categories)} categories {mean:.1f} %", fontsize=10)
    axes.set(xlim=(0, 107), ylim=(len(shown) - 0.4, -0.6), xlabel="AP, IoU 0.5 to 0.95, %")
    return _drawn(figure)


def mosaic(pictures: Sequence[np.ndarray], *, columns: int = 2) -> np.ndarray:
    """Pictures uint8 `[H, W, 3]` in rows, on white."""
    wide, gap = max((picture.shape[1] for picture in pictures), default=1), 8
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    heights = [max(picture.shape[0] for picture in row) + gap for row in rows]
    size = (sum(heights) + gap, min(columns, max(len(pictures), 1)) * (wide + gap) + gap, 3)
    canvas, top = np.full(size, 255, np.uint8), gap
    for row, height in zip(rows, heights, strict=True):
        for place, picture in enumerate(row):
            left = gap + place * (wide + gap)
            canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        top += height
    return canvas


def _ends(order: Sequence[Any], most: int) -> list[Any]:
    half = most // 2
    return list(order) if len(order) <= most else [*order[:half], *order[-half:]]


def _colour(number: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab20"](number % 20)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)  # never a window, whatever $DISPLAY says
    return figure


def _drawn(figure: Any) -> np.ndarray:
    with warnings.catch_warnings(action="ignore"):  # of letters that the font has not
        figure.savefig(file := io.BytesIO(), format="png", bbox_inches="tight", pad_inches=0.12)
    return np.array(Image.open(file).convert("RGB"))


def _name(classes: Sequence[str], label: Any) -> str:
    return shorten(readable(str(classes[int(label) - 1])), 24)


def _letters() -> ImageFont.FreeTypeFont:
    import matplotlib  # brings a font with more letters than Pillow's own

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(file), 13)


def _enlarged(picture: np.ndarray, side: int = SIDE) -> tuple[Image.Image, float]:
    """To `side` pixels at the longer one, and the factor."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC), scale


def _frame(
    canvas: Image.Image, box: np.ndarray, colour: str, text: str, width: int, *, below: bool = False
) -> None:
    """A box, and its text above it, or in its lower corner."""
    draw = ImageDraw.Draw(canvas)
    limits = [canvas.width - 1, canvas.height - 1] * 2
    left, top, right, bottom = np.clip(np.round(box), 0, limits).tolist()
    draw.rectangle((left, top, max(right, left), max(bottom, top)), outline=colour, width=width)
    if text:
        letters = _letters()
        wide, high = draw.textlength(text, letters) + 6, 17
        left = max(min(left, canvas.width - wide), 0)
        top = max(bottom - high, 0) if below else max(top - high, 0)
        draw.rectangle((left, top, left + wide, top + high), fill=colour)
        draw.text((left + 3, top + 1), text, "white", letters)


def _crop(picture: np.ndarray, mistake: Mistake) -> np.ndarray:
    """The box and as much again around it, with frames."""
    boxes = np.array([box for box in (mistake.box, mistake.other_box) if box])
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    middle, reach = (low + high) / 2, max(float((high - low).max()), 16.0)
    height, width = picture.shape[:2]
    left, top = np.clip(np.floor(middle - reach), 0, [width - 1, height - 1]).astype(int)
    right, bottom = np.clip(np.ceil(middle + reach), 1, [width, height]).astype(int)
    cut = picture[top : max(bottom, top + 1), left : max(right, left + 1)]
    canvas, scale = _enlarged(cut, CELL)
    own, other = (TRUE, WRONG) if mistake.kind == "missed" else (WRONG, TRUE)
    corner = np.array([left, top, left, top])
    if mistake.other_box:
        _frame(canvas, (np.array(mistake.other_box) - corner) * scale, other, "", 2)
    _frame(canvas, (np.array(mistake.box) - corner) * scale, own, "", 2)
    return np.array(canvas)


def _caption(mistake: Mistake, classes: Sequence[str]) -> list[str]:
    name, other = _name(classes, mistake.label), ""
    if mistake.other:
        other = _name(classes, mistake.other)
    near = f"IoU {100 * mistake.iou:.0f} %"
    if mistake.kind == "missed":
        return [f"missed {name}", *([f"found {other}", near] if other else ["nothing found there"])]
    why = {
        "duplicate": "a second time",
        "class": f"is {other}",
        "place": "badly placed",
        "background": "nothing there",
    }
    return [f"{name} {100 * mistake.score:.0f}", why[mistake.kind], near if other else ""]
