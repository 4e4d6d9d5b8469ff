"""Charts of a data set."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource
from numpy.typing import NDArray

from cvtrain.report.charts import TRAIN, Curve, draw_bars, draw_curves, hover, plot

BINS = 40
MOST_POINTS = 2000  # sizes that are drawn
RGB = {"red": "#ef4444", "green": "#10b981", "blue": "#3b82f6", "grey": "#8b8f97"}


def bars(title: str, values: dict[str, float]) -> Any:
    return draw_bars(title, values, x="images")


def ranked(title: str, counts: Sequence[int]) -> Any:
    """Of many classes, from the fullest to the emptiest."""
    ordered = np.sort(counts)[::-1]
    places = np.arange(len(ordered))
    return _columns(title, places + 0.5, places + 1.5, ordered, "class, by its size", "images")


def histogram(title: str, values: NDArray[Any], x: str, y: str = "") -> Any:
    """Whole numbers of a small range have a bar each."""
    low, high = float(values.min()), float(values.max())
    whole = np.issubdtype(values.dtype, np.integer) and high - low < BINS
    edges = (
        np.arange(low - 0.5, high + 1) if whole else np.linspace(low, max(high, low + 1), BINS + 1)
    )
    counts, edges = np.histogram(values, edges)
    return _columns(title, edges[:-1], edges[1:], counts, x, y)


def _columns(
    title: str,
    left: NDArray[Any],
    right: NDArray[Any],
    counts: NDArray[Any],
    x: str,
    y: str,
) -> Any:
    drawn = plot(title, x, y)
    drawn.y_range.start = 0
    middle = (left + right) / 2
    columns = {"left": left, "right": right, "count": counts, "middle": middle}
    source = ColumnDataSource({name: np.round(v, 4).tolist() for name, v in columns.items()})
    glyph = drawn.quad("left", "right", "count", 0, source=source, color=TRAIN, line_width=0)
    hover(drawn, [glyph], [("", "@left{0.[00]} to @right{0.[00]}: @count{0,0}")], "mouse")
    return drawn


def size_map(sizes: NDArray[np.int32]) -> Any:
    """Widths and heights, a dot for each size; larger for more images."""
    found, counts = np.unique(sizes, axis=0, return_counts=True)
    kept = np.argsort(-counts, kind="stable")[:MOST_POINTS]
    drawn = plot("width and height", "width, pixels", "height, pixels")
    radius = 4 + 12 * np.sqrt(counts[kept] / counts.max())
    source = ColumnDataSource(
        {
            "width": found[kept, 0].tolist(),
            "height": found[kept, 1].tolist(),
            "count": counts[kept].tolist(),
            "size": radius.round(1).tolist(),
        }
    )
    dots = drawn.scatter("width", "height", size="size", source=source, color=TRAIN, alpha=0.5)
    hover(drawn, [dots], [("", "@width x @height: @count{0,0}")], "mouse")
    return drawn


def values_of_pixels(shares: NDArray[np.float64], channels: Sequence[str]) -> Any:
    """How often each value 0..255 is there, `[C, 256]`, per cent."""
    values = list(range(256))
    curves = [
        Curve(name, values, (100 * own).tolist(), RGB[name])
        for name, own in zip(channels, shares, strict=True)
    ]
    return draw_curves("values of the pixels", curves, x="value", y="% of the pixels")
