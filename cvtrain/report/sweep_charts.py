"""Charts of many runs: their curves over each other, parallel coordinates, effects."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from bokeh.models import ColumnDataSource, FixedTicker

from cvtrain.metrics.sheet import readable, shorten
from cvtrain.report.charts import (
    COLOURS,
    COVER,
    HEIGHT,
    INK,
    TRAIN,
    VAL,
    hover,
    label,
    plot,
    scaled,
    shortened,
    thinned,
)

Item = TypeVar("Item")

POINTS = 160  # of each of many curves
DASHES = ("solid", "dashed", "dotted", "dotdash", "dashdot")  # once the colours are used up
SCALE = ("#2563eb", "#a855f7", "#f97316")  # from the best figure to the worst
SPREAD = 0.05  # of an axis: lines through one value lie beside each other
# A legend's two columns stay within their chart, which is the page's width or half of it.
NARROW = """
.bk-label { max-width: 28vw; overflow: hidden; text-overflow: ellipsis; }
@media (min-width: 60rem) { .bk-label { max-width: 13vw; } }
"""
MOST_WORDS = 16  # beside an axis
TICKS = 5  # of an axis with many numbers


@dataclass(frozen=True)
class Run:
    """A curve; runs of one `group` share its place in the legend, its colour and its dash."""

    name: str
    group: str
    number: int  # of the group
    x: Sequence[float]
    y: Sequence[float]


def draw_overlay(title: str, runs: Sequence[Run], *, log: bool) -> Any:
    """Lines over epochs; a click on a group in the legend hides its lines."""
    values = [value for run in runs for value in run.y if math.isfinite(value)]
    drawn = scaled(title, "epoch", values, log=log)
    lines = []
    for run in runs:
        kept = thinned(run.y, most=POINTS)
        columns = {
            name: [shortened(column[place]) for place in kept]
            for name, column in (("x", run.x), ("y", run.y))
        }
        turn, colour = divmod(run.number, len(COLOURS))
        style: Any = {
            "line_color": COLOURS[colour],
            "line_dash": DASHES[turn % len(DASHES)],
            "line_width": 1.75,
            "line_alpha": 0.85,
            "legend_label": shorten(readable(run.group), 32),
            "name": readable(run.name),
            "source": ColumnDataSource(columns),
        }
        lines.append(drawn.line("x", "y", **style))
        if len(kept) == 1:
            drawn.scatter("x", "y", size=6, color=COLOURS[colour], source=style["source"])
    hover(drawn, lines, [("", "$name"), ("epoch", "@x{0.[00]}"), (title, "@y{0.[0000]}")], "mouse")
    legend = drawn.legend[0]
    legend.click_policy, legend.ncols, legend.location = "hide", 2, "top_left"
    legend.border_line_color, legend.background_fill_alpha = None, 0
    legend.padding, legend.spacing, legend.margin = 0, 8, 4
    legend.glyph_height, legend.label_height = 14, 14
    legend.stylesheets = [NARROW]
    legend.label_text_font_size = "12px"
    drawn.add_layout(legend, "below")
    drawn.height = HEIGHT + 24 * math.ceil(len(legend.items) / 2)
    return drawn


@dataclass(frozen=True)
class Axis:
    """A vertical axis: where each line crosses it, from 0 to 1, and what is written beside it."""

    name: str
    places: Sequence[float]
    texts: Sequence[str]  # what each line has there, to hover over
    ticks: dict[float, str] = field(default_factory=dict)


def numeric_axis(
    name: str, values: Sequence[float], texts: Sequence[str], *, down: bool = False
) -> Axis:
    """By size, by magnitude where they span more than a factor of ten; `down`: the least on top."""
    log = min(values) > 0 and max(values) > 10 * min(values)
    scale = [math.log10(value) if log else value for value in values]
    low, high = min(scale), max(scale)

    def place(value: float) -> float:
        up = (value - low) / (high - low) if high > low else 0.5
        return 1 - up if down else up

    named = dict(zip(map(place, scale), texts, strict=True))
    if len(named) > TICKS:
        named = {}
        for part in np.linspace(low, high, TICKS):
            named[place(float(part))] = f"{10**part if log else part:.3g}"
    return Axis(name, [place(value) for value in scale], texts, named)


def word_axis(name: str, texts: Sequence[str], order: Sequence[str]) -> Axis:
    """One place for each word, evenly, in `order` from the bottom."""
    step = max(len(order) - 1, 1)
    places = {word: number / step if len(order) > 1 else 0.5 for number, word in enumerate(order)}
    ticks = {places[word]: label(word) for word in every_few(order)}
    return Axis(name, [places[text] for text in texts], texts, ticks)


def every_few(items: Sequence[Item]) -> Sequence[Item]:
    """As many of them, evenly, as there is room for."""
    return items[:: math.ceil(len(items) / MOST_WORDS)]


def draw_parallel(axes: Sequence[Axis], names: Sequence[str]) -> Any:
    """A line for each run, from axis to axis; the last is the figure, which gives the colour.

    The figure's axis has the best on top.
    """
    order = np.argsort(np.argsort([-place for place in axes[-1].places], kind="stable"))
    fan = SPREAD * (0.5 - order / max(len(order) - 1, 1))  # the better, the higher
    ys = [[*(axis.places[run] + fan[run] for axis in axes[:-1])] for run in range(len(names))]
    columns: dict[str, Any] = {
        "xs": [list(range(len(axes)))] * len(names),
        "ys": [
            [round(float(y), 4) for y in (*crossed, axes[-1].places[run])]
            for run, crossed in enumerate(ys)
        ],
        "colour": [blend(1 - place) for place in axes[-1].places],
        "run": [readable(name) for name in names],
        **{f"axis{number}": list(axis.texts) for number, axis in enumerate(axes)},
    }
    ends: Any = {"x_range": (-0.12, len(axes) - 0.62), "y_range": (-0.08, 1.08)}
    drawn = plot("", "", height=HEIGHT + 90, **ends)
    style = {"line_color": "colour", "line_width": 2, "line_alpha": 0.7}
    lines = drawn.multi_line("xs", "ys", source=ColumnDataSource(columns), **style)
    lines.hover_glyph = lines.glyph.clone(line_width=4, line_alpha=1)
    shown = [(axis.name, f"@axis{number}") for number, axis in enumerate(axes)]
    hover(drawn, [lines], [("run", "@run"), *shown], "mouse")
    for number, axis in enumerate(axes):
        write_axis(drawn, number, axis)
    drawn.yaxis.visible = drawn.grid.visible = False
    drawn.xaxis.ticker = FixedTicker(ticks=list(range(len(axes))))
    short = short_names([axis.name for axis in axes])
    drawn.xaxis.major_label_overrides = {n: label(name) for n, name in enumerate(short)}
    drawn.xaxis.major_label_text_font_size = "13px"
    drawn.xaxis.major_tick_line_color = drawn.xaxis.axis_line_color = None
    if len(axes) > 5:
        drawn.xaxis.major_label_orientation = 0.5
    return drawn


def write_axis(drawn: Any, number: int, axis: Axis) -> None:
    """The line and its ticks to the right of it, over what keeps them readable."""
    drawn.line([number, number], [-0.04, 1.04], line_color="#8b8f97", line_width=1.5)
    places = {
        "x": [number] * len(axis.ticks),
        "y": list(axis.ticks),
        "text": [readable(text) for text in axis.ticks.values()],
    }
    style: Any = {"x_offset": 5, "text_baseline": "middle", "text_font_size": "12px"}
    style |= {"padding": 2, "border_radius": 3, "background_fill_alpha": 0.8}
    written = drawn.text("x", "y", "text", source=ColumnDataSource(places), **style)
    written.glyph.tags = [INK, COVER]


def short_names(names: Sequence[str]) -> list[str]:
    """`lr` of `optimizer.lr`, unless two would be called the same."""
    last = [name.rpartition(".")[2] for name in names]
    return [one if last.count(one) == 1 else name for one, name in zip(last, names, strict=True)]


def blend(place: float) -> str:
    """A colour of SCALE, from 0 to 1."""
    stops = [[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in SCALE]
    mixed = (
        round(float(np.interp(place, [0, 0.5, 1], [stop[part] for stop in stops])))
        for part in range(3)
    )
    return "#" + "".join(f"{value:02x}" for value in mixed)


def draw_effect(
    title: str, y: str, by_value: dict[str, Sequence[tuple[str, float]]], *, log: bool
) -> Any:
    """Each run by its value of a parameter, `(name, figure)`, and the means."""
    every = [figure for found in by_value.values() for _, figure in found]
    means = [sum(f for _, f in found) / len(found) for found in by_value.values()]
    drawn = scaled(title, "", every, log=log, y=y)
    points: dict[str, list[Any]] = {"x": [], "y": [], "run": []}
    for place, found in enumerate(by_value.values()):
        for number, (name, figure) in enumerate(found):
            beside = (number + 0.5) / len(found) - 0.5
            points["x"].append(round(place + 0.3 * beside, 3))
            points["y"].append(shortened(figure))
            points["run"].append(readable(name))
    places = list(range(len(by_value)))
    counts = [len(found) for found in by_value.values()]
    values = [readable(value) for value in by_value]
    mean = {"x": places, "y": list(map(shortened, means)), "value": values, "runs": counts}
    source = ColumnDataSource(mean)
    drawn.line("x", "y", source=source, color=VAL, line_width=2)
    middle = drawn.scatter("x", "y", source=source, color=VAL, size=11, marker="diamond")
    style: Any = {"color": TRAIN, "size": 7, "alpha": 0.65}
    dots = drawn.scatter("x", "y", source=ColumnDataSource(points), **style)
    hover(drawn, [dots], [("", "@run"), (y, "@y{0.[0000]}")], "mouse")
    of_mean = [("", "@value"), ("mean", "@y{0.[0000]}"), ("runs", "@runs")]
    hover(drawn, [middle], of_mean, "mouse")
    drawn.x_range.start, drawn.x_range.end = -0.5, len(places) - 0.5
    drawn.xgrid.visible = False
    named = every_few(list(by_value))
    drawn.xaxis.ticker = FixedTicker(ticks=every_few(places))
    drawn.xaxis.major_label_overrides = dict(enumerate(map(label, by_value)))
    if sum(len(label(value)) for value in named) > 36:
        drawn.xaxis.major_label_orientation = 0.5
    return drawn
