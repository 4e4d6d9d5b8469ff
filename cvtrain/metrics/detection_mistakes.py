"""Which detections are hits, and the worst of those that are not: what to look at first."""

from typing import NamedTuple

import numpy as np

from cvtrain.metrics.detections import Detections, ImageDetections, areas
from cvtrain.metrics.voc_map import overlap

FALSE, IGNORED = -1, -2  # in place of the object that was hit
NEAR = 0.1  # an IoU from which a detection is of an object, only badly placed


class Mistake(NamedTuple):
    """A false detection, or an object that was missed."""

    number: int  # of the image
    label: int
    box: tuple[float, ...]
    score: float  # of the detection; NaN for a missed object
    kind: str  # of a false one: duplicate, class, place, background; else missed
    other: int  # label of the object, or of the detection, that overlaps it most; 0: none
    other_box: tuple[float, ...]
    iou: float  # with that one


def match(record: ImageDetections, *, iou: float = 0.5) -> np.ndarray:
    """int64 `[n]`: of each detection the object that it hits, or FALSE, or IGNORED.

    By falling score, each takes the free object of its label with the highest IoU of `iou` or
    more. Only where there is none, a difficult object or a crowd excuses it.
    """
    hits = np.full(len(record.scores), FALSE)
    if not len(record.boxes):
        return hits
    overlaps = overlap(record.found_boxes, record.boxes)
    excused = record.crowd | record.difficult
    overlaps[:, record.crowd] = _inside(record.found_boxes, record.boxes[record.crowd])
    overlaps[record.found_labels[:, None] != record.labels] = 0
    free = ~excused
    for row in np.argsort(-record.scores, kind="stable"):
        best = int(np.where(free, overlaps[row], -1).argmax())
        if free[best] and overlaps[row, best] >= iou:
            hits[row], free[best] = best, False
        elif (overlaps[row, excused] >= iou).any():
            hits[row] = IGNORED
    return hits


def mistakes(
    detections: Detections, *, iou: float = 0.5, least: float = 0.3, most: int = 12
) -> tuple[list[Mistake], list[Mistake]]:
    """The false detections of the highest score, and the largest objects (by their share of the
    image) that no detection of `least` or more hits.
    """
    false: list[Mistake] = []
    missed: list[tuple[float, Mistake]] = []
    for number, record in sorted(detections.images.items()):
        hits = match(record, iou=iou)
        rows = np.flatnonzero(hits == FALSE)
        for row in rows[np.argsort(-record.scores[rows], kind="stable")][:most]:
            false.append(_false(number, record, int(row), iou))
        shares = areas(record.boxes) / max(record.size[0] * record.size[1], 1)
        seen = np.isin(np.arange(len(shares)), hits[record.scores >= least])
        for place in np.flatnonzero(~seen & ~record.crowd & ~record.difficult):
            missed.append((-float(shares[place]), _missed(number, record, int(place), least)))
        false = sorted(false, key=lambda mistake: -mistake.score)[:most]
        missed = sorted(missed, key=lambda pair: pair[0])[:most]
    return false, [mistake for _, mistake in missed]


def _false(number: int, record: ImageDetections, row: int, iou: float) -> Mistake:
    label = int(record.found_labels[row])
    overlaps = overlap(record.found_boxes[row][None], record.boxes)[0]
    own = np.where(record.labels == label, overlaps, 0)
    kind, of = "background", np.zeros_like(own)
    if own.max(initial=0) >= iou:  # and yet not a hit: a better detection has it
        kind, of = "duplicate", own
    elif overlaps.max(initial=0) >= iou:
        kind, of = "class", overlaps
    elif own.max(initial=0) >= NEAR:
        kind, of = "place", own
    near = _nearest(of, record.boxes, record.labels)
    score = float(record.scores[row])
    return Mistake(number, label, tuple(record.found_boxes[row].tolist()), score, kind, *near)


def _missed(number: int, record: ImageDetections, place: int, least: float) -> Mistake:
    sure = record.scores >= least
    boxes, labels = record.found_boxes[sure], record.found_labels[sure]
    near = _nearest(overlap(boxes, record.boxes[place][None])[:, 0], boxes, labels)
    box, label = tuple(record.boxes[place].tolist()), int(record.labels[place])
    return Mistake(number, label, box, float("nan"), "missed", *near)


def _nearest(
    overlaps: np.ndarray, boxes: np.ndarray, labels: np.ndarray
) -> tuple[int, tuple[float, ...], float]:
    """Label, box and IoU of the one that overlaps most, if by NEAR or more."""
    if overlaps.max(initial=0) < NEAR:
        return 0, (), 0.0
    best = int(overlaps.argmax())
    return int(labels[best]), tuple(boxes[best].tolist()), float(overlaps[best])


def _inside(boxes: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """Share `[n, m]` of each box that lies in a crowd."""
    found, crowd = boxes.astype(float)[:, None], crowds.astype(float)[None]
    low = np.maximum(found[..., :2], crowd[..., :2])
    high = np.minimum(found[..., 2:], crowd[..., 2:])
    return np.maximum(high - low, 0).prod(-1) / np.maximum(areas(boxes)[:, None], 1e-9)
