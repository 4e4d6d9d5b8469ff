"""Soft-NMS: overlapping detections lose score in place of being removed.

Bodla, Singh, Chellappa, Davis: Soft-NMS, improving object detection with one line of code (ICCV
2017). Sec. 3: the best detection is taken, the scores of those that overlap it decay, and so on;
the defaults are those of the authors' code.

Differs: the last pixel of a box is no part of it (the authors' code adds 1 to every side).
"""

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, nms

METHODS = ("hard", "linear", "gaussian")


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    method: str = "linear",
    iou: float = 0.3,
    sigma: float = 0.5,
    least: float = 0.001,
) -> tuple[Tensor, Tensor]:
    """Places int64 `[k]` of what is kept of boxes `[n, 4]`, by falling score, and scores `[k]`.

    A detection decays with those of its own label only, by 1 - IoU where that is above `iou`
    (linear), or by exp(-IoU² / sigma) (gaussian); what falls below `least` is dropped. In float32.
    """
    if method not in METHODS[1:]:
        raise ValueError(f"method is linear or gaussian, not {method}")
    if not len(labels):
        return labels.new_zeros(0, dtype=torch.int64), scores.float()
    # One row for each label, filled up: a step takes the best of every row.
    order, rows, columns = _by_label(labels)
    shape = int(rows[-1]) + 1, int(columns.max()) + 1
    padded = boxes.new_zeros(*shape, 4, dtype=torch.float32)
    padded[rows, columns] = boxes[order].float()
    value = scores.new_zeros(shape, dtype=torch.float32)
    value[rows, columns] = scores[order].float()
    waiting = torch.zeros_like(value, dtype=torch.bool)
    waiting[rows, columns] = True
    value = _decayed(padded, value, waiting, method, iou, sigma, least)
    rescored = torch.empty_like(scores, dtype=torch.float32)
    rescored[order] = value[rows, columns]
    ranked, places = torch.sort(rescored, descending=True, stable=True)
    kept = ranked >= least
    return places[kept], ranked[kept]


def suppress(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    method: str = "hard",
    iou: float = 0.5,
    sigma: float = 0.5,
    least: float = 0.001,
) -> tuple[Tensor, Tensor]:
    """`soft_nms`, or by method hard the plain one, which drops what overlaps by more than `iou`."""
    if method != "hard":
        return soft_nms(boxes, scores, labels, method=method, iou=iou, sigma=sigma, least=least)
    by_label = apart if torch.compiler.is_exporting() else batched_nms
    places = by_label(boxes.float(), scores.float(), labels, iou)
    kept = places[scores[places] >= least]
    return kept, scores[kept].float()


def apart(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """As batched_nms, which asks how many boxes there are: torch.export does not know."""
    width = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1
    return nms(boxes + labels.to(boxes)[:, None] * width, scores, iou)


def _decayed(
    boxes: Tensor,
    value: Tensor,
    waiting: Tensor,
    method: str,
    iou: float,
    sigma: float,
    least: float,
) -> Tensor:
    """The final scores `[K, M]` of K labels' boxes `[K, M, 4]`, those that were `waiting`."""
    for _ in range(value.shape[1]):
        top, best = value.masked_fill(~waiting, -1).max(1, keepdim=True)
        if not (top >= least).any():
            break
        waiting.scatter_(1, best, False)
        taken = boxes.gather(1, best[..., None].expand(-1, -1, 4))
        overlap = box_iou(taken, boxes).squeeze(1).nan_to_num(0.0)  # of two of no size: 0 of 0
        if method == "linear":
            decay = torch.where(overlap > iou, 1 - overlap, 1.0)
        else:
            decay = torch.exp(-(overlap**2) / sigma)
        value = torch.where(waiting, value * decay, value)
    return value


def _by_label(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Places `[n]` by label, and of each its row (one for each label) and its column there."""
    order = torch.sort(labels, stable=True).indices
    _, rows, counts = torch.unique_consecutive(
        labels[order], return_inverse=True, return_counts=True
    )
    before = (counts.cumsum(0) - counts)[rows]
    return order, rows, torch.arange(len(order), device=labels.device) - before
