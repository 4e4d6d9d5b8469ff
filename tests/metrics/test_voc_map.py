"""VOC's figures: worked out by hand, and against a plain loop in exact fractions."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from cvtrain.metrics.detections import Detections
from cvtrain.metrics.voc_map import average_precision, overlap, voc_map

SIZE = (400, 400)
TRUTH = [[0, 0, 99, 99], [200, 200, 299, 299]]  # 100x100, the last pixels included


def measured(
    truth: list[Any], found: list[tuple[list[float], float]], **options: Any
) -> dict[str, float]:
    """One image; objects are boxes of class 1, or (box, difficult)."""
    objects = [one if isinstance(one, tuple) else (one, False) for one in truth]
    detections = Detections()
    detections.add(
        0,
        {
            "size": SIZE,
            "boxes": [box for box, _ in objects],
            "labels": [1] * len(objects),
            "difficult": [difficult for _, difficult in objects],
        },
        {
            "boxes": [box for box, _ in found],
            "scores": [score for _, score in found],
            "labels": [1] * len(found),
        },
    )
    mean, by_class = voc_map(detections, ["cat"], **({"inclusive": True} | options))
    assert by_class in ({}, {"cat": mean})
    return by_class


TOY = [([0, 0, 99, 99], 0.9), ([100, 0, 199, 99], 0.8), ([200, 200, 299, 259], 0.7)]


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (None, 50 * 1 + 50 * 2 / 3),  # precision 1 up to a recall of 1/2, then 2/3
        (11, 100 * (6 * 1 + 5 * 2 / 3) / 11),  # recalls 0 to 0.5, and 0.6 to 1
    ],
)
def test_toy(points: int | None, expected: float) -> None:
    assert measured(TRUTH, TOY, points=points)["cat"] == pytest.approx(expected)
    noise = [([310.0, 310, 320 + i, 320], 0.01) for i in range(50)]
    assert measured(TRUTH, TOY + noise, points=points)["cat"] == pytest.approx(expected)
    half = measured(TRUTH, TOY, points=points, iou=0.6)["cat"]  # which 0.6 does not exceed
    assert half == pytest.approx(50 if points is None else 600 / 11)


def test_a_duplicate_is_false() -> None:
    """Hit, false, false, hit: the second half at a precision of 1/2."""
    duplicate = [*TOY, ([0, 0, 99, 99], 0.85)]
    assert measured(TRUTH, duplicate)["cat"] == pytest.approx(50 * 1 + 50 * 2 / 4)


def test_the_best_object_alone_decides() -> None:
    """There is no second choice: the other object stays unfound, though it overlaps by 0.6."""
    truth = [[0, 0, 99, 99], [0, 20, 99, 119]]
    first, second = [0, 0, 99, 99], [0, 5, 99, 104]
    found = measured(truth, [(first, 0.9), (second, 0.8)])
    assert found["cat"] == pytest.approx(50)
    other = measured(truth, [(first, 0.9), ([0, 15, 99, 114], 0.8)])
    assert other["cat"] == pytest.approx(100)


def test_difficult_objects_are_neither_found_nor_missed() -> None:
    difficult = (TRUTH[1], True)
    hits = [(TRUTH[0], 0.5), (TRUTH[1], 0.9), (TRUTH[1], 0.8)]
    assert measured([TRUTH[0], difficult], hits)["cat"] == pytest.approx(100)
    assert measured([TRUTH[0], difficult], hits[:1])["cat"] == pytest.approx(100)
    assert measured([difficult], hits) == {}


def test_the_overlap_has_to_be_exceeded() -> None:
    half = [([0, 0, 99, 49], 0.9)]  # exactly one half, with the last pixels
    assert measured(TRUTH[:1], half)["cat"] == 0
    assert measured(TRUTH[:1], [([0, 0, 99, 50], 0.9)])["cat"] == pytest.approx(100)
    assert measured([[0, 0, 100, 100]], [([0, 0, 100, 50], 0.9)], inclusive=False)["cat"] == 0
    assert measured([[0, 0, 100, 100]], [([0, 0, 100, 50], 0.9)])["cat"] == pytest.approx(100)


def test_nothing_found_and_nothing_there() -> None:
    assert measured(TRUTH, []) == {"cat": 0}
    assert measured([], TOY) == {}
    mean, by_class = voc_map(Detections(), ["cat"])
    assert np.isnan(mean)
    assert by_class == {}


def test_the_overlap_of_boxes() -> None:
    assert overlap(np.array([[0, 0, 9, 9]]), np.array([[5, 0, 14, 9]]), inclusive=True) == 50 / 150
    assert overlap(np.array([[0, 0, 10, 10]]), np.array([[5, 0, 15, 10]])) == 50 / 150
    assert overlap(np.array([[3, 3, 3, 3]]), np.array([[3, 3, 3, 3]])) == 0
    assert overlap(np.zeros((0, 4)), np.zeros((2, 4))).shape == (0, 2)


@pytest.mark.parametrize("points", [None, 11])
@pytest.mark.parametrize("seed", range(4))
def test_average_precision_in_fractions(seed: int, points: int | None) -> None:
    rng = np.random.default_rng(seed)
    hits, objects = rng.integers(0, 2, 40), int(rng.integers(20, 41))
    objects = max(objects, int(hits.sum()))
    curve = []
    for count in range(1, 41):
        found = int(hits[:count].sum())
        curve.append((Fraction(found, objects), Fraction(found, count)))

    def best(recall: Fraction) -> Fraction:
        return max((p for r, p in curve if r >= recall), default=Fraction(0))

    if points:
        exact = sum(best(Fraction(i, 10)) for i in range(11)) / 11
    else:
        exact = sum(best(Fraction(i, objects)) for i in range(1, objects + 1)) / objects
    assert average_precision(hits, objects, points=points) == pytest.approx(float(exact))


def plain(detections: Detections, label: int) -> list[tuple[float, int]]:
    """The rule as it is told, over all images at once: (score, hit) of what is not ignored."""
    rows = [
        (record.scores[row], number, record.found_boxes[row])
        for number, record in sorted(detections.images.items())
        for row in range(len(record.scores))
        if record.found_labels[row] == label
    ]
    taken, verdicts = set(), []
    for score, number, box in sorted(rows, key=lambda row: -row[0]):
        record = detections.images[number]
        best, which = 0.0, -1
        for place in range(len(record.boxes)):
            if record.labels[place] == label:
                value = float(overlap(box[None], record.boxes[place][None], inclusive=True)[0, 0])
                if value > best:
                    best, which = value, place
        if best > 0.5 and record.difficult[which]:
            continue
        hit = best > 0.5 and (number, which) not in taken
        if hit:
            taken.add((number, which))
        verdicts.append((float(score), int(hit)))
    return verdicts


def test_many_images_against_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    detections = Detections()
    for number in range(40):
        objects, found = int(rng.integers(0, 6)), int(rng.integers(0, 12))
        boxes = np.concatenate([corner := rng.integers(0, 90, (objects, 2)), corner + 30], 1)
        rows = np.concatenate([corner := rng.integers(0, 90, (found, 2)), corner + 30], 1)
        near = min(objects, found)
        rows[:near] = boxes[:near] + rng.integers(-6, 7, (near, 4))
        labels = rng.integers(1, 4, objects)
        found_labels = rng.integers(1, 4, found)
        found_labels[:near] = labels[:near]
        detections.add(
            number,
            {
                "size": SIZE,
                "boxes": boxes,
                "labels": labels,
                "difficult": rng.random(objects) < 0.2,
            },
            {"boxes": rows, "scores": rng.permutation(found) / 97, "labels": found_labels},
        )
    _, by_class = voc_map(detections, ["a", "b", "c"], inclusive=True)
    edges = Detections()  # from the first pixel to just behind the last one
    for number, record in detections.images.items():
        boxes, found_boxes = (
            b + np.float32([0, 0, 1, 1]) for b in (record.boxes, record.found_boxes)
        )
        edges.images[number] = record._replace(boxes=boxes, found_boxes=found_boxes)
    assert voc_map(edges, ["a", "b", "c"])[1] == by_class
    for label, name in enumerate("abc", 1):
        records = detections.images.values()
        objects = sum(int(((r.labels == label) & ~r.difficult).sum()) for r in records)
        hits = np.array([hit for _, hit in plain(detections, label)])
        assert 0 < hits.mean() < 1
        assert by_class[name] == pytest.approx(100 * average_precision(hits, objects))
