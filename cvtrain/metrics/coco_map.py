"""COCO's measure of detections: average precision and recall, for boxes and for masks."""

import contextlib
import importlib
import importlib.util
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cvtrain.metrics.detections import Detections, ImageDetections

AREAS = {"_small": 1, "_medium": 2, "_large": 3}  # to their place in an engine's arrays
MOST = {"1": 0, "10": 1, "100": 2}  # detections of a category in an image, likewise


class CocoFigures(NamedTuple):
    figures: dict[str, float]  # the twelve, per cent; without those that have no ground truth
    categories: dict[str, float]  # AP by category, per cent, likewise
    precision: np.ndarray  # float64 [10, 101, K]: by IoU, recall, category; -1: no ground truth


class Table(NamedTuple):
    """All objects of all images, one after another; boxes are left, top, width, height."""

    image: np.ndarray  # int64 [n]: from 1 on
    label: np.ndarray  # int64 [n]
    box: np.ndarray  # float64 [n, 4]
    score: np.ndarray  # float64 [n]; of truths: 0
    crowd: np.ndarray  # bool [n]
    area: np.ndarray  # float64 [n]
    rles: list[dict[str, Any]] | None


def coco_map(
    detections: Detections, classes: Sequence[str], *, iou_type: str = "bbox", engine: str = "auto"
) -> CocoFigures:
    """The twelve figures of `iou_type` bbox or segm, by hotcoco where it is installed.

    `engine` is auto, hotcoco or pycocotools. The area of a detection is its box's for bbox and its
    mask's for segm. Raises ValueError for a label that is not one of the classes, and for segm of
    detections that were kept without their masks.
    """
    if iou_type == "segm" and not detections.masks:
        raise ValueError("kept without masks: Detections(masks=True)")
    if engine == "auto":
        engine = "hotcoco" if importlib.util.find_spec("hotcoco") else "pycocotools"
    run = {"hotcoco": _by_hotcoco, "pycocotools": _by_pycocotools}[engine]
    records = [detections.images[number] for number in sorted(detections.images)]
    truths, found = _tables(records, masks=iou_type == "segm")
    for table in (truths, found):
        if len(table.label) and not 1 <= table.label.min() <= table.label.max() <= len(classes):
            raise ValueError(f"labels are 1 to {len(classes)}")
    images = [
        {"id": place + 1, "height": record.size[0], "width": record.size[1]}
        for place, record in enumerate(records)
    ]
    categories = [{"id": place + 1, "name": name} for place, name in enumerate(classes)]
    precision, recall = run(images, categories, truths, found, iou_type)
    everywhere = precision[:, :, :, 0, MOST["100"]]
    by_category = {
        name: _mean(everywhere[:, :, place]) for place, name in enumerate(map(str, classes))
    }
    return CocoFigures(
        _known(_twelve(precision, recall)), _known(by_category), np.array(everywhere)
    )


def _twelve(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """Precision `[IoU, recall, category, area, most]` and recall `[IoU, category, area, most]`."""
    last = MOST["100"]
    at = {"": slice(None), "50": slice(0, 1), "75": slice(5, 6)}
    return {
        **{f"mAP{name}": _mean(precision[ious, :, :, 0, last]) for name, ious in at.items()},
        **{f"mAP{name}": _mean(precision[..., area, last]) for name, area in AREAS.items()},
        **{f"AR{name}": _mean(recall[..., 0, most]) for name, most in MOST.items()},
        **{f"AR{name}": _mean(recall[..., area, last]) for name, area in AREAS.items()},
    }


def _mean(cells: np.ndarray) -> float:
    """Per cent, of the cells that have ground truth; NaN for none."""
    cells = cells[cells > -1]
    return float(100 * cells.mean()) if cells.size else float("nan")


def _known(figures: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if value == value}


def _tables(records: list[ImageDetections], *, masks: bool) -> tuple[Table, Table]:
    """Truths and detections, by image."""
    truths = _table(
        records,
        [record.boxes for record in records],
        [record.labels for record in records],
        crowd=[record.crowd for record in records],
        area=[record.area for record in records],
        rles=[record.rles or [] for record in records] if masks else None,
    )
    found = _table(
        records,
        [record.found_boxes for record in records],
        [record.found_labels for record in records],
        score=[record.scores for record in records],
        rles=[record.found_rles or [] for record in records] if masks else None,
    )
    if found.rles is None:
        return truths, found._replace(area=found.box[:, 2:].prod(1))
    from pycocotools import mask

    # One at a time: of a list the areas are put into 8 bits (pycocotools 2.0.11).
    return truths, found._replace(area=np.array([mask.area(rle) for rle in found.rles], float))


def _table(
    records: list[ImageDetections],
    boxes: list[np.ndarray],
    labels: list[np.ndarray],
    *,
    score: list[np.ndarray] | None = None,
    crowd: list[np.ndarray] | None = None,
    area: list[np.ndarray] | None = None,
    rles: list[list[bytes]] | None = None,
) -> Table:
    def column(parts: list[np.ndarray] | None, dtype: Any) -> np.ndarray:
        return np.concatenate(parts).astype(dtype) if parts else np.zeros(count, dtype)

    image = np.repeat(np.arange(1, len(boxes) + 1), [len(part) for part in boxes])
    count = len(image)
    corners = column(boxes, np.float64).reshape(-1, 4)
    sides = np.maximum(corners[:, 2:] - corners[:, :2], 0)
    codes = [
        {"size": record.size, "counts": code}
        for record, part in zip(records, rles or [], strict=False)
        for code in part
    ]
    return Table(
        image,
        column(labels, np.int64),
        np.concatenate([corners[:, :2], sides], 1),
        column(score, np.float64),
        column(crowd, np.bool_),
        column(area, np.float64),
        None if rles is None else codes,
    )


def _by_hotcoco(
    images: list[Any], categories: list[Any], truths: Table, found: Table, iou_type: str
) -> tuple[np.ndarray, np.ndarray]:
    hotcoco = importlib.import_module("hotcoco")  # which need not be installed
    truth = hotcoco.COCO.from_arrays(
        images,
        categories,
        truths.image,
        truths.label,
        truths.box,
        ids=np.arange(1, len(truths.image) + 1),
        area=truths.area,
        iscrowd=truths.crowd.astype(np.int64),
        segmentation=truths.rles,
    )
    rows = np.column_stack([found.image, found.box, found.score, found.label])
    result = truth.load_res(rows, segmentation=found.rles)
    if found.rles:  # it has taken the boxes' areas
        result.update_anns(ids=np.arange(1, len(rows) + 1), area=found.area)
    evaluation = hotcoco.COCOeval(truth, result, iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _by_pycocotools(
    images: list[Any], categories: list[Any], truths: Table, found: Table, iou_type: str
) -> tuple[np.ndarray, np.ndarray]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it reports every step
        both = COCO(), COCO()
        for coco, table in zip(both, (truths, found), strict=True):
            coco.dataset = {
                "images": images,
                "categories": categories,
                "annotations": _annotations(table),
            }
            coco.createIndex()
        evaluation = COCOeval(*both, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _annotations(table: Table) -> list[dict[str, Any]]:
    """As in COCO's files. Ids begin at 1: to the evaluation, a match with 0 is none."""
    columns = zip(
        table.image.tolist(),
        table.label.tolist(),
        table.box.tolist(),
        table.score.tolist(),
        table.crowd.astype(int).tolist(),
        table.area.tolist(),
        strict=True,
    )
    annotations = [
        {
            "id": place + 1,
            "image_id": image,
            "category_id": label,
            "bbox": box,
            "score": score,
            "iscrowd": crowd,
            "area": area,
        }
        for place, (image, label, box, score, crowd, area) in enumerate(columns)
    ]
    for annotation, rle in zip(annotations, table.rles or [], strict=False):
        annotation["segmentation"] = rle
    return annotations
