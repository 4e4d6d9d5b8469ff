"""Classification's sums and counts against torch's means and the paper's formula."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvtrain.data.batch import ClassificationBatch
from cvtrain.errors import ConfigError
from cvtrain.tasks.classification import Classification

CLASSES = 7
WEIGHTS = [0.2, 1.0, 3.0, 0.0, 1.5, 1.0, 2.0]


def batch_of(count: int = 64, classes: int = CLASSES) -> ClassificationBatch:
    """Logits in place of images: the network under test is the identity."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, classes, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    return ClassificationBatch(logits, labels, torch.arange(count))


def parts(batch: ClassificationBatch, size: int) -> list[ClassificationBatch]:
    return [
        ClassificationBatch(*columns)
        for columns in zip(*(column.split(size) for column in batch), strict=True)
    ]


SETTINGS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1},
    {"class_weights": WEIGHTS},
    {"class_weights": WEIGHTS, "label_smoothing": 0.3},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("size", [64, 7, 1])
def test_loss_is_torchs_mean_after_one_division(settings: dict[str, Any], size: int) -> None:
    task, batch = Classification(num_classes=CLASSES, **settings), batch_of()
    total = count = torch.zeros(())
    for part in parts(batch, size):
        pair = task.losses(nn.Identity(), part)["loss"]
        total, count = total + pair[0], count + pair[1]
    weights = settings.get("class_weights")
    expected = F.cross_entropy(
        batch.images,
        batch.labels,
        weight=None if weights is None else torch.tensor(weights),
        label_smoothing=settings.get("label_smoothing", 0.0),
    )
    torch.testing.assert_close(total / count, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("settings", SETTINGS)
def test_counts_are_known_before_the_network_runs(settings: dict[str, Any]) -> None:
    task, batch = Classification(num_classes=CLASSES, **settings), batch_of()
    pairs = task.losses(nn.Identity(), batch)
    counts = task.counts(nn.Identity(), batch)
    assert counts.keys() == pairs.keys()
    for name, (_, count) in pairs.items():
        assert torch.equal(counts[name], count)


def test_only_the_loss_carries_a_gradient() -> None:
    batch = batch_of()
    logits = batch.images.requires_grad_()
    pairs = Classification(num_classes=CLASSES).losses(nn.Identity(), batch)
    assert pairs["loss"][0].requires_grad
    assert not pairs["top1_err"][0].requires_grad
    wrong, count = pairs["top1_err"]
    expected = 100 * (logits.argmax(1) != batch.labels).double().mean()
    assert (wrong / count).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("j", [0.5, 2.0])
def test_map_criterion_of_lenet(j: float) -> None:
    """Equation 9: E = 1/P sum_p (y_Dp + log(e^-j + sum_i e^-y_i)), y being squared distances."""
    torch.manual_seed(0)
    distances, labels = 4 * torch.rand(20, 10), torch.randint(10, (20,))
    expected = 0.0
    for row, label in zip(distances.tolist(), labels.tolist(), strict=True):
        expected += row[label] + math.log(math.exp(-j) + sum(math.exp(-y) for y in row))
    batch = ClassificationBatch(-distances, labels, torch.arange(20))
    total, count = Classification(num_classes=10, reject_logit=-j).losses(nn.Identity(), batch)[
        "loss"
    ]
    assert (total / count).item() == pytest.approx(expected / 20, rel=1e-5)


def test_map_criterion_lets_far_classes_be() -> None:
    """Its use: once every wrong class is further than j, pushing it away gains next to nothing."""
    distances = torch.tensor([[0.0, 8.0, 9.0]], requires_grad=True)
    batch = ClassificationBatch(-distances, torch.tensor([0]), torch.arange(1))
    plain = Classification(num_classes=3).losses(nn.Identity(), batch)["loss"][0]
    [push] = torch.autograd.grad(plain, distances, retain_graph=True)
    rejecting = Classification(num_classes=3, reject_logit=-0.1).losses(nn.Identity(), batch)[
        "loss"
    ][0]
    [held] = torch.autograd.grad(rejecting, distances)
    assert (held[0, 1:].abs() < 0.6 * push[0, 1:].abs()).all()


def test_map_criterion_with_weights() -> None:
    batch = batch_of()
    task = Classification(num_classes=CLASSES, class_weights=WEIGHTS, reject_logit=-1.0)
    total, count = task.losses(nn.Identity(), batch)["loss"]
    with_reject = torch.cat([batch.images, torch.full((64, 1), -1.0)], 1)
    expected = F.cross_entropy(with_reject, batch.labels, weight=torch.tensor([*WEIGHTS, 1.0]))
    torch.testing.assert_close(total / count, expected)


def evaluated(task: Classification, batch: ClassificationBatch, size: int) -> dict[str, float]:
    evaluator = task.evaluator()
    for part in parts(batch, size):
        evaluator.update(task.predict(nn.Identity(), part), part)
    return evaluator.compute()


@pytest.mark.parametrize("settings", SETTINGS)
def test_evaluation_does_not_depend_on_the_batch_size(settings: dict[str, Any]) -> None:
    task, batch = Classification(num_classes=CLASSES, **settings), batch_of()
    whole = evaluated(task, batch, 64)
    for size in (1, 7, 63):
        split = evaluated(task, batch, size)
        assert (split["top1_err"], split["top5_err"]) == (whole["top1_err"], whole["top5_err"])
        assert split["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    wrong = (batch.images.argmax(1) != batch.labels).sum().item()
    assert whole["top1_err"] == 100 * wrong / 64
    top5 = (batch.images.topk(5).indices == batch.labels[:, None]).any(1)
    assert whole["top5_err"] == 100 * (~top5).sum().item() / 64
    pair = task.losses(nn.Identity(), batch)["loss"]
    assert whole["loss"] == pytest.approx((pair[0] / pair[1]).item(), rel=1e-5)


def test_totals_of_two_processes_add_up() -> None:
    task, batch = Classification(num_classes=CLASSES, class_weights=WEIGHTS), batch_of()
    halves = [task.evaluator() for _ in range(2)]
    for evaluator, part in zip(halves, [*parts(batch, 40)], strict=True):
        evaluator.update(part.images, part)
    together = task.evaluator()
    together.totals = {n: halves[0].totals[n] + halves[1].totals[n] for n in halves[0].totals}
    whole = evaluated(task, batch, 64)
    assert together.compute() == pytest.approx(whole, rel=1e-6)
    assert all(total.shape == () for total in together.totals.values())


def test_fewer_than_five_classes() -> None:
    figures = evaluated(Classification(num_classes=3), batch_of(classes=3), 64)
    assert figures["top5_err"] == 0
    assert 0 < figures["top1_err"] < 100


def test_millions_of_samples_are_counted_exactly() -> None:
    # In float32, sums lose single samples beyond 2^24.
    evaluator = Classification(num_classes=2).evaluator()
    logits, labels = torch.tensor([[0.0, 1.0]]), torch.tensor([0])
    evaluator.update(logits, ClassificationBatch(logits, labels, labels))
    evaluator.totals = {name: total * 2**24 for name, total in evaluator.totals.items()}
    for label in (0, 0, 1):
        labels = torch.tensor([label])
        evaluator.update(logits, ClassificationBatch(logits, labels, labels))
    assert evaluator.compute()["top1_err"] == 100 * (2**24 + 2) / (2**24 + 3)


def test_half_precision_logits_are_judged_in_float32() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.bfloat16()

    task, batch = Classification(num_classes=CLASSES), batch_of()
    total, count = task.losses(Half(), batch)["loss"]
    assert total.dtype == torch.float32
    expected = F.cross_entropy(batch.images.bfloat16().float(), batch.labels)
    torch.testing.assert_close(total / count, expected)
    assert task.predict(Half(), batch).dtype == torch.float32


def test_weights_must_be_one_per_class() -> None:
    with pytest.raises(ConfigError, match=r"3 weights for 7 classes; task\.class_weights"):
        Classification(num_classes=CLASSES, class_weights=[1.0, 2.0, 3.0])


def test_primary_is_what_reports_call_it() -> None:
    task = Classification(num_classes=CLASSES)
    assert task.primary == ("top1_err", False)
    assert task.primary.name in evaluated(task, batch_of(), 64)
