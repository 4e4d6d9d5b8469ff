"""Whether an exported file says what its network says."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cvtrain.exports.subject import Subject

LOGITS = 1e-4  # the most that logits may differ, or as a share of the largest, if that is above 1
PIXELS = 0.1  # the same of a detector's boxes
SCORES = 1e-3  # and of its scores
MASKS = 1e-3  # and of its masks, their mean over pixels
Run = Callable[..., tuple[Tensor, ...]]


class Difference(NamedTuple):
    """On one input: the largest of each kind, and what is wrong, if anything is."""

    shape: str  # of the input
    found: str
    wrong: str = ""
    pairs: int = 0  # of detections that agree

    def __str__(self) -> str:
        return f"{self.shape}: {self.wrong or self.found}"


@torch.no_grad()
def check(run: Run, subject: Subject, batches: Sequence[tuple[Tensor, ...]]) -> list[Difference]:
    """Of each input, in its order."""
    compare = _detections if subject.detects else _numbers
    differences = []
    for inputs in batches:
        shape = "x".join(map(str, inputs[0].shape))
        wanted = subject.module(*inputs)
        try:
            given = run(*inputs)
        except Exception as error:  # of any runtime
            reason = " ".join(str(error).split())[:200]
            differences.append(Difference(shape, "", f"it does not run ({reason})"))
            continue
        differences.append(
            Difference(shape, *compare(dict(zip(subject.outputs, wanted, strict=True)), given))
        )
    return differences


def _numbers(wanted: dict[str, Tensor], given: Sequence[Tensor]) -> tuple[str, str, int]:
    told, wrong = [], []
    for (name, ours), theirs in zip(wanted.items(), given, strict=True):
        if ours.shape != theirs.shape:
            wrong.append(f"{name} {list(theirs.shape)} in place of {list(ours.shape)}")
            continue
        apart, largest = float((ours - theirs).abs().max()), float(ours.abs().max())
        text = f"{name} differ by {apart:.1e} at most (the largest is {largest:.3g})"
        told.append(text)
        if not apart <= LOGITS * max(1, largest):  # NaN, too
            wrong.append(text)
    return ", ".join(told), ", ".join(wrong), 0


def _detections(wanted: dict[str, Tensor], given: Sequence[Tensor]) -> tuple[str, str, int]:
    """Each of the network's with the nearest of its label; order says nothing where scores are
    equal. One of the least sure may be missing: there a score is cut off.
    """
    found = dict(zip(wanted, given, strict=True))
    pairs, alone = _paired(wanted, found)
    mine, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    apart = {name: _largest(wanted[name][mine] - found[name][theirs]) for name in wanted}
    count = len(wanted["scores"])
    text = f"{len(pairs)} of {count} detections, boxes differ by {apart['boxes']:.1e} pixels"
    text += f" at most, scores by {apart['scores']:.1e}"
    if "masks" in wanted:
        means = (wanted["masks"][mine] - found["masks"][theirs]).flatten(1).abs().mean(1)
        text += f", masks by {(masks := _largest(means)):.1e} in the mean"
        if not masks <= MASKS:
            return text, text, 0
    lowest = min([*wanted["scores"].tolist(), *found["scores"].tolist()], default=0.0)
    missing = [score for score in alone if score > lowest + SCORES]
    if missing or len(alone) > max(1, count // 10):
        alone_text = f"{len(alone)} without a counterpart, scores up to {max(alone):.3g}"
        return text, f"{text}; {alone_text}", 0
    bad = not (apart["boxes"] <= PIXELS and apart["scores"] <= SCORES)
    return text, text if bad else "", len(pairs)


def _paired(
    wanted: dict[str, Tensor], found: dict[str, Tensor]
) -> tuple[list[tuple[int, int]], list[float]]:
    """Numbers of detections that belong together, and the scores of those that are left."""
    free, pairs, alone = set(range(len(found["scores"]))), list[tuple[int, int]](), list[float]()
    for number, (box, label, score) in enumerate(
        zip(wanted["boxes"], wanted["labels"], wanted["scores"], strict=True)
    ):
        near = ((found["boxes"] - box).abs().amax(1) <= PIXELS) & (found["labels"] == label)
        # Of several in one place, as boxes of no size at an edge are, that which is as sure.
        apart = (found["scores"] - score).abs().masked_fill(~near, torch.inf).tolist()
        best = min(free, key=apart.__getitem__, default=None)
        if best is not None and apart[best] < torch.inf:
            pairs.append((number, best))
            free.remove(best)
        else:
            alone.append(float(score))
    return pairs, [*alone, *(float(found["scores"][number]) for number in free)]


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
