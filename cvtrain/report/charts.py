"""Bokeh figures in the page's look, each with its values to hover over.

Colours of text and lines are page.js's; those of the curves are readable on light and dark.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.models import (
    BasicTickFormatter,
    ColumnDataSource,
    FactorRange,
    FixedTicker,
    HoverTool,
    LogTicker,
    NumeralTickFormatter,
)
from bokeh.plotting import figure

from cvtrain.metrics.sheet import readable, shorten

TRAIN, VAL = "#3b82f6", "#f59e0b"
COLOURS = (
    *("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#a78bfa", "#ec4899", "#0891b2", "#b45309"),
    *("#84a30c", "#8b8f97"),
)
HEIGHT = 290  # pixels
MOST_POINTS = 1000  # of a curve
COUNTED, NAMED = 20, 25  # up to so many classes have counts in the cells, names at the axes
INK = "ink"  # the tag of what is drawn in the colour of text
COVER = "cover"  # of text that covers, in the colour of what the chart lies on, what is below it


@dataclass(frozen=True)
class Curve:
    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = ""
    dots: bool = False
    dash: str = "solid"
    about: Sequence[int] = ()  # the step of each point


def plot(title: str, x_label: str, y_label: str = "", **options: Any) -> Any:
    """An empty figure; a drag zooms, and `reset` undoes it."""
    options = {"height": HEIGHT, "sizing_mode": "stretch_width", **options}
    drawn: Any = figure(
        title=title, x_axis_label=x_label, y_axis_label=y_label, tools="box_zoom,reset", **options
    )
    drawn.background_fill_color = drawn.border_fill_color = drawn.outline_line_color = None
    drawn.toolbar.logo = None
    drawn.toolbar.autohide = True
    drawn.toolbar_location = "above"
    drawn.title.text_font_size = "14px"
    for axis in drawn.axis:
        axis.axis_label_text_font_style = "normal"
        axis.minor_tick_line_color = None
    drawn.min_border_left, drawn.min_border_right = 44, 12
    return drawn


def hover(
    drawn: Any,
    glyphs: list[Any],
    tooltips: list[tuple[str, str]],
    mode: str,
    side: str = "horizontal",
) -> None:
    """Show `tooltips` of what is below the mouse, or (`vline`) above and below it."""
    options: Any = {"tooltips": tooltips, "mode": mode, "attachment": side, "visible": False}
    drawn.add_tools(HoverTool(renderers=glyphs, **options))


def draw_curves(
    title: str, curves: Sequence[Curve], *, x: str = "epoch", y: str = "", log: bool = False
) -> Any:
    """Lines over `x`; a click on a name in the legend hides its line."""
    values = [value for curve in curves for value in curve.y if np.isfinite(value)]
    drawn = scaled(title, x, values, log=log, y=y)
    for number, curve in enumerate(curves):
        colour = curve.colour or COLOURS[number % len(COLOURS)]
        kept = thinned(curve.y)
        columns = {"x": curve.x, "y": curve.y, "about": curve.about or curve.x}
        source = ColumnDataSource(
            {name: [shortened(column[i]) for i in kept] for name, column in columns.items()}
        )
        named = {"legend_label": label(curve.name)} if len(curves) > 1 else {}
        style = {"line_color": colour, "line_width": 2, "line_dash": curve.dash, **named}
        line = drawn.line("x", "y", source=source, **style)
        if curve.dots or len(kept) == 1:
            drawn.scatter("x", "y", source=source, size=6, color=colour, **named)
        tooltips = [(x, "@x{0.[00]}"), (curve.name, "@y{0.[0000]}")]
        if curve.about:
            tooltips.insert(1, ("step", "@about{0,0}"))
        few, side = len(curves) <= 2, ("right", "left")[number % 2]
        hover(drawn, [line], tooltips, "vline" if few else "mouse", side if few else "horizontal")
    if len(curves) > 1:
        legend = drawn.legend[0]
        legend.click_policy = "hide"
        legend.border_line_color, legend.background_fill_alpha = None, 0.75
        legend.padding, legend.spacing, legend.margin = 5, 0, 5
        legend.label_text_font_size = "12px"
        if len(curves) > 4:
            drawn.add_layout(legend, "right")
    return drawn


def scaled(title: str, x: str, values: Sequence[float], *, log: bool, y: str = "") -> Any:
    """An empty figure for finite `values`, by magnitude if `log` and they span more than ten."""
    wide = bool(values) and min(values) > 0 and max(values) > 10 * min(values)
    drawn = plot(title, x, y, y_axis_type="log" if log and wide else "linear")
    if log and wide:
        drawn.yaxis.ticker = LogTicker(mantissas=[1, 2, 5])
        if max(values) < 100 * min(values):  # there a LogTicker counts evenly: 20, 40, 60
            first, last = (int(np.floor(np.log10(end(values)))) for end in (min, max))
            ticks = [m * 10.0**e for e in range(first, last + 1) for m in (1, 1.5, 2, 3, 5, 7)]
            drawn.yaxis.ticker = FixedTicker(ticks=ticks)
        drawn.yaxis.formatter = NumeralTickFormatter(format="0.[0000000]")
    else:
        drawn.yaxis.formatter = BasicTickFormatter(power_limit_low=-5)
    return drawn


def thinned(values: Sequence[float], *, most: int = MOST_POINTS) -> list[int]:
    """Positions of at most `most` of them: of each stretch the least and the greatest."""
    if len(values) <= most:
        return list(range(len(values)))
    kept = {0, len(values) - 1}
    for stretch in np.array_split(np.arange(len(values)), most // 2 - 1):
        part = np.asarray(values, dtype=float)[stretch[0] : stretch[-1] + 1]
        finite = np.isfinite(part)
        kept.add(int(stretch[np.where(finite, part, np.inf).argmin()]))
        kept.add(int(stretch[np.where(finite, part, -np.inf).argmax()]))
    return sorted(kept)


def shortened(value: float) -> float:
    """Six digits: what a screen shows, and half of the page."""
    return float(f"{value:.6g}")


def draw_bars(title: str, values: dict[str, float], *, x: str, unit: str = "") -> Any:
    """Horizontal bars, in the order given."""
    places = list(range(len(values)))
    ends: Any = {"y_range": (len(values) - 0.5, -0.5), "height": 90 + 22 * len(values)}
    drawn = plot(title, x, **ends)
    drawn.x_range.start = 0
    columns = {"place": places, "name": list(values), "value": [*map(shortened, values.values())]}
    style = {"height": 0.75, "color": TRAIN, "source": ColumnDataSource(columns)}
    bars = drawn.hbar("place", right="value", **style)
    drawn.ygrid.visible = False
    drawn.yaxis.ticker = FixedTicker(ticks=places)
    drawn.yaxis.major_label_overrides = dict(enumerate(map(label, values)))
    hover(drawn, [bars], [("", f"@name: @value{{0.[00]}}{unit}")], "mouse")
    return drawn


def label(name: str) -> str:
    """As there is room for it at an axis or in a legend."""
    return shorten(readable(name), 16)


def draw_shares(title: str, shares: dict[str, float]) -> Any:
    """One bar of several parts: seconds by name."""
    total = sum(shares.values()) or 1.0
    drawn = plot(title, "seconds", y_range=FactorRange(factors=["time"]), height=170)
    drawn.yaxis.visible = drawn.ygrid.visible = False
    left = 0.0
    for (name, seconds), colour in zip(shares.items(), COLOURS, strict=False):
        about = {"name": [name], "seconds": [seconds], "share": [100 * seconds / total]}
        source = ColumnDataSource(
            {**about, "left": [left], "right": [left + seconds], "y": ["time"]}
        )
        bar = drawn.hbar(
            "y",
            left="left",
            right="right",
            height=0.7,
            source=source,
            color=colour,
            legend_label=name,
        )
        hover(drawn, [bar], [("", "@name: @seconds{0,0.[0]} s, @share{0.[0]} %")], "mouse")
        left += seconds
    drawn.x_range.start, drawn.x_range.end = 0, left or 1
    legend = drawn.legend[0]
    legend.orientation, legend.border_line_color = "horizontal", None
    legend.padding, legend.margin, legend.label_text_font_size = 0, 0, "12px"
    drawn.add_layout(legend, "below")
    return drawn


def draw_confusion(matrix: np.ndarray, names: Sequence[str]) -> Any:
    """Counts `[K, K]`, rows labels; the colour is a cell's share of its row."""
    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    rows, columns = (place.ravel().tolist() for place in np.indices(matrix.shape))
    source = ColumnDataSource(
        {
            "x": columns,
            "y": rows,
            "label": [names[row] for row in rows],
            "predicted": [names[column] for column in columns],
            "count": matrix.ravel().tolist(),
            "share": [round(share, 2) for share in shares.ravel().tolist()],
            # One sample in a hundred is to be seen.
            "alpha": [round((share / 100) ** 0.5, 3) for share in shares.ravel().tolist()],
        }
    )
    ends = {"x_range": (-0.5, len(matrix) - 0.5), "y_range": (len(matrix) - 0.5, -0.5)}
    shape = {"aspect_ratio": 1, "sizing_mode": "scale_width", "height": None}
    drawn = plot("", "predicted", "label", min_border_bottom=44, **ends, **shape)
    line = {"line_color": "#808080", "line_alpha": 0.15}
    colour = {"fill_color": TRAIN, "fill_alpha": "alpha"}
    cells = drawn.rect("x", "y", 1, 1, source=source, **colour, **line)
    tooltips = [
        ("label", "@label"),
        ("predicted", "@predicted"),
        ("samples", "@count{0,0}, @share{0.[00]} % of the class"),
    ]
    hover(drawn, [cells], tooltips, "mouse")
    drawn.grid.visible = False
    for axis in drawn.axis:
        name_classes(axis, names)
    turned = max(map(len, names)) > 2
    drawn.xaxis.major_label_orientation = "vertical" if turned else "horizontal"
    if len(matrix) <= COUNTED:
        write_counts(drawn, matrix)
    return drawn


def name_classes(axis: Any, names: Sequence[str]) -> None:
    """At each place, where there is room for it."""
    axis.major_tick_line_color = None
    axis.ticker = FixedTicker(ticks=list(range(len(names))) if len(names) <= NAMED else [])
    axis.major_label_overrides = dict(enumerate(map(label, names)))
    axis.major_label_text_font_size = "12px" if len(names) <= 12 else "9px"


def write_counts(drawn: Any, matrix: np.ndarray) -> None:
    """Into the cells; white where their colour is strong."""
    strong = matrix > 0.4 * matrix.sum(1, keepdims=True)
    for where, style in (
        ((matrix > 0) & ~strong, {"tags": [INK]}),
        ((matrix > 0) & strong, {"text_color": "white"}),
    ):
        rows, columns = (place.tolist() for place in np.nonzero(where))
        texts = {"x": columns, "y": rows, "text": [str(count) for count in matrix[where]]}
        middle = {"text_align": "center", "text_baseline": "middle", "text_font_size": "11px"}
        written = drawn.text("x", "y", "text", source=ColumnDataSource(texts), **middle)
        written.glyph.update(**style)


def draw_reliability(bins: Sequence[dict[str, Any]]) -> Any:
    """Accuracy over confidence, per cent, bin by bin; the diagonal is perfect calibration."""
    ends = {"x_range": (0, 100), "y_range": (0, 105)}
    drawn = plot("reliability", "confidence, %", "accuracy, %", **ends)
    full = [bin for bin in bins if bin["samples"]]
    most = max((bin["samples"] for bin in full), default=1)
    source = ColumnDataSource(
        {
            "left": [100 * bin["above"] for bin in full],
            "right": [100 * bin["to"] for bin in full],
            "alpha": [round(0.25 + 0.7 * (bin["samples"] / most) ** 0.5, 3) for bin in full],
            **{name: [bin[name] for bin in full] for name in ("accuracy", "confidence", "samples")},
        }
    )
    sides = {"left": "left", "right": "right", "bottom": 0, "top": "accuracy"}
    colour = {"fill_color": TRAIN, "fill_alpha": "alpha", "line_color": TRAIN}
    bars = drawn.quad(**sides, **colour, source=source)
    drawn.line([0, 100], [0, 100], color=VAL, line_width=2, line_dash="dashed")
    tooltips = [
        ("confidence", "@confidence{0.[0]} %"),
        ("accuracy", "@accuracy{0.[0]} %"),
        ("samples", "@samples{0,0}"),
    ]
    hover(drawn, [bars], tooltips, "mouse")
    return drawn


def draw_precision(title: str, precision: dict[str, Sequence[float]]) -> Any:
    """Precision over recall by category, at evenly spaced recalls; their mean is the dashed one."""
    mean = np.mean(list(precision.values()), axis=0).tolist()
    recall = np.linspace(0, 1, len(mean)).tolist()
    shown = [Curve(name, recall, values) for name, values in precision.items()]
    shown = shown if len(shown) <= len(COLOURS) else []
    mean_of_all = Curve("mean", recall, mean, colour="#8b8f97", dash="dashed")
    return draw_curves(title, [*shown, mean_of_all], x="recall", y="precision")
