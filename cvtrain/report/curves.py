"""How the run went: figures over epochs, and where the time went."""

from collections.abc import Sequence
from typing import Any

from cvtrain.report import words
from cvtrain.report.charts import COLOURS, TRAIN, VAL, Curve, draw_curves, draw_shares
from cvtrain.report.page import Chart, Part, Text
from cvtrain.report.record import Record

SPEED = {"lr": "learning rate", "images_per_sec": "images/s", "grad_norm": "gradient norm"}
MOST_PARTS = 12  # of a figure, in a chart
TIMES = {"data": "waiting for data", "compute": "compute", "eval": "evaluation", "save": "saving"}


def curves(record: Record) -> Sequence[Part]:
    """Loss, primary figure, the parts of both, other figures, rate and speed."""
    if not record.lines:
        return [Text("Nothing was logged yet.", "note")]
    names = {key.partition("/")[2] for line in record.lines for key in line if "/" in key}
    order = list(dict.fromkeys(k.partition("/")[2] for line in record.lines for k in line))
    primary = record.primary or next((n for n in order if words.unit(n)), "loss")
    first = [name for name in dict.fromkeys(("loss", primary)) if name in names]
    rest = [name for name in order if name in names and name not in (*first, *SPEED)]
    figures = [name for name in rest if words.unit(name)]
    parts = [name for name in rest if not words.unit(name)]
    charts = [chart(name, record.lines, log=words.lower_is_better(name)) for name in first]
    if parts:
        charts.append(several("parts of the loss", parts, record.lines))
    if len(figures) == 1:
        charts.append(chart(figures[0], record.lines))
    elif figures:
        charts.append(several("other figures, %", figures, record.lines))
    charts += [
        chart(name, record.lines, title=title) for name, title in SPEED.items() if name in names
    ]
    return charts


def curve(
    name: str, key: str, lines: list[dict[str, Any]], *, colour: str, dashed: bool = False
) -> list[Curve]:
    """The figure `key`, where it was logged; validation has dots."""
    rows = [(line["epoch"], line[key], line["step"]) for line in lines if key in line]
    if not rows:
        return []
    x, y, steps = (list(column) for column in zip(*rows, strict=True))
    dots = key.startswith("val/")
    return [Curve(name, x, y, colour, dots, "dashed" if dashed else "solid", steps)]


def chart(name: str, lines: list[dict[str, Any]], *, title: str = "", log: bool = False) -> Chart:
    """One figure in training and validation."""
    drawn = [
        *curve("train", f"train/{name}", lines, colour=TRAIN),
        *curve("val", f"val/{name}", lines, colour=VAL),
    ]
    unit = ", %" if words.unit(name) else ""
    return Chart(draw_curves((title or name) + unit, drawn, log=log))


def several(title: str, names: list[str], lines: list[dict[str, Any]]) -> Chart:
    """Several figures in one chart; those of validation are dashed where training has them too."""
    drawn: list[Curve] = []
    for number, name in enumerate(names[:MOST_PARTS]):
        colour = COLOURS[number % len(COLOURS)]
        train = curve(name, f"train/{name}", lines, colour=colour)
        label = f"val/{name}" if train else name
        drawn += train
        drawn += curve(label, f"val/{name}", lines, colour=colour, dashed=bool(train))
    return Chart(draw_curves(title, drawn))


def time_split(record: Record) -> Sequence[Part]:
    """Waiting for data, compute, evaluation, saving and what is none of them."""
    times = record.summary.get("time")
    if not times:
        return []
    total = max(float(record.summary.get("seconds", 0)), sum(times.values()), 1e-9)
    shares = {word: float(times[name]) for name, word in TIMES.items() if name in times}
    if (other := total - sum(shares.values())) > 0.005 * total:
        shares["other"] = other
    rows = (f"{name} {100 * seconds / total:.1f} %" for name, seconds in shares.items())
    caption = f"Of {words.duration(total)}: {', '.join(rows)}."
    return [Chart(draw_shares("Where the time went", shares), caption)]
