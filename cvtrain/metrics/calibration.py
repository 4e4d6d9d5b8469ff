"""Calibration: is a network right as often as it is sure?

The expected calibration error of Guo, Pleiss, Sun, Weinberger: On calibration of modern neural
networks (ICML 2017), sec. 2: fifteen equal bins of the probability that a prediction is given.
"""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

BINS = 15


def empty_bins() -> Tensor:
    """float64 `[3, BINS]`: samples, their probabilities summed, and how many of them are right."""
    return torch.zeros((3, BINS), dtype=torch.float64)


def binned(probability: Tensor, right: Tensor) -> Tensor:
    """What N samples add to the bins. Sums are exact in any order, up to half a million samples.

    `probability` `[N]` is that of the prediction, `right` bool `[N]`. Bin m of M holds what is
    above (m-1)/M and up to m/M; what is not finite is as sure as nothing.
    """
    sure = probability.double().nan_to_num(0.0, 0.0, 0.0)
    place = ((sure * BINS).ceil() - 1).clamp(0, BINS - 1)
    # By a product: adding into places is not repeatable on a GPU.
    member = (place[:, None] == torch.arange(BINS, device=place.device)).double()
    return torch.stack([torch.ones_like(sure), sure, right.double()]) @ member


def calibration_error(bins: np.ndarray) -> float:
    """Per cent, of `[3, BINS]`: what probability and accuracy differ by, weighed by samples."""
    samples, sure, right = bins
    return float(100 * np.abs(sure - right).sum() / max(samples.sum(), 1))


def listed(bins: np.ndarray) -> list[dict[str, Any]]:
    """Of each bin its bounds, samples and, in per cent, mean probability and accuracy."""
    rows = []
    for place, (samples, sure, right) in enumerate(bins.T.tolist()):
        bounds = {"above": round(place / BINS, 4), "to": round((place + 1) / BINS, 4)}
        means = (round(100 * total / samples, 4) if samples else None for total in (sure, right))
        confidence, accuracy = means
        rows.append(
            {**bounds, "samples": int(samples), "confidence": confidence, "accuracy": accuracy}
        )
    return rows


def draw_reliability(bins: np.ndarray) -> np.ndarray:
    """The reliability diagram, uint8 `[H, W, 3]`: accuracy by probability, samples below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)  # never a window, whatever $DISPLAY says
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    samples, sure, right = bins
    filled = samples > 0
    accuracy = 100 * right / np.maximum(samples, 1)
    mean = 100 * sure / np.maximum(samples, 1)
    width = 100 / BINS
    middles = (np.arange(BINS) + 0.5) * width
    style = {"width": 0.94 * width, "edgecolor": "none"}
    above.bar(middles[filled], accuracy[filled], color="C0", label="right", **style)
    above.plot(mean[filled], accuracy[filled], ".", color="black", markersize=4)
    above.plot([0, 100], [0, 100], "--", color="gray", linewidth=1, label="calibrated")
    above.set(ylabel="% right", xlim=(0, 100), ylim=(0, 100))
    above.set_title(f"calibration error {calibration_error(bins):.2f} %")
    above.legend(loc="upper left")
    below.bar(middles, samples, color="C0", **style)
    below.set(xlabel="probability of the prediction, %", ylabel="samples", yscale="symlog")
    below.set_ylim(bottom=0)
    figure.savefig(file := io.BytesIO(), format="png")
    return np.array(Image.open(file).convert("RGB"))
