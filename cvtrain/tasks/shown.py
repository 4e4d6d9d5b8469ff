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
    """Of each class its error in per cent, None without samples, and their number.

    `matrix` is int64 `[K, K]`: rows are labels, columns predictions.
    """
    samples, right = matrix.sum(1), matrix.diagonal()
    errors = 100 * (1 - right / np.maximum(samples, 1))
    rows = zip(names, errors.tolist(), samples.tolist(), strict=True)
    return {
        name: {"error": round(error, 4) if count else None, "samples": count}
        for name, error, count in rows
    }
