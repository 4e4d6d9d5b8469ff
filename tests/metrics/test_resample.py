"""Intervals and tests of a difference: against formulas, against figures computed by others."""

import math
import time

import numpy as np
import pytest
import torch
from test_coco_map import found_of, truth_of

from cvtrain.metrics.coco_map import coco_map
from cvtrain.metrics.detections import Detections
from cvtrain.metrics.resample import (
    FEWEST,
    RESAMPLES,
    bootstrap,
    interval,
    mcnemar,
    paired_p,
    resampled,
    resamples_for,
)
from cvtrain.metrics.resample_map import ResampledMap


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (1, 0, 1.0),
        (0, 5, 2 / 2**5),
        (1, 5, 2 * (1 + 6) / 2**6),
        (8, 2, 2 * (1 + 10 + 45) / 2**10),  # the sign test of every textbook: 0.109375
    ],
)
def test_mcnemar_by_hand(first: int, second: int, p: float) -> None:
    assert mcnemar(first, second) == mcnemar(second, first) == p


@pytest.mark.parametrize(("first", "second"), [(86, 150), (1, 400), (700, 640)])
def test_mcnemar_is_the_binomials_tail(first: int, second: int) -> None:
    total, fewer = first + second, min(first, second)
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    assert mcnemar(first, second) == pytest.approx(2 * tail / 2**total, rel=1e-12)


def test_mcnemar_of_the_prime_minister() -> None:
    """Agresti, Categorical Data Analysis, table 10.1: 150 and 86 changed their minds, z = 4.17."""
    normal = math.erfc((150 - 86) / math.sqrt(150 + 86) / math.sqrt(2))
    assert mcnemar(150, 86) == pytest.approx(normal, rel=0.35)
    assert mcnemar(150, 86) < 1e-4


def test_mcnemar_of_many_is_quick() -> None:
    start = time.perf_counter()
    assert mcnemar(20_000, 20_000) == 1
    assert 0.3 < mcnemar(20_000, 20_200) < 0.33  # one standard deviation
    assert time.perf_counter() - start < 10


def error(wrong: np.ndarray) -> np.ndarray:
    draws = bootstrap(lambda counts: np.array([counts @ wrong / counts.sum()]), len(wrong), 1000)
    return draws[:, 0]


def test_an_interval_is_the_normal_one_of_many_samples() -> None:
    wrong = (np.arange(10_000) % 10 == 0).astype(float)  # an error of 0.1
    low, high = interval(error(wrong))
    half = 1.96 * math.sqrt(0.1 * 0.9 / 10_000)
    assert low == pytest.approx(0.1 - half, abs=0.1 * half)
    assert high == pytest.approx(0.1 + half, abs=0.1 * half)


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    generator, held = np.random.default_rng(1), 0
    for _ in range(60):
        wrong = (generator.random(400) < 0.2).astype(float)
        low, high = interval(error(wrong))
        held += low <= 0.2 <= high
    assert 52 <= held <= 60  # of 60 at 95 %: 57


def test_resamples_are_the_same_each_time() -> None:
    first, again, other = (list(resampled(50, 3, seed=seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert [counts.sum() for counts in first] == [50, 50, 50]


def test_fewer_resamples_of_very_much() -> None:
    assert resamples_for(10_000) == RESAMPLES
    assert resamples_for(10**12) == FEWEST
    assert FEWEST < resamples_for(5_000_000) < RESAMPLES


def test_p_of_paired_differences() -> None:
    assert paired_p(np.full(999, -1.0)) == pytest.approx(2 / 1000)
    assert paired_p(np.zeros(999)) == 1
    assert paired_p(np.concatenate([np.full(975, 1.0), np.full(24, -1.0)])) == pytest.approx(0.05)


# Detection


def scene(images: int = 12, classes: int = 3, *, seed: int = 0) -> list[tuple[dict, dict]]:
    """Truths, and what a middling detector finds: moved boxes, doubles, wrong ones."""
    rng, scenes = np.random.default_rng(seed), []
    for _ in range(images):
        count = rng.integers(0, 5)
        corners = rng.uniform(0, 250, (count, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(20, 120, (count, 2))], 1)
        labels = rng.integers(1, classes + 1, count)
        moved = np.repeat(boxes, 2, axis=0) + rng.normal(0, 8, (2 * count, 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        found = np.where(rng.random(2 * count) < 0.8, np.repeat(labels, 2), 1)
        rows = list(zip(moved.tolist(), rng.random(2 * count).tolist(), strict=True))
        crowd = torch.from_numpy(rng.random(count) < 0.1)
        truth = truth_of(boxes.reshape(-1, 4).tolist(), labels.tolist(), crowd=crowd)
        scenes.append((truth, found_of(rows, found.tolist() or [])))
    return scenes


def detections_of(scenes: list[tuple[dict, dict]], counts: np.ndarray) -> Detections:
    """With each image as often as it counts, as an image of its own."""
    detections, number = Detections(), 0
    for (truth, found), count in zip(scenes, counts.astype(int), strict=True):
        for _ in range(count):
            detections.add(number, truth, found)
            number += 1
    return detections


NAMES = ("a", "b", "c")


def test_images_that_count_once_have_cocos_figures() -> None:
    scenes = scene()
    detections = detections_of(scenes, np.ones(len(scenes)))
    known = coco_map(detections, NAMES, engine="pycocotools").figures
    found = ResampledMap(detections, NAMES)(np.ones(len(scenes)))
    assert found == pytest.approx([known[name] for name in ResampledMap.names], rel=1e-9)
    assert 10 < found[0] < 90


def test_a_resample_is_the_data_set_of_its_images() -> None:
    scenes = scene(seed=3)
    resampled_map = ResampledMap(detections_of(scenes, np.ones(len(scenes))), NAMES)
    for counts in resampled(len(scenes), 8):
        known = coco_map(detections_of(scenes, counts), NAMES, engine="pycocotools").figures
        expected = [known[name] for name in ResampledMap.names]
        assert resampled_map(counts) == pytest.approx(expected, rel=1e-9)


def test_images_without_objects() -> None:
    scenes = [(truth_of([], []), found_of([])), *scene(2)]
    resampled_map = ResampledMap(detections_of(scenes, np.ones(3)), NAMES)
    assert np.isnan(resampled_map(np.array([3.0, 0, 0]))).all()
    empty = ResampledMap(detections_of(scenes[:1], np.ones(1)), NAMES)
    assert np.isnan(empty(np.ones(1))).all()
