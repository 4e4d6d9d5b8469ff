"""Classification's sums and counts against torch's means and the paper's formula."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvtrain.data.batch import ClassificationBatch, DataInfo
from cvtrain.data.source import Source
from cvtrain.errors import ConfigError
from cvtrain.metrics.sheet import CELL, GAP
from cvtrain.tasks.base import Showing
from cvtrain.tasks.classification import Classification, shares

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


def matrix_by_hand(logits: Tensor, labels: Tensor) -> np.ndarray:
    matrix = np.zeros((logits.shape[1], logits.shape[1]), np.int64)
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        matrix[label, max(range(len(row)), key=row.__getitem__)] += 1
    return matrix


def test_totals_of_two_processes_add_up() -> None:
    task, batch = Classification(num_classes=CLASSES, class_weights=WEIGHTS), batch_of()
    halves = [task.evaluator() for _ in range(2)]
    for evaluator, part in zip(halves, [*parts(batch, 40)], strict=True):
        evaluator.update(part.images, part)
    together = task.evaluator()
    together.totals = {n: halves[0].totals[n] + halves[1].totals[n] for n in halves[0].totals}
    whole = evaluated(task, batch, 64)
    assert together.compute() == pytest.approx(whole, rel=1e-6)
    assert (together.matrix == matrix_by_hand(batch.images, batch.labels)).all()


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


# Mixed images


def shares_of(count: int = 64) -> Tensor:
    """Of each image's classes, as mixing gives them: two have a share, or one has all."""
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randint(CLASSES, (2, count), generator=generator)
    share = torch.rand(count, 1, generator=generator)
    return share * F.one_hot(first, CLASSES) + (1 - share) * F.one_hot(second, CLASSES)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("size", [64, 7])
def test_shares_of_classes_as_torch_has_them(settings: dict[str, Any], size: int) -> None:
    task, batch = Classification(num_classes=CLASSES, **settings), batch_of()
    batch = batch._replace(labels=shares_of())
    total = torch.stack(
        [task.losses(nn.Identity(), part)["loss"][0] for part in parts(batch, size)]
    ).sum()
    weights = settings.get("class_weights")
    expected = F.cross_entropy(
        batch.images,
        batch.labels,
        weight=None if weights is None else torch.tensor(weights),
        label_smoothing=settings.get("label_smoothing", 0.0),
        reduction="sum",
    )
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    pairs, counts = task.losses(nn.Identity(), batch), task.counts(nn.Identity(), batch)
    assert all(torch.equal(counts[name], count) for name, (_, count) in pairs.items())
    if weights is None:
        assert pairs["loss"][1] == 64
    # Each class's share counts as a sample of that class would.
    rows = batch.labels.double() * torch.tensor(weights or [1.0] * CLASSES)
    by_hand = rows.sum().item()
    assert pairs["loss"][1].item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("settings", [*SETTINGS, {"reject_logit": -1.0, "class_weights": WEIGHTS}])
def test_an_unmixed_image_counts_as_its_label(settings: dict[str, Any]) -> None:
    task, batch = Classification(num_classes=CLASSES, **settings), batch_of()
    mixed = batch._replace(labels=F.one_hot(batch.labels, CLASSES).float())
    plain, shared = (task.losses(nn.Identity(), b) for b in (batch, mixed))
    for name in plain:
        for one, other in zip(plain[name], shared[name], strict=True):
            torch.testing.assert_close(one, other)


def test_the_error_of_a_mixed_image_is_that_of_its_largest_share() -> None:
    labels = torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.2, 0.7]])
    batch = ClassificationBatch(torch.eye(3)[[0, 1]], labels, torch.arange(2))
    wrong, count = Classification(num_classes=3).losses(nn.Identity(), batch)["top1_err"]
    assert (wrong / count).item() == 50


# Auxiliary heads


class Headed(nn.Module):
    """As GoogLeNet: three logits in training, one in evaluation."""

    aux_heads = 2

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return (x, 2 * x, -x) if self.training else x


@pytest.mark.parametrize("settings", [*SETTINGS, {"aux_weight": 0.5}, {"aux_weight": 0.0}])
@pytest.mark.parametrize("size", [64, 7])
def test_each_head_adds_its_weighted_loss(settings: dict[str, Any], size: int) -> None:
    task, batch, model = Classification(num_classes=CLASSES, **settings), batch_of(), Headed()
    totals: dict[str, Tensor] = {}
    for part in parts(batch, size):
        for name, pair in task.losses(model, part).items():
            totals[name] = totals.get(name, torch.zeros(2)) + torch.stack([v.float() for v in pair])
    assert totals.keys() == {"loss", "top1_err", "aux1", "aux2"}
    means = {name: (total / count).item() for name, (total, count) in totals.items()}
    weights = settings.get("class_weights")
    for name, logits, factor in (
        ("loss", batch.images, 1.0),
        ("aux1", 2 * batch.images, settings.get("aux_weight", 0.3)),
        ("aux2", -batch.images, settings.get("aux_weight", 0.3)),
    ):
        expected = F.cross_entropy(
            logits,
            batch.labels,
            weight=None if weights is None else torch.tensor(weights),
            label_smoothing=settings.get("label_smoothing", 0.0),
        )
        assert means[name] == pytest.approx(factor * expected.item(), rel=1e-5), name
    wrong = (batch.images.argmax(1) != batch.labels).double().mean()
    assert means["top1_err"] == pytest.approx(100 * wrong.item())  # of the first alone


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_counts_of_heads_are_known_before_they_run(settings: dict[str, Any], wrapped: bool) -> None:
    task, batch, model = Classification(num_classes=CLASSES, **settings), batch_of(), Headed()
    outer: nn.Module = model
    if wrapped:  # as DistributedDataParallel has it
        outer = nn.Module()
        outer.module = model
    pairs, counts = task.losses(model, batch), task.counts(outer, batch)
    assert counts.keys() == pairs.keys()
    assert all(torch.equal(counts[name], count) for name, (_, count) in pairs.items())


def test_gradients_come_from_every_head() -> None:
    task, batch = Classification(num_classes=CLASSES), batch_of()
    batch = batch._replace(images=batch.images.requires_grad_())
    pairs = task.losses(Headed(), batch)
    assert {name for name, pair in pairs.items() if pair[0].requires_grad} == {
        "loss",
        "aux1",
        "aux2",
    }


def test_a_prediction_is_the_first_heads() -> None:
    task, batch = Classification(num_classes=CLASSES), batch_of()
    for model in (Headed().train(), Headed().eval()):
        assert torch.equal(task.predict(model, batch), batch.images)


# What an evaluation shows


class Named(Source):
    """Classes whose shown names are not how they are stored; two are called the same."""

    def __init__(self, classes: int = CLASSES, *, pictures: bool = True) -> None:
        stored = tuple(f"n{number:04}" for number in range(classes))
        shown = tuple(f"${min(number, classes - 2)}$" for number in range(classes))
        self.info, self.pictures = DataInfo("named", stored, 1, 8, "", names=shown), pictures
        self.mean, self.std = [0.5], [0.25]

    def name_of(self, index: int, split: str = "train") -> str:
        return f"{split}/folder/{index}.png"

    def image_of(self, index: int, split: str = "val") -> Tensor | None:
        picture = torch.full((1, 8, 8), index, dtype=torch.uint8)
        return picture if self.pictures and index % 2 else None


@pytest.mark.parametrize("classes", [2, 7, 1000])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_the_error_is_what_is_off_the_diagonal(classes: int, size: int) -> None:
    task, batch = Classification(num_classes=classes), batch_of(classes=classes)
    # Many ties: they go to the lower number in both.
    batch = batch._replace(images=batch.images.round())
    evaluator = task.evaluator()
    for part in parts(batch, size):
        evaluator.update(part.images, part)
    matrix = evaluator.matrix
    assert matrix is not None
    assert (matrix == matrix_by_hand(batch.images, batch.labels)).all()
    assert matrix.sum() == 64
    assert evaluator.compute()["top1_err"] == 100 * (64 - matrix.trace()) / 64


def test_too_many_classes_for_a_matrix() -> None:
    task, batch = Classification(num_classes=1001), batch_of(classes=1001)
    evaluator = task.evaluator()
    evaluator.update(batch.images, batch)
    assert evaluator.matrix is None
    assert evaluator.report(Named(1001)).keys() == {"ece", "calibration"}
    evaluator.merge([evaluator.kept()])
    assert evaluator.pictures(Named(1001), "val").keys() == {"reliability", "worst"}


def test_error_of_each_class() -> None:
    logits = torch.eye(3)[[0, 0, 1, 2, 2, 2]]
    labels = torch.tensor([0, 1, 1, 1, 0, 0])
    task = Classification(num_classes=4)
    evaluator = task.evaluator()
    evaluator.update(
        F.pad(logits, (0, 1)), ClassificationBatch(logits, labels, torch.arange(len(labels)))
    )
    report = evaluator.report(Named(4))
    errors = {name: (of["error"], of["samples"]) for name, of in report["per_class"].items()}
    assert errors == {
        "$0$": (pytest.approx(200 / 3, abs=1e-4), 3),
        "$1$": (pytest.approx(200 / 3, abs=1e-4), 3),
        "$2$ (n0002)": (None, 0),
        "$2$ (n0003)": (None, 0),
    }


def test_the_worst_of_all_processes() -> None:
    task, batch = Classification(num_classes=CLASSES), batch_of()
    alone, shared = task.evaluator(), [task.evaluator() for _ in range(3)]
    alone.update(batch.images, batch)
    alone.merge([alone.kept()])
    for evaluator, part in zip(shared, parts(batch, 32), strict=False):  # one has no batch at all
        evaluator.update(part.images, part)
    kept = [evaluator.kept() for evaluator in shared]
    assert kept[2] == []
    for evaluator in shared:
        evaluator.merge(kept)
        assert [m[1:4] for m in evaluator.mistakes] == [m[1:4] for m in alone.mistakes]
    assert len(alone.mistakes) == 16


def test_it_is_an_evaluator_that_shows() -> None:
    evaluator = Classification(num_classes=CLASSES).evaluator()
    assert isinstance(evaluator, Showing)
    batch = batch_of()
    evaluator.update(batch.images, batch)
    evaluator.merge([evaluator.kept()])
    for source in (Named(), Named(pictures=False)):
        pictures = evaluator.pictures(source, "val")
        assert pictures.keys() == {"confusion", "reliability", "worst"}
        assert all(p.dtype == np.uint8 and p.ndim == 3 for p in pictures.values())


def test_nothing_is_wrong() -> None:
    evaluator = Classification(num_classes=3).evaluator()
    evaluator.update(
        torch.eye(3), ClassificationBatch(torch.eye(3), torch.arange(3), torch.arange(3))
    )
    evaluator.merge([evaluator.kept()])
    assert evaluator.pictures(Named(3), "val").keys() == {"confusion", "reliability"}


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_are_shown_as_they_were_before_the_normalisation(channels: int) -> None:
    source = Named()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (32, channels, 8, 8), generator=generator, dtype=torch.uint8)
    transform = source.transform(
        image_size=8, channels=3, device=torch.device("cpu"), channels_last=True
    )
    batch = transform(ClassificationBatch(images, torch.arange(32) % CLASSES, torch.arange(32)))
    task = Classification(num_classes=CLASSES)
    [(name, picture)] = task.pictures(batch, source).items()
    assert name == "samples"
    scale = CELL // 8
    first = picture[GAP : GAP + CELL : scale, GAP : GAP + CELL : scale]
    assert (first == images[0].permute(1, 2, 0).expand(8, 8, 3).numpy()).all()
    mixed = batch._replace(labels=shares_of(32))
    assert task.pictures(mixed, source)["samples"].shape[0] > picture.shape[0]  # a second line
    assert shares(torch.tensor([0.3, 0.0, 0.7]), ["a", "b", "c"]) == ["c, 70 %", "a, 30 %"]
    assert shares(torch.tensor([0.001, 0.999]), ["a", "b"]) == ["b, 100 %"]


def test_auto_weights_make_classes_weigh_alike() -> None:
    """Nine of one class weigh as much as one of the other; a class that never comes, nothing."""
    task = Classification(num_classes=3, class_weights="auto", class_counts=(9, 1, 0))
    assert task.class_weights is not None
    assert task.class_weights.tolist() == pytest.approx([10 / 27, 10 / 3, 0])
    with pytest.raises(ConfigError, match=r"the data have no counts; task\.class_weights"):
        Classification(num_classes=3, class_weights="auto")
    with pytest.raises(ConfigError, match="class_weights=balanced"):
        Classification(num_classes=3, class_weights="balanced", class_counts=(1, 1, 1))
