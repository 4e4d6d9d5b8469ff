"""Which detections are mistakes, and that the pictures show what is there and nothing else."""

from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cvtrain.metrics.detection_mistakes import FALSE, IGNORED, match, mistakes
from cvtrain.metrics.detection_pictures import (
    HIT,
    SIDE,
    TRUE,
    WRONG,
    draw_categories,
    draw_curves,
    draw_detections,
    draw_mistakes,
    mosaic,
)
from cvtrain.metrics.detections import Detections, ImageDetections

CLASSES = ["cat", "dog", "$\\frac{bird}$"]  # the third is not to be read as a formula
BLACK = np.zeros((320, 320, 3), np.uint8)
CAT, DOG, HIDDEN, HERD = (
    [10, 10, 90, 90],
    [200, 10, 300, 60],
    [10, 200, 60, 250],
    [150, 150, 310, 310],
)


def record_of(rows: list[tuple[list[float], float, int]], **changes: Any) -> ImageDetections:
    """A cat, a dog, a difficult cat and a herd of dogs; rows are (box, score, label)."""
    detections = Detections()
    truth = {
        "size": (320, 320),
        "boxes": [CAT, DOG, HIDDEN, HERD],
        "labels": [1, 2, 1, 2],
        "crowd": [False, False, False, True],
        "difficult": [False, False, True, False],
    }
    found = {
        "boxes": np.array([row[0] for row in rows], float).reshape(-1, 4),
        "scores": [row[1] for row in rows],
        "labels": [row[2] for row in rows],
    }
    detections.add(0, truth | changes, found)
    return detections.images[0]


ROWS: list[tuple[list[float], float, int]] = [
    ([12, 12, 92, 92], 0.8, 1),  # hits the cat
    ([10, 10, 85, 90], 0.7, 1),  # the cat a second time
    ([10, 10, 90, 88], 0.6, 2),  # the cat as a dog
    ([200, 10, 260, 60], 0.55, 1),  # the dog as a cat
    ([200, 30, 300, 100], 0.5, 2),  # the dog, badly placed
    (HIDDEN, 0.9, 1),  # the difficult cat
    ([160, 160, 200, 200], 0.95, 2),  # one of the herd
    ([220, 220, 260, 260], 0.94, 2),  # another of it
    ([100, 100, 120, 140], 0.4, 3),  # nothing
]


def test_match_by_hand() -> None:
    expected = [0, FALSE, FALSE, FALSE, FALSE, IGNORED, IGNORED, IGNORED, FALSE]
    assert match(record_of(ROWS)).tolist() == expected
    assert match(record_of(ROWS), iou=0.3).tolist()[4] == 1
    assert match(record_of([])).tolist() == []
    nothing = {"boxes": np.zeros((0, 4)), "labels": [], "crowd": [], "difficult": []}
    assert match(record_of(ROWS, **nothing)).tolist() == [FALSE] * len(ROWS)


@pytest.mark.parametrize("seed", range(5))
def test_match_is_cocos(seed: int) -> None:
    """Against pycocotools' own matching of the same image, at IoU 0.5."""
    rng = np.random.default_rng(seed)

    def boxes(count: int) -> np.ndarray:
        corner = rng.uniform(0, 120, (count, 2))
        return np.concatenate([corner, corner + rng.uniform(20, 90, (count, 2))], 1)

    truth = boxes(12)
    rows = np.concatenate([truth + rng.normal(0, 4, truth.shape), boxes(25)])
    labels = rng.integers(1, 3, 12)
    found_labels = np.concatenate([labels, rng.integers(1, 3, 25)])
    crowd = np.arange(12) < 2
    detections = Detections()
    detections.add(
        0,
        {"size": (320, 320), "boxes": truth, "labels": labels, "crowd": crowd},
        {"boxes": rows, "scores": rng.permutation(37) / 37, "labels": found_labels},
    )
    record = detections.images[0]
    hits = match(record)
    expected = cocos_verdicts(record)
    assert hits.tolist() == expected.tolist()
    assert {int(np.clip(hit, IGNORED, 0)) for hit in hits} == {FALSE, IGNORED, 0}


def cocos_verdicts(record: ImageDetections) -> np.ndarray:
    both = COCO(), COCO()
    columns = [
        (record.boxes, record.labels, record.crowd, np.zeros(len(record.boxes))),
        (record.found_boxes, record.found_labels, np.zeros(len(record.scores)), record.scores),
    ]
    for coco, (boxes, labels, crowd, scores) in zip(both, columns, strict=True):
        coco.dataset = {
            "images": [{"id": 1, "height": 320, "width": 320}],
            "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
            "annotations": [
                {
                    "id": place + 1,
                    "image_id": 1,
                    "category_id": int(labels[place]),
                    "bbox": [*map(float, box[:2]), *map(float, box[2:] - box[:2])],
                    "area": 1000.0,
                    "iscrowd": int(crowd[place]),
                    "score": float(scores[place]),
                }
                for place, box in enumerate(boxes.astype(float))
            ],
        }
        coco.createIndex()
    evaluation = COCOeval(*both, "bbox")
    evaluation.evaluate()
    verdicts = np.full(len(record.scores), FALSE)
    for entry in evaluation.evalImgs:
        if entry and entry["aRng"] == [0, 1e10]:
            places = np.array(entry["dtIds"]) - 1
            hits = np.array(entry["dtMatches"][0], int) - 1
            verdicts[places] = np.where(entry["dtIgnore"][0], IGNORED, hits)
    return verdicts


def test_mistakes_by_kind() -> None:
    detections = Detections()
    detections.images = {7: record_of(ROWS)}
    false, missed = mistakes(detections)
    assert [(one.kind, one.label, one.other) for one in false] == [
        ("duplicate", 1, 1),
        ("class", 2, 1),
        ("class", 1, 2),
        ("place", 2, 2),
        ("background", 3, 0),
    ]
    assert {one.number for one in false} == {7}
    assert false[0].other_box == tuple(CAT)
    assert [one.score for one in false] == pytest.approx([0.7, 0.6, 0.55, 0.5, 0.4])
    assert [(one.box, one.label, one.other) for one in missed] == [(tuple(DOG), 2, 1)]
    assert missed[0].iou == pytest.approx(0.6)  # of the cat that was found there


def test_the_worst_come_first_and_no_more_than_asked() -> None:
    detections = Detections()
    detections.images = {number: record_of(ROWS) for number in range(5)}
    detections.images[5] = record_of([(CAT, 0.25, 1), (DOG, 0.2, 2), ([0, 300, 9, 309], 0.99, 3)])
    false, missed = mistakes(detections, most=3)
    assert [(one.number, one.label) for one in false] == [(5, 3), (0, 1), (1, 1)]
    # What is found below `least` counts as missed; the larger object first.
    assert [(one.number, one.box) for one in missed][:2] == [(5, tuple(CAT)), (0, tuple(DOG))]
    assert mistakes(Detections()) == ([], [])
    perfect = Detections()
    perfect.images = {0: record_of([(CAT, 0.9, 1), (DOG, 0.9, 2)])}
    assert mistakes(perfect) == ([], [])


def colour(name: str) -> np.ndarray:
    return np.array([int(name[place : place + 2], 16) for place in (1, 3, 5)])


def on_border(picture: np.ndarray, box: list[float], name: str) -> bool:
    """Whether the middles of the lower and right side are of that colour (a name may be above)."""
    left, top, right, bottom = (round(2 * side) for side in box)
    x, y = (left + right) // 2, (top + bottom) // 2
    return all((picture[place] == colour(name)).all() for place in ((bottom, x), (y, right)))


def test_hits_false_ones_and_misses_have_their_colours() -> None:
    assert SIDE == 640  # twice the picture
    shown = draw_detections(
        BLACK,
        record_of([*ROWS[:1], ([200, 80, 290, 110], 0.5, 2), ([0, 280, 40, 310], 0.2, 3)]),
        CLASSES,
    )
    assert shown.shape == (SIDE, SIDE, 3)
    assert shown.dtype == np.uint8
    assert on_border(shown, [12, 12, 92, 92], HIT)
    assert on_border(shown, [200, 80, 290, 110], WRONG)
    assert on_border(shown, [200, 10, 300, 60], TRUE)
    assert (shown[560:620, :80] == 0).all()  # below the least score
    assert not BLACK.any()  # the picture itself is as it was


def test_boxes_at_the_rim_and_beyond_are_drawn() -> None:
    rows = [
        ([-50.0, -50, 900, 900], 0.9, 1),
        ([319, 319, 320, 320], 0.8, 2),
        ([9, 9, 3, 3], 0.7, 3),
    ]
    assert draw_detections(BLACK, record_of(rows), CLASSES).any()
    narrow = np.zeros((3, 200, 3), np.uint8)
    assert draw_detections(narrow, record_of(rows), CLASSES).shape == (10, SIDE, 3)


def test_the_sheet_of_mistakes() -> None:
    detections = Detections()
    detections.images = {0: record_of(ROWS), 1: record_of([([-9.0, -9, 2, 2], 0.9, 3)])}
    false, missed = mistakes(detections)
    sheet = draw_mistakes(false, lambda number: None if number else BLACK, CLASSES)
    assert (sheet == colour(WRONG)).all(-1).any()
    assert (sheet == colour(TRUE)).all(-1).any()
    assert draw_mistakes(missed, lambda number: BLACK, CLASSES).shape[2] == 3
    draw_mistakes(false, lambda number: BLACK[:1, :1], CLASSES)  # a picture that is too small
    assert draw_mistakes([], lambda number: BLACK, CLASSES).shape[2] == 3


@pytest.mark.parametrize("classes", [0, 1, 20, 91])
def test_curves_and_bars_of_any_number(classes: int) -> None:
    names = [f"{CLASSES[2]} {number}" for number in range(classes)]
    rng = np.random.default_rng(0)
    precision = np.sort(rng.random((10, 101, classes)), axis=1)[:, ::-1]
    curves = draw_curves(precision, names)
    assert curves.ndim == 3
    assert min(curves.shape[:2]) > 300
    assert (curves < 60).all(-1).any()
    bars = draw_categories({name: 100 * rng.random() for name in names})
    assert bars.ndim == 3
    assert bars.shape[0] < 2600


def test_a_category_without_objects_has_no_curve() -> None:
    precision = np.full((10, 101, 3), -1.0)
    empty = draw_curves(precision, CLASSES)
    precision[:, :, 1] = 0.5
    one = draw_curves(precision, CLASSES)
    assert not np.array_equal(empty, one)
    again = draw_curves(precision[:, :, [1]], CLASSES[1:2])
    assert np.array_equal(one, again)


def test_mosaic() -> None:
    pictures = [np.full((height, 30, 3), height, np.uint8) for height in (10, 20, 40)]
    made = mosaic(pictures)
    assert made.shape == (8 + 20 + 8 + 40 + 8, 8 + 2 * 38, 3)
    assert (made[8:18, 8:38] == 10).all()
    assert (made[8:28, 46:76] == 20).all()
    assert (made[36:76, 8:38] == 40).all()
    assert (made[36:, 46:] == 255).all()
    assert mosaic([]).shape[2] == 3
