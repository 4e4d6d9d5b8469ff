"""COCO's figures: toys worked out by hand, both engines against each other, real annotations."""

import importlib.util
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask

from cvtrain.metrics.coco_map import CocoFigures, coco_map
from cvtrain.metrics.detections import Detections, encode_masks

NAMES = (
    *("mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)
ENGINES = ["pycocotools"]
if importlib.util.find_spec("hotcoco"):
    ENGINES.append("hotcoco")
SIZE = (400, 400)
# Two objects of 100x100; a hit, a miss, and a detection that overlaps the other by 0.6.
TRUTH = [[0, 0, 100, 100], [200, 200, 300, 300]]
TOY = [([0, 0, 100, 100], 0.9), ([100, 0, 200, 100], 0.8), ([200, 200, 300, 260], 0.7)]

engines = pytest.mark.parametrize("engine", ENGINES)


def truth_of(boxes: list[list[float]], labels: list[int] | None = None, **more: Any) -> Any:
    labels = [1] * len(boxes) if labels is None else labels
    return {"size": torch.tensor(SIZE), "boxes": torch.tensor(boxes), "labels": labels, **more}


def found_of(rows: list[tuple[list[float], float]], labels: list[int] | None = None) -> Any:
    boxes, scores = [row[0] for row in rows], [row[1] for row in rows]
    return {"boxes": boxes, "scores": scores, "labels": labels or [1] * len(rows)}


def figures(truth: Any, found: Any, engine: str, classes: int = 1) -> dict[str, float]:
    detections = Detections()
    detections.add(0, truth, found)
    return coco_map(detections, [f"c{i}" for i in range(classes)], engine=engine).figures


@engines
@pytest.mark.parametrize(
    ("more", "ap", "ap50", "ap75"),
    [
        ([], 60.396, 83.498, 50.495),
        ([([0, 0, 100, 100], 0.85)], 57.921, 75.248, 50.495),  # a duplicate of the hit
        ([([310, 310, 320 + i, 320], 0.01) for i in range(50)], 60.396, 83.498, 50.495),
    ],
    ids=["plain", "duplicate", "noise"],
)
def test_toys(more: Any, ap: float, ap50: float, ap75: float, engine: str) -> None:
    found = figures(truth_of(TRUTH), found_of([*TOY, *more]), engine)
    expected = {"mAP": ap, "mAP50": ap50, "mAP75": ap75, "AR1": 50, "AR10": 65, "AR100": 65}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-3)
    if not more:
        assert "mAP_small" not in found  # there is no small object
        assert "AR_medium" not in found
        assert found["mAP_large"] == pytest.approx(ap, abs=1e-3)


@engines
def test_a_toy_by_hand(engine: str) -> None:
    """Precision 1 up to a recall of 1/2, then 2/3, at IoU 0.5 to 0.6; from 0.65 on 1 up to 1/2."""
    low, high = (51 * 1 + 50 * 2 / 3) / 101, 51 / 101
    found = figures(truth_of(TRUTH), found_of(TOY), engine)
    assert found["mAP50"] == pytest.approx(100 * low)
    assert found["mAP"] == pytest.approx(100 * (3 * low + 7 * high) / 10)
    assert found["AR1"] == pytest.approx(50)  # the best detection alone
    assert found["AR100"] == pytest.approx(100 * (3 * 1 + 7 * 0.5) / 10)


@engines
def test_a_crowd_is_neither_hit_nor_missed(engine: str) -> None:
    """Detections within it are taken away from both, by its share of the detection."""
    crowd = {"crowd": torch.tensor([False, False, True])}
    truth = truth_of([*TRUTH, [0, 200, 400, 400]], **crowd)
    inside = [([10 * i, 300, 10 * i + 40, 340], 0.95) for i in range(8)]
    both = found_of([(box, 0.9) for box in TRUTH] + inside)
    assert figures(truth, both, engine)["mAP"] == pytest.approx(100)
    counted = figures(truth_of([*TRUTH, [0, 200, 400, 400]]), both, engine)
    assert counted["mAP"] < 50


@engines
def test_false_positives_of_a_class_without_objects_cost_nothing(engine: str) -> None:
    found = found_of([*((box, 0.9) for box in TRUTH), ([0, 0, 9, 9], 0.99)], [1, 1, 2])
    result = figures(truth_of(TRUTH), found, engine, classes=2)
    assert result["mAP"] == pytest.approx(100)


@engines
def test_a_hundred_of_each_class_in_an_image(engine: str) -> None:
    """Not a hundred in all: the hit of the second class is the 101st detection of the image."""
    noise = [([300, 0, 301 + i / 9, 9], 0.9) for i in range(100)]
    truth = truth_of(TRUTH, [1, 2])
    found = found_of([*noise, (TRUTH[0], 0.1), (TRUTH[1], 0.1)], [1] * 101 + [2])
    detections = Detections()
    detections.add(0, truth, found)
    result = coco_map(detections, ["first", "second"], engine=engine)
    assert result.categories == pytest.approx({"first": 0, "second": 100})


@engines
def test_the_objects_area_counts_not_its_boxs(engine: str) -> None:
    box = [0.0, 0.0, 50.0, 50.0]
    found = figures(truth_of([box], area=torch.tensor([500.0])), found_of([(box, 0.5)]), engine)
    assert found["mAP_small"] == pytest.approx(100)
    assert "mAP_medium" not in found
    both = figures(truth_of([box], area=torch.tensor([1024.0])), found_of([(box, 0.5)]), engine)
    assert both["mAP_small"] == both["mAP_medium"] == pytest.approx(100)  # bounds are in both


@engines
def test_nothing_found_and_nothing_there(engine: str, capfd: pytest.CaptureFixture[str]) -> None:
    nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0)}
    found = figures(truth_of(TRUTH), nothing, engine)
    assert found == dict.fromkeys([n for n in NAMES if not n.endswith(("small", "medium"))], 0)
    empty = {"size": SIZE, "boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}
    assert figures(empty, nothing, engine) == {}
    assert figures(empty, found_of(TOY), engine) == {}
    assert coco_map(Detections(), ["c"], engine=engine).figures == {}
    assert capfd.readouterr() == ("", "")


@engines
def test_what_is_not_finite_is_left_out(engine: str) -> None:
    bad = [([float("nan"), 0, 9, 9], 0.99), ([0, 0, float("inf"), 9], 0.99), (TRUTH[0], np.nan)]
    found = found_of([*((box, 0.9) for box in TRUTH), *bad])
    assert figures(truth_of(TRUTH), found, engine)["mAP"] == pytest.approx(100)


@engines
@pytest.mark.parametrize("label", [0, 3])
def test_a_label_that_is_no_class_is_refused(label: int, engine: str) -> None:
    with pytest.raises(ValueError, match="labels are 1 to 2"):
        figures(truth_of(TRUTH), found_of(TOY[:1], [label]), engine, classes=2)


def scenes(count: int, *, classes: int = 7, seed: int = 0) -> Detections:
    """Jittered truths and noise: ties, crowds, empty images, classes never there or never found."""
    rng = np.random.default_rng(seed)
    detections = Detections(masks=True)
    for number in rng.permutation(count).tolist():
        height, width = rng.integers(60, 200, 2)
        truths, found = int(rng.integers(0, 9)), int(rng.integers(0, 25))
        if number == 3:
            truths, found = 5, 260  # more than a hundred of a class
        boxes = drawn(rng, truths, width, height)
        labels = rng.integers(1, classes - 1, truths)  # the last two have no object
        rows = np.concatenate([boxes[:0], drawn(rng, found, width, height)])
        near = min(truths, found)
        rows[:near] = boxes[:near] + rng.normal(0, 3, (near, 4)) * rng.integers(0, 2, (near, 1))
        rows[:, 2:] = np.maximum(rows[:, 2:], rows[:, :2] + 1)
        found_labels = rng.choice([1, 1, 2, 3, 4, classes], found)  # never the fifth and sixth
        found_labels[:near] = np.where(labels[:near] == 5, 1, labels[:near])
        detections.add(
            number,
            {
                "size": (height, width),
                "boxes": boxes,
                "labels": labels,
                "crowd": rng.random(truths) < 0.15,
                "area": boxes[:, 2:].prod(1) * rng.random(truths),
                "rles": shapes(rng, boxes, width, height),
            },
            {
                "boxes": rows,
                "scores": rng.integers(0, 6, found) / 5,
                "labels": found_labels,
                "rles": shapes(rng, rows, width, height),
            },
        )
    return detections


def drawn(rng: np.random.Generator, count: int, width: int, height: int) -> np.ndarray:
    corners = rng.random((count, 2)) * [width - 12, height - 12]
    return np.concatenate([corners, corners + rng.uniform(4, 120, (count, 2))], 1)


def shapes(rng: np.random.Generator, boxes: np.ndarray, width: int, height: int) -> list[bytes]:
    """Ellipses within boxes, now and then empty ones."""
    y, x = np.mgrid[:height, :width]
    masks = np.zeros((len(boxes), height, width), bool)
    for one, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        across, down = (
            (2 * x - left - right) / (right - left),
            (2 * y - top - bottom) / (bottom - top),
        )
        one[:] = (across**2 + down**2 < 1) & (rng.random() < 0.95)
    return encode_masks(masks)


def closest(first: CocoFigures, second: CocoFigures) -> float:
    assert first.figures.keys() == second.figures.keys()
    assert first.categories.keys() == second.categories.keys()
    differences = [
        *(abs(first.figures[name] - second.figures[name]) for name in first.figures),
        *(abs(first.categories[name] - second.categories[name]) for name in first.categories),
        np.abs(first.precision - second.precision).max(),
    ]
    return float(max(differences))


@pytest.mark.skipif("hotcoco" not in ENGINES, reason="hotcoco is not installed")
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(3))
def test_engines_agree(iou_type: str, seed: int) -> None:
    detections = scenes(60, seed=seed)
    classes = [f"c{i}" for i in range(7)]
    fast, slow = (
        coco_map(detections, classes, iou_type=iou_type, engine=engine)
        for engine in ("hotcoco", "pycocotools")
    )
    assert slow.figures.keys() == set(NAMES)
    assert 2 < slow.figures["mAP"] < 60  # neither end, where all agree
    assert len(slow.categories) == 5
    assert closest(fast, slow) < 1e-6


def test_the_faster_engine_is_taken_by_itself() -> None:
    detections, classes = scenes(8), [f"c{i}" for i in range(7)]
    taken = coco_map(detections, classes)
    assert closest(taken, coco_map(detections, classes, engine=ENGINES[-1])) == 0


@pytest.mark.parametrize("processes", [1, 3])
def test_processes_are_merged_and_images_count_once(processes: int) -> None:
    whole, classes = scenes(20), [f"c{i}" for i in range(7)]
    shares = [Detections(masks=True) for _ in range(processes)]
    for number, record in whole.images.items():
        shares[number % processes].images[number] = record
        shares[(number + 1) % processes].images[number] = record  # as a sampler that fills up
    sent = pickle.loads(pickle.dumps([share.kept() for share in shares]))
    shares[0].merge(sent)
    assert list(shares[0].images) == list(range(20))
    assert closest(coco_map(shares[0], classes), coco_map(whole, classes)) == 0


def test_a_repeated_image_changes_nothing() -> None:
    detections = Detections()
    detections.add(4, truth_of(TRUTH), found_of(TOY))
    detections.add(4, truth_of(TRUTH), found_of([]) | {"boxes": np.zeros((0, 4))})
    assert len(detections) == 1
    assert len(detections.images[4].scores) == 3


def test_records_are_compact() -> None:
    """No more than their numbers: a view would keep a whole batch."""
    everything = torch.rand(100, 1000)
    found = {"boxes": everything[:, :4], "scores": everything[:, 4], "labels": torch.ones(100)}
    detections = Detections()
    detections.add(0, truth_of(TRUTH), found)
    assert len(pickle.dumps(detections.kept())) < 100 * 24 + 2000
    everything.zero_()
    assert detections.images[0].scores.any()


def test_half_precision_and_gradients_are_taken() -> None:
    scores = torch.tensor([0.9, 0.8, 0.7], dtype=torch.bfloat16, requires_grad=True)
    detections = Detections()
    detections.add(0, truth_of(TRUTH), found_of(TOY) | {"scores": scores})
    assert detections.images[0].scores.tolist() == scores.float().tolist()


def test_masks_that_are_missing() -> None:
    detections = Detections(masks=True)
    detections.add(0, truth_of(TRUTH, rles=[None, None]), found_of(TOY[:1]) | {"rles": [None]})
    assert mask.area({"size": SIZE, "counts": detections.images[0].rles[0]}) == 100 * 100
    assert coco_map(detections, ["c"], iou_type="segm").figures["AR1"] == pytest.approx(50)
    code = detections.images[0].rles[1]
    detections.add(
        1, truth_of(TRUTH[1:], rles=[code.decode()]), found_of(TOY[2:]) | {"rles": [code]}
    )
    assert detections.images[1].rles == detections.images[1].found_rles == [code]
    with pytest.raises(ValueError, match="kept without masks"):
        coco_map(Detections(), ["c"], iou_type="segm")


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of mask.decode
def test_masks_are_encoded_as_the_format_says() -> None:
    masks = torch.rand(3, 1, 20, 30) > 0.5
    codes = encode_masks(masks)
    for code, one in zip(codes, masks, strict=True):
        again = mask.decode({"size": [20, 30], "counts": code})
        assert (again == one[0].numpy()).all()
    assert encode_masks(torch.zeros(0, 20, 30)) == []


ROOT = os.environ.get("CVTRAIN_DATA")


@pytest.mark.data
@pytest.mark.skipif(not ROOT, reason="CVTRAIN_DATA is not set")
@engines
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_cocos_own_truth_fed_back_is_perfect(iou_type: str, engine: str) -> None:
    file = Path(ROOT or "") / "coco" / "annotations" / "instances_val2017.json"
    if not file.exists():
        pytest.skip(f"no {file}")
    data = json.loads(file.read_text())
    ids = sorted(category["id"] for category in data["categories"])
    detections = Detections(masks=True)
    for number, image in enumerate(data["images"]):
        size = image["height"], image["width"]
        objects = [row for row in data["annotations"] if row["image_id"] == image["id"]]
        rles = [run_lengths(row["segmentation"], size) for row in objects]
        corners = np.array([row["bbox"] for row in objects], float).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        truth = {
            "size": size,
            "boxes": corners,
            "labels": np.array([1 + ids.index(row["category_id"]) for row in objects], int),
            "crowd": [bool(row["iscrowd"]) for row in objects],
            "area": [row["area"] for row in objects],
            "rles": rles,
        }
        detections.add(number, truth, {**truth, "scores": np.ones(len(objects))})
    result = coco_map(detections, [str(i) for i in ids], iou_type=iou_type, engine=engine)
    perfect = {name: value for name, value in result.figures.items() if name.startswith("mAP")}
    assert perfect.keys() == set(NAMES[:6])
    assert list(perfect.values()) == pytest.approx([100.0] * 6)
    assert result.figures["AR100"] == pytest.approx(100)
    assert min(result.categories.values()) == pytest.approx(100)


def run_lengths(segmentation: Any, size: tuple[int, int]) -> bytes:
    """Of polygons, or of a crowd's plain counts."""
    codes = mask.frPyObjects(segmentation, *size)
    return (mask.merge(codes) if isinstance(codes, list) else codes)["counts"]
