"""Top-k error against torch.topk and against sorting by hand."""

import pytest
import torch

from cvtrain.metrics.topk import topk_wrong


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("classes", [2, 5, 10, 101])
def test_against_torch_topk(classes: int, k: int) -> None:
    torch.manual_seed(classes)
    logits, labels = torch.randn(400, classes), torch.randint(classes, (400,))
    best = logits.topk(min(k, classes)).indices
    expected = (~(best == labels[:, None]).any(1)).sum()
    wrong = topk_wrong(logits, labels, k)
    assert wrong.item() == expected.item()
    assert wrong.dtype == torch.int64
    assert wrong.shape == ()
    # Counts add up over any batching.
    parts = zip(logits.split(7), labels.split(7), strict=True)
    assert sum(topk_wrong(x, y, k) for x, y in parts) == wrong


@pytest.mark.parametrize("k", [1, 3])
def test_ties_go_to_the_lower_number(k: int) -> None:
    """As in a stable sort from the highest score down."""
    torch.manual_seed(0)
    logits = torch.randint(0, 4, (500, 9)).float()
    labels = torch.randint(9, (500,))
    wrong = 0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        ranked = sorted(range(9), key=lambda c: -row[c])
        wrong += label not in ranked[:k]
    assert topk_wrong(logits, labels, k).item() == wrong
    # A network that says the same of every class is right for one class in nine, not for all.
    assert topk_wrong(torch.zeros(9, 9), torch.arange(9), 1).item() == 8


def test_fewer_classes_than_k_are_never_wrong() -> None:
    assert topk_wrong(torch.randn(20, 4), torch.randint(4, (20,)), 5).item() == 0


def test_scores_that_are_no_numbers() -> None:
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor(
        [[nan, nan], [nan, 0.0], [0.0, nan], [inf, inf], [-inf, 0.0], [0.0, -inf]]
    )
    labels = torch.tensor([0, 0, 1, 0, 0, 1])
    assert topk_wrong(logits, labels, 1).item() == 6
    assert topk_wrong(logits, labels, 5).item() == 6  # a diverged network has no top 5
    assert topk_wrong(torch.tensor([[1.0, -inf]]), torch.tensor([0]), 1).item() == 0


def test_half_precision_and_no_samples() -> None:
    logits = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert topk_wrong(logits.to(dtype), torch.tensor([1, 1]), 1).item() == 1
    assert topk_wrong(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 1).item() == 0
