"""What came of the run: its state, its figures against the published, class by class."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cvtrain.report import words
from cvtrain.report.charts import draw_bars, draw_confusion, draw_precision, draw_reliability
from cvtrain.report.curves import time_split
from cvtrain.report.page import WIDEST, Chart, Part, Picture, Table, Text, Tiles
from cvtrain.report.record import Record

MAPPED = 50  # classes of a confusion matrix to hover over
LISTED = 12  # of the most frequent confusions
BARS = 80  # categories
CAPTIONS = {
    "worst.png": "The mistakes of the highest loss: file, label → prediction, probability. "
    "Mislabelled files stand here first.",
    "detections.png": "Detections over the truth: hits blue, false ones red, the truth green, "
    "with its name where it is missed.",
    "false_detections.png": "False detections of the highest score: red, the truth green.",
    "missed.png": "Objects that were missed.",
    "boxes.png": "The boxes of the least overlap: the true one green, the network's red.",
    "confusion.png": "Rows are the labels, columns the predictions; the colour is the share "
    "of the row.",
    "precision_recall.png": "Precision over recall.",
    "reliability.png": "Of the predictions of a confidence, the share that is right.",
    "categories.png": "Average precision by category.",
    "samples.png": "A training batch as the network sees it.",
}
STATES = {
    "done": ("", ""),
    "running": ("note", "The run is going on; this page shows what it has written so far."),
    "preempted": ("warning", "The run was stopped by a signal, and its state saved."),
    "killed": (
        "warning",
        "The run had not ended when it wrote last, and no process holds its directory now: "
        "it was killed, or copied while it ran.",
    ),
}


def result(record: Record) -> Sequence[Part]:
    """The state if it is not `done`, the figures in large, and the table against the paper's."""
    parts: list[Part] = [Text(*reversed(state(record)))] if state(record)[1] else []
    figures = record.figures()
    if not figures:
        parts.append(Text("No evaluation was finished yet: there are no figures.", "note"))
    if found := tiles(record, figures):
        parts.append(Tiles(found))
    if figures:
        parts.append(against_paper(record, figures))
    return [*parts, *time_split(record)]


def state(record: Record) -> tuple[str, str]:
    """A kind of text, and the text."""
    if record.state == "failed":
        what = f"{record.status.get('error', '')}: {record.status.get('message', '')}"
        return "bad", f"The run failed, exit code {record.status.get('exit_code')}. {what}"
    kind, text = STATES.get(record.state, ("note", f"The state of the run is {record.state}."))
    if record.state in ("preempted", "killed"):
        text += f"\nTo go on: its own command with resume=auto hydra.run.dir={record.path}"
    return kind, text


def tiles(record: Record, figures: dict[str, float]) -> list[tuple[str, str, str]]:
    """The primary figure, the best, how long it took, how fast it was, how large it is."""
    summary, primary, found = record.summary, record.primary, []
    published = summary.get("published") or {}
    if primary in figures:
        note = f"paper {published[primary]:g}{words.unit(primary)}" if primary in published else ""
        found.append((primary, words.figure(primary, figures[primary]), note or "last evaluation"))
    if (best := summary.get(f"best/{primary}")) is not None:
        at = f"at epoch {summary.get('best/epoch', 0):g}"
        found.append((f"best {primary}", words.figure(primary, best), at))
    last = record.lines[-1] if record.lines else {}
    epochs, steps = summary.get("epochs", last.get("epoch")), summary.get("steps", last.get("step"))
    if epochs is not None:
        found.append(("epochs", f"{epochs:g}", f"{steps:,} steps"))
    if "seconds" in summary:
        note = f"on {summary.get('device', '?')}"
        found.append(("time", words.duration(summary["seconds"]), note))
    if "train/images_per_sec" in summary:
        found.append(("training", words.number(summary["train/images_per_sec"]), "images/s"))
    if "parameters" in summary:
        found.append(("parameters", f"{summary['parameters']:,}", ""))
    for key, name in (("peak_memory_bytes", "memory"), ("peak_gpu_bytes", "GPU memory")):
        if key in summary:
            found.append((name, words.size(summary[key]), "at most"))
    return found


def against_paper(record: Record, figures: dict[str, float]) -> Table:
    """Every figure, with the published one and the difference where there is one."""
    published = record.summary.get("published") or {}
    source = published.get("source", "")
    if not any(name in published for name in figures):
        rows = [(name, words.figure(name, value)) for name, value in figures.items()]
        return Table(["figure", "this run"], rows, wide=False)
    rows_: list[tuple[str, str, str | None, str | None]] = []
    for name, value in figures.items():
        paper = published.get(name)
        shown, verdict = None, None
        if paper is not None:
            shown = f"{paper:g}{words.unit(name)}"
            better = (value < paper) == words.lower_is_better(name)
            verdict = "better" if better else "equal" if value == paper else "worse"
            verdict = f"{value - paper:+.2f}, {verdict}"
        rows_.append((name, words.figure(name, value), shown, verdict))
    caption = f"Published: {source}" if source else ""
    return Table(["figure", "this run", "published", "difference"], rows_, caption, wide=False)


def classes(record: Record) -> Sequence[Part]:
    """By class or category; the confusion matrix or precision over recall; calibration."""
    summary, parts = record.summary, list[Part]()
    if confusion := summary.get("confusion"):
        names = list(summary.get("per_class") or map(str, range(len(confusion))))
        parts += confused(np.array(confusion), names)
    elif (picture := record.picture("confusion.png")) is not None:
        parts.append(Picture(picture, CAPTIONS["confusion.png"]))
    if summary.get("per_class"):
        parts.append(by_class(summary["per_class"]))
    if summary.get("calibration"):
        parts.append(calibration(summary))
    if categories := summary.get("per_category"):
        parts += by_category(categories)
    if precision := summary.get("precision_recall"):
        parts += precision_recall(precision)
    elif (picture := record.picture("precision_recall.png")) is not None:
        parts.append(Picture(picture, CAPTIONS["precision_recall.png"], wide=True))
    return parts


def confused(matrix: np.ndarray, names: list[str]) -> list[Part]:
    """A map to hover over, where it can be seen, and the most frequent confusions."""
    wrong = matrix - np.diag(matrix.diagonal())
    cells = np.argsort(-wrong, axis=None, kind="stable")[:LISTED]
    rows = [
        (
            names[row],
            names[column],
            int(wrong[row, column]),
            100 * wrong[row, column] / matrix[row].sum(),
        )
        for row, column in (divmod(int(cell), len(matrix)) for cell in cells)
        if wrong[row, column]
    ]
    parts: list[Part] = []
    if len(matrix) <= MAPPED:
        parts.append(Chart(draw_confusion(matrix, names), CAPTIONS["confusion.png"]))
    if rows:
        head = ["label", "predicted", "samples", "% of the class"]
        parts.append(
            Table(head, rows, "The most frequent confusions", ("", "", "", ".1f"), wide=False)
        )
    return parts


def by_class(per_class: dict[str, dict[str, Any]]) -> Table:
    columns = list(dict.fromkeys(key for row in per_class.values() for key in row))
    rows = [(name, *(row.get(column) for column in columns)) for name, row in per_class.items()]
    shown = [column if column == "samples" else f"{column}, %" for column in columns]
    formats = ("", *("," if column == "samples" else ".2f" for column in columns))
    return Table(
        ["class", *shown], rows, "A click on a head sorts.", formats, wide=len(columns) > 6
    )


def calibration(summary: dict[str, Any]) -> Chart:
    caption = (
        "Of the predictions of a confidence, the share that is right; dashed: as it should be. "
        "The fainter a bar, the fewer the predictions."
    )
    if (error := summary.get("ece")) is not None:
        caption = f"Expected calibration error: {error:.2f} %. {caption}"
    return Chart(draw_reliability(summary["calibration"]), caption)


def precision_recall(precision: dict[str, dict[str, Any]]) -> list[Part]:
    """`{IoU: {category: precision at evenly spaced recalls}}`, None without true objects."""
    return [
        Chart(draw_precision(f"IoU {iou} or more", known))
        for iou, categories in precision.items()
        if (known := {name: values for name, values in categories.items() if values})
    ]


def by_category(categories: dict[str, float | None]) -> list[Part]:
    known = {name: value for name, value in categories.items() if value is not None}
    order = dict(sorted(known.items(), key=lambda item: -item[1]))
    table = Table(["category", "AP, %"], list(categories.items()), formats=("", ".2f"), wide=False)
    if not known or len(known) > BARS:
        return [table]
    return [Chart(draw_bars("average precision", order, x="AP, %", unit=" %")), table]


def pictures(record: Record) -> Sequence[Part]:
    """The mistakes first; what other parts of the page draw anew is left out."""
    drawn = {"curves.png", "confusion.png", "precision_recall.png"}
    drawn |= {"categories.png"} if record.summary.get("per_category") else set()
    drawn |= {"reliability.png"} if record.summary.get("calibration") else set()
    names = [name for name in record.pictures() if name not in drawn]
    order = list(CAPTIONS)
    names.sort(key=lambda name: order.index(name) if name in order else -1)
    read = [(name, record.picture(name)) for name in names]
    return [
        Picture(picture, CAPTIONS.get(name, name), wide=picture.shape[1] > WIDEST)
        for name, picture in read
        if picture is not None
    ]
