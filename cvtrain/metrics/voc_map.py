"""Pascal VOC's measure of detections: average precision at one overlap.

Not to be compared with COCO's: there is one overlap, which has to be exceeded; a detection is held
against its best object only; and `difficult` objects are neither to be found nor to be missed.
"""

from collections.abc import Sequence

import numpy as np

from cvtrain.metrics.detections import Detections, ImageDetections


def voc_map(
    detections: Detections,
    classes: Sequence[str],
    *,
    iou: float = 0.5,
    points: int | None = None,
    inclusive: bool = False,
) -> tuple[float, dict[str, float]]:
    """The mean, and the average precision of each class that has objects; per cent.

    A detection has to overlap by more than `iou`. `points` is 11 for VOC 2007; None is the area
    under the curve, the measure since 2010. `inclusive`: right and bottom are the last pixels of a
    box, as in VOC's files, where the overlap needs a pixel more on every side; else they are edges,
    one further on, and the same overlap comes without. The mean is NaN if there is no object.
    """
    records = [detections.images[number] for number in sorted(detections.images)]
    judged = [_judge_image(record, iou, inclusive) for record in records]
    hit = np.concatenate([np.zeros(0, np.int8), *judged])  # 1 hit, 0 false, -1 ignored
    labels = np.concatenate([np.zeros(0, np.int32), *(record.found_labels for record in records)])
    scores = np.concatenate([np.zeros(0, np.float32), *(record.scores for record in records)])
    wanted = np.concatenate(
        [np.zeros(0, np.int32), *(record.labels[~record.difficult] for record in records)]
    )
    result = {}
    for place, name in enumerate(classes):
        objects = int((wanted == place + 1).sum())
        if objects:
            mine = (labels == place + 1) & (hit >= 0)
            ordered = hit[mine][np.argsort(-scores[mine], kind="stable")]
            result[str(name)] = 100 * average_precision(ordered, objects, points=points)
    return (float(np.mean(list(result.values()))) if result else float("nan")), result


def average_precision(hits: np.ndarray, objects: int, *, points: int | None = None) -> float:
    """Of hits (1) and false detections (0) `[n]` by falling score, for so many objects; 0 to 1."""
    found = np.cumsum(hits)
    recall = np.concatenate([[0], found / objects, [1]])
    precision = np.concatenate([[0], found / np.arange(1, len(hits) + 1), [0]])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # the best at this recall or above
    if points is None:
        return float((np.diff(recall) * envelope[1:]).sum())
    # Divided, not added up: 3 objects of 10 do reach a recall of 0.3. Beyond the last it is 0.
    places = np.searchsorted(recall[:-1], np.arange(points) / (points - 1))
    return float(envelope[places].mean())


def _judge_image(record: ImageDetections, least: float, inclusive: bool) -> np.ndarray:
    """int8 `[n]`: each detection's own best object decides; -1 if that one is difficult.

    One that was taken by a better detection makes it false, however large the next overlap is.
    """
    verdicts = np.zeros(len(record.scores), np.int8)
    if not len(record.boxes):
        return verdicts
    overlaps = overlap(record.found_boxes, record.boxes, inclusive=inclusive)
    overlaps[record.found_labels[:, None] != record.labels] = -1
    best = overlaps.argmax(1)
    over = overlaps.max(1) > least
    verdicts[over & record.difficult[best]] = -1
    hits = np.flatnonzero(over & ~record.difficult[best])
    hits = hits[np.argsort(-record.scores[hits], kind="stable")]
    _, first = np.unique(best[hits], return_index=True)  # of each object the best detection
    verdicts[hits[first]] = 1
    return verdicts


def overlap(first: np.ndarray, second: np.ndarray, *, inclusive: bool = False) -> np.ndarray:
    """Intersection over union `[n, m]` of boxes `[n, 4]` and `[m, 4]`; 0 where both are empty."""
    first, second = first.astype(float)[:, None], second.astype(float)[None]
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., 2:], second[..., 2:])
    shared = np.maximum(high - low + inclusive, 0).prod(-1)
    own = [
        np.maximum(box[..., 2:] - box[..., :2] + inclusive, 0).prod(-1) for box in (first, second)
    ]
    return shared / np.maximum(own[0] + own[1] - shared, 1e-9)
