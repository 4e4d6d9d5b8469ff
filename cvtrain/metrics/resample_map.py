"""COCO's mean average precision of resampled images, without matching them anew.

Which detections are hits does not depend on the other images: pycocotools finds it out once, and a
resample only counts each image as often as it was drawn.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvtrain.metrics.coco_map import _annotations, _tables
from cvtrain.metrics.detections import Detections

RECALLS = np.linspace(0, 1, 101)
MOST = 100  # detections of a category in an image
EVERYWHERE = [[0, 1e10]]  # pixels: objects of any size

Floats = NDArray[np.float64]


class Category(NamedTuple):
    """Its detections by falling score: for each IoU threshold `[10, n]`, and its objects."""

    image: NDArray[np.int64]  # [n]: the place of its image
    hit: NDArray[np.bool_]  # [10, n]
    counts: NDArray[np.bool_]  # [10, n]: is not excused, as one on a crowd is
    objects: Floats  # [images]


class ResampledMap:
    """`mAP`, `mAP50` and `mAP75` in per cent, for images that count several times or not at all."""

    names = ("mAP", "mAP50", "mAP75")

    def __init__(self, detections: Detections, classes: Sequence[str]) -> None:
        self.images = len(detections)
        self.categories = list(_matched(detections, classes))
        self.size = 10 * sum(len(category.image) for category in self.categories)

    def __call__(self, counts: Floats) -> Floats:
        """`[3]`, of how often each image `[images]` counts; NaN if no object is left."""
        rows = [average_precision(category, counts) for category in self.categories]
        table = np.array([row for row in rows if row is not None])
        if not table.size:
            return np.full(3, np.nan)
        return 100 * np.array([table.mean(), table[:, 0].mean(), table[:, 5].mean()])


def average_precision(category: Category, counts: Floats) -> Floats | None:
    """`[10]`, by IoU; None without objects."""
    objects = category.objects @ counts
    if objects == 0:
        return None
    weight = counts[category.image]
    found = np.cumsum(weight * category.hit, axis=1)
    seen = np.cumsum(weight * category.counts, axis=1)
    precision = found / np.maximum(seen, np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = found / objects
    padded = np.concatenate([envelope, np.zeros((len(envelope), 1))], axis=1)
    return np.array(
        [line[np.searchsorted(of, RECALLS)].mean() for line, of in zip(padded, recall, strict=True)]
    )


def _matched(detections: Detections, classes: Sequence[str]) -> list[Category]:
    evaluation = _evaluated(detections, classes)
    images, categories = len(detections), []
    for place in range(len(classes)):
        cells = evaluation.evalImgs[place * images : (place + 1) * images]
        cells = [(number, cell) for number, cell in enumerate(cells) if cell]
        objects = np.zeros(images)
        for number, cell in cells:
            objects[number] = (np.asarray(cell["gtIgnore"]) == 0).sum()
        if not objects.any():
            continue
        scores = np.concatenate([cell["dtScores"] for _, cell in cells])
        order = np.argsort(-scores, kind="mergesort")  # as pycocotools orders ties
        image = np.concatenate([np.full(len(cell["dtScores"]), n) for n, cell in cells])
        matches, excused = (
            np.concatenate([cell[key] for _, cell in cells], axis=1)[:, order].astype(bool)
            for key in ("dtMatches", "dtIgnore")
        )
        image = image[order].astype(np.int64)
        categories.append(Category(image, matches & ~excused, ~excused, objects))
    return categories


def _evaluated(detections: Detections, classes: Sequence[str]) -> Any:
    """pycocotools' evaluation, of objects of any size alone."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    records = [detections.images[number] for number in sorted(detections.images)]
    with contextlib.redirect_stdout(io.StringIO()):  # it reports every step
        both = COCO(), COCO()
        for coco, table in zip(both, _tables(records, masks=False), strict=True):
            coco.dataset = {
                "images": [{"id": place + 1} for place in range(len(records))],
                "categories": [{"id": place + 1} for place in range(len(classes))],
                "annotations": _annotations(table),
            }
            coco.createIndex()
        evaluation = COCOeval(*both, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = EVERYWHERE, ["all"]
        evaluation.params.maxDets = [MOST]
        evaluation.evaluate()
    return evaluation
