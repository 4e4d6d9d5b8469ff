"""Calibration: bins and errors worked out by hand, and what may not change them."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cvtrain.data.batch import ClassificationBatch
from cvtrain.metrics.calibration import (
    BINS,
    binned,
    calibration_error,
    draw_reliability,
    empty_bins,
    listed,
)
from cvtrain.tasks.classification import Classification


def bins_of(probability: list[float], right: list[bool]) -> np.ndarray:
    return binned(torch.tensor(probability), torch.tensor(right)).numpy()


def test_by_hand() -> None:
    """0.9 twice, one right: 0.8 to be mended by 2 of 5; 0.5 thrice, all right: 0.5 by 3 of 5."""
    bins = bins_of([0.9, 0.9, 0.5, 0.5, 0.5], [True, False, True, True, True])
    by_hand = 100 * (2 / 5 * abs(0.9 - 0.5) + 3 / 5 * abs(0.5 - 1.0))
    assert calibration_error(bins) == pytest.approx(by_hand, rel=1e-6)


def test_samples_of_a_bin_are_judged_together() -> None:
    """0.81 and 0.85 share the bin from 0.8 to 0.8667; on average 0.83, one of two is right."""
    assert calibration_error(bins_of([0.81, 0.85], [True, False])) == pytest.approx(33, rel=1e-5)
    apart = bins_of([0.81, 0.91], [True, False])
    assert calibration_error(apart) == pytest.approx(50 * (0.19 + 0.91), rel=1e-5)


def test_a_bound_is_of_the_bin_below_it() -> None:
    exact = [k / 16 for k in range(17)]  # without rounding
    for value in exact:
        [place] = np.flatnonzero(bins_of([value], [True])[0])
        assert place == max(math.ceil(value * 15) - 1, 0)
    assert bins_of([1.0], [True])[0, BINS - 1] == 1
    assert bins_of([0.0], [True])[0, 0] == 1


def test_calibrated_by_construction() -> None:
    """Right as often as it says: the error falls as one over the root of the samples."""
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(200_000, generator=generator)
    right = torch.rand(200_000, generator=generator) < probability
    assert calibration_error(binned(probability, right).numpy()) < 0.5
    assert calibration_error(binned(probability, ~right).numpy()) > 40


def test_sums_do_not_depend_on_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    probability = 0.1 + 0.9 * torch.rand(5000, generator=generator)
    right = torch.rand(5000, generator=generator) < 0.7
    whole = binned(probability, right)
    for size in (1, 7, 64):
        total = empty_bins()
        for pair in zip(probability.split(size), right.split(size), strict=True):
            total += binned(*pair)
        assert torch.equal(total, whole)  # to the last bit


def test_what_is_not_finite_is_counted_and_sure_of_nothing() -> None:
    bins = bins_of([float("nan"), 1.0], [False, True])
    assert bins[0].sum() == 2
    assert calibration_error(bins) == 0


def test_listed() -> None:
    rows = listed(bins_of([0.5, 0.5], [True, False]))
    assert len(rows) == BINS
    [row] = [row for row in rows if row["samples"]]
    assert row == {
        "above": 0.4667,
        "to": 0.5333,
        "samples": 2,
        "confidence": 50.0,
        "accuracy": 50.0,
    }
    assert rows[0]["accuracy"] is None


def test_a_picture_of_any_bins() -> None:
    for bins in (empty_bins().numpy(), bins_of([0.5, 0.99], [True, False])):
        picture = draw_reliability(bins)
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
        assert (picture < 128).any()


# Of a classifier


def batch_of(logits: Tensor, labels: list[int]) -> ClassificationBatch:
    return ClassificationBatch(logits, torch.tensor(labels), torch.arange(len(labels)))


class Source:
    class info:
        classes = shown = ("ant", "bee", "wasp")


def report_of(*batches: ClassificationBatch, **task: float) -> dict:
    evaluator = Classification(num_classes=3, **task).evaluator()
    for batch in batches:
        evaluator.update(batch.images, batch)
    return evaluator.report(Source)


def test_report_of_a_classifier() -> None:
    """Labels 0 0 1 2, predictions 0 1 1 1: shares by hand."""
    logits = torch.log(torch.tensor([[8, 1, 1], [1, 8, 1], [1, 8, 1], [1, 8, 1]]) / 10)
    report = report_of(batch_of(logits[:3], [0, 0, 1]), batch_of(logits[3:], [2]))
    assert report["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert report["per_class"] == {
        "ant": {"samples": 2, "error": 50.0, "precision": 100.0, "recall": 50.0, "f1": 66.6667},
        "bee": {"samples": 1, "error": 0.0, "precision": 33.3333, "recall": 100.0, "f1": 50.0},
        "wasp": {"samples": 1, "error": 100.0, "precision": None, "recall": 0.0, "f1": 0.0},
    }
    assert report["ece"] == pytest.approx(100 * abs(0.8 - 0.5), abs=1e-3)


def test_a_class_without_samples_has_no_recall() -> None:
    report = report_of(batch_of(torch.eye(3)[[0, 1, 2]], [0, 1, 1]))
    assert report["per_class"]["wasp"] == {
        "samples": 0,
        "error": None,
        "precision": 0.0,
        "recall": None,
        "f1": None,
    }


def test_probabilities_are_those_of_the_loss() -> None:
    """With a class of constant logit beside them, the others have what is left."""
    logits = torch.zeros(1, 3)
    assert report_of(batch_of(logits, [1]))["ece"] == pytest.approx(100 / 3, abs=1e-3)
    rejecting = report_of(batch_of(logits, [1]), reject_logit=0.0)
    assert rejecting["ece"] == pytest.approx(25, abs=1e-3)
