"""The confusion matrix: counted without waiting for the device, and drawn."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cvtrain.metrics.sheet import readable, shorten

COUNTS, NAMES = 20, 60  # up to so many classes there are counts in the cells, names on the axes
LISTED = 24  # of the confusions that are most frequent, where there are no counts


def add_confusion(matrix: Tensor, labels: Tensor, predicted: Tensor) -> None:
    """Count int64 `[N]` and `[N]` into int64 `[K, K]`: rows are labels, columns predictions."""
    # bincount would ask a GPU for its largest value, each time.
    cells = labels * len(matrix) + predicted
    matrix.view(-1).scatter_add_(0, cells, torch.ones_like(cells))


def draw_confusion(matrix: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Counts `[K, K]` as a picture uint8 `[H, W, 3]`; colours are shares of a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    classes, names = len(matrix), [readable(name) for name in names]
    side = max((0.55 if classes <= COUNTS else 0.17) * min(classes, NAMES), 3.0)  # inches
    room = 0.6 + (0.09 * min(max(map(len, names)), 26) if classes <= NAMES else 0)
    beside = 1.2 if classes <= COUNTS else 5.5
    # Every cell has two pixels at least.
    figure = Figure(
        figsize=(side + room + beside, side + room + 0.6),
        dpi=max(100, 2.1 * classes / side),
        layout="constrained",
    )
    FigureCanvasAgg(figure)  # never a window, whatever $DISPLAY says
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    # One sample in a hundred is to be seen, the more so where cells are small.
    norm = PowerNorm(0.5 if classes <= NAMES else 0.35, vmin=0, vmax=100)
    image = axes.imshow(100 * shares, cmap="Blues", norm=norm, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, fraction=0.04, aspect=30, pad=0.02)
    bar.set_label("% of a class's samples")
    axes.set(xlabel="predicted", ylabel="label")
    if classes <= NAMES:
        _name_axes(axes, [shorten(name, 26) for name in names], size=9 if classes <= COUNTS else 8)
    if classes <= COUNTS:
        _write_counts(axes, matrix, shares)
    else:
        text = "\n".join(most_frequent(matrix, names))
        place: dict[str, Any] = {
            "xycoords": "axes fraction",
            "textcoords": "offset points",
            "va": "top",
        }
        bar.ax.annotate(text, (1, 1), (64, 0), fontsize=9, parse_math=False, **place)
    with warnings.catch_warnings(action="ignore"):  # of letters that the font has not
        figure.savefig(file := io.BytesIO(), format="png", bbox_inches="tight", pad_inches=0.12)
    return np.array(Image.open(file).convert("RGB"))


def most_frequent(matrix: np.ndarray, names: Sequence[str]) -> list[str]:
    """`label -> prediction` with its count, of the largest counts off the diagonal."""
    wrong = matrix - np.diag(matrix.diagonal())
    cells = np.argsort(-wrong, axis=None, kind="stable")[:LISTED]
    rows = [(cell // len(matrix), cell % len(matrix)) for cell in cells]
    return ["most frequent mistakes", ""] + [
        f"{wrong[row, column]}  {shorten(names[row], 26)} → {shorten(names[column], 26)}"
        for row, column in rows
        if wrong[row, column]
    ]


def _name_axes(axes: Any, labels: list[str], *, size: int) -> None:
    places = range(len(labels))
    axes.set_xticks(places, labels, rotation=90, fontsize=size)
    axes.set_yticks(places, labels, fontsize=size)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)  # a $ is a $


def _write_counts(axes: Any, matrix: np.ndarray, shares: np.ndarray) -> None:
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            colour = "white" if shares[row, column] > 0.4 else "black"
            text = f"{count}" if count < 10_000 else f"{count / 1000:.0f}k"
            place = {"ha": "center", "va": "center", "fontsize": 9, "color": colour}
            axes.text(column, row, text, **place)
