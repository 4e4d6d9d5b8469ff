"""The worst mistakes against sorting everything by hand."""

import math

import pytest
import torch

from cvtrain.metrics.worst import Mistake, Worst


def by_hand(logits: torch.Tensor, labels: torch.Tensor, most: int) -> list[tuple]:
    found = []
    for number, (row, label) in enumerate(zip(logits.tolist(), labels.tolist(), strict=True)):
        total = sum(math.exp(x) for x in row)
        predicted = max(range(len(row)), key=row.__getitem__)
        if predicted != label:
            loss, share = math.log(total) - row[label], math.exp(row[predicted]) / total
            found.append((loss, number, label, predicted, share))
    return sorted(found, reverse=True)[:most]


@pytest.mark.parametrize("size", [1, 7, 100, 300])
@pytest.mark.parametrize("most", [1, 16, 1000])
def test_over_any_batches(size: int, most: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(300, 5, generator=generator, dtype=torch.float64)
    labels, ids = torch.randint(5, (300,), generator=generator), torch.arange(300)
    worst = Worst(most)
    for columns in zip(*(c.split(size) for c in (logits, labels, ids)), strict=True):
        worst.update(columns[0], columns[1], columns[0].argmax(1), columns[2])
        assert len(worst.columns[0]) <= most
    expected = by_hand(logits, labels, most)
    assert [m[1:4] for m in worst.mistakes()] == [row[1:4] for row in expected]
    for mistake, row in zip(worst.mistakes(), expected, strict=True):
        assert (mistake.loss, mistake.probability) == pytest.approx((row[0], row[4]))


def test_what_is_right_is_no_mistake() -> None:
    worst = Worst(4)
    logits = torch.tensor([[9.0, 0.0], [0.1, 0.0], [0.0, 0.0]])
    worst.update(logits, torch.tensor([0, 0, 1]), logits.argmax(1), torch.tensor([5, 6, 7]))
    assert worst.mistakes() == [Mistake(pytest.approx(math.log(2)), 7, 1, 0, pytest.approx(0.5))]


def test_before_any_batch() -> None:
    assert Worst(4).mistakes() == []
