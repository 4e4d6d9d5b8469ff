"""Pieces of reports and pictures that several tasks share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvtrain.tasks.base import Picture


def as_rgb(image: Tensor) -> Picture:
    """uint8 `[C, H, W]` as `[H, W, 3]`; grey if it has less than three channels."""
    picture = image.cpu().permute(1, 2, 0).numpy()
    return picture[:, :, :3] if picture.shape[2] >= 3 else picture[:, :, :1].repeat(3, axis=2)


def as_seen(images: Tensor, source: Any) -> list[Picture]:
    """A batch as the network gets it, `[N, C, H, W]`, but for the normalisation by `source`."""
    mean, std = (torch.tensor(v, device=images.device) for v in (source.mean, source.std))
    pixels = images.float() * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
    return [as_rgb(image) for image in (255 * pixels).round().clamp(0, 255).byte()]


def per_class(matrix: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of each class its number of samples and, in per cent, `error`, `precision`, `recall`, `f1`.

    `matrix` is int64 `[K, K]`: rows are labels, columns predictions. None is a share of nothing:
    precision without a prediction, the others without a sample.
    """
    samples, predicted, right = matrix.sum(1), matrix.sum(0), matrix.diagonal()
    rows = zip(names, samples.tolist(), predicted.tolist(), right.tolist(), strict=True)
    return {
        name: {
            "error": _per_cent(count - hits, count),
            "samples": count,
            "precision": _per_cent(hits, guesses),
            "recall": _per_cent(hits, count),
            "f1": _per_cent(2 * hits, count + guesses if count else 0),
        }
        for name, count, guesses, hits in rows
    }


def _per_cent(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 4) if whole else None
