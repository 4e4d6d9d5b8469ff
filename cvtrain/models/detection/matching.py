"""What each anchor or proposal is to learn, and which of them learn in a step.

Labels are POSITIVE, NEGATIVE or IGNORED. Draws are made on the CPU, whatever the device. An image's
come from a generator of its own, seeded by its target's `draw`, so that they are the same in
whatever batch, micro-batch or process it is; without one, from torch's global generator.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from cvtrain.seeding import seed_for

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1
AT_ONCE = 512  # objects held against all anchors: their IoUs are the largest thing in memory


class Overlaps(NamedTuple):
    """Of each reference box, `[R]`."""

    iou: Tensor  # float32: the largest with any object; 0 where there are no objects
    object: Tensor  # int64: which that is
    best: Tensor  # bool: no other reference overlaps some object more


class Matches(NamedTuple):
    labels: Tensor  # int64 [R]
    object: Tensor  # int64 [R]: the object that each overlaps most


def overlaps(objects: Tensor, references: Tensor) -> Overlaps:
    """Of `references` [R, 4] with `objects` [n, 4]."""
    most = references.new_zeros(len(references))
    nearest = torch.zeros_like(most, dtype=torch.int64)
    best = torch.zeros_like(most, dtype=torch.bool)
    for start in range(0, len(objects) if len(references) else 0, AT_ONCE):
        iou = box_iou(objects[start : start + AT_ONCE], references)
        largest = iou.amax(1, keepdim=True)
        best |= ((iou == largest) & (largest > 0)).any(0)
        here, which = iou.max(0)
        nearest = torch.where(here > most, which + start, nearest)
        most = torch.maximum(most, here)
    return Overlaps(most, nearest, best)


def match_anchors(
    objects: Tensor, anchors: Tensor, *, above: float = 0.7, below: float = 0.3
) -> Matches:
    """Positive: IoU > `above`, or the largest IoU that some object has; negative: < `below`."""
    found = overlaps(objects, anchors)
    labels = torch.full_like(found.object, IGNORED)
    labels[found.iou < below] = NEGATIVE
    labels[(found.iou > above) | found.best] = POSITIVE
    return Matches(labels, found.object)


def match_proposals(
    objects: Tensor, proposals: Tensor, *, foreground: float = 0.5, background: float = 0.0
) -> Matches:
    """Positive: IoU >= `foreground`; negative: IoU from `background` to below `foreground`."""
    found = overlaps(objects, proposals)
    labels = torch.full_like(found.object, IGNORED)
    labels[found.iou >= background] = NEGATIVE
    labels[found.iou >= foreground] = POSITIVE
    return Matches(labels, found.object)


def generator_of(target: dict[str, Tensor], purpose: str) -> torch.Generator | None:
    """For an image's draws of one purpose; None (the global one) where its data gave no `draw`."""
    if "draw" not in target:
        return None
    return torch.Generator().manual_seed(seed_for(int(target["draw"]), purpose))


def sample(
    labels: Tensor, number: int, share: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """int64 positions of positives and negatives: `number` in all, positives `share` at most.

    Negatives take the places of positives that are lacking; of both there may be too few.
    """
    positives = draw(labels == POSITIVE, int(number * share), generator)
    return positives, draw(labels == NEGATIVE, number - len(positives), generator)


def draw(mask: Tensor, number: int, generator: torch.Generator | None = None) -> Tensor:
    """At most `number` positions of what is true in `mask` [n], at random."""
    found = mask.nonzero().squeeze(1)
    return found[torch.randperm(len(found), generator=generator)[:number].to(mask.device)]
