"""Top-k error, counted in whole samples."""

import torch
from torch import Tensor


def topk_wrong(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """How many of logits `[N, classes]` miss `labels` [N] in their k highest; int64 scalar."""
    return topk_missed(logits, labels, k).sum()


def topk_missed(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Which of them do, bool `[N]`.

    A sample is right when fewer than k classes score higher than its label, or equal with a lower
    number: ties go the way `topk` and `argmax` on a stable sort take them. A non-finite score of
    the label is a miss.
    """
    own = logits.gather(1, labels[:, None])
    lower_number = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    ahead = (logits > own) | ((logits == own) & lower_number)
    return (ahead.sum(1) >= k) | ~own.squeeze(1).isfinite()
