"""Class and box: sums and counts against arithmetic by hand, torch and torchvision."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import command, metrics, summary
from torch import Tensor, nn
from torchvision.ops import box_iou

from cvtrain.data.batch import BoxBatch, DataInfo
from cvtrain.data.source import Source
from cvtrain.engine.window import mean_loss
from cvtrain.errors import ConfigError
from cvtrain.metrics.boxes import decode, draw_boxes, encode, overlap
from cvtrain.tasks.base import Showing
from cvtrain.tasks.localization import Localization

CLASSES = 5
INFO = DataInfo("boxed", tuple("abcde"), 1, 8, "")


def batch_of(count: int = 64) -> BoxBatch:
    """Outputs in place of images: the network is the identity. Boxes are off by a little."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, 2, generator=generator).sort(1).values.flatten(1)
    near = encode(corners) + 0.05 * torch.randn(count, 4, generator=generator)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    logits = torch.randn(count, CLASSES, generator=generator) + 2 * F.one_hot(labels, CLASSES)
    return BoxBatch(torch.cat([logits, near], 1), labels, corners, torch.arange(count))


def parts(batch: BoxBatch, size: int) -> list[BoxBatch]:
    return [BoxBatch(*c) for c in zip(*(c.split(size) for c in batch), strict=True)]


# By hand: squares of an image; the second is half as wide as it should be, the third far off.
TRUE = [[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 0.4, 0.4], [0.2, 0.2, 0.4, 0.6]]
CODES = [
    [0.25, 0.25, 0.5, 0.5],
    [0.625, 0.75, 0.25, 0.5],
    [0.8, 0.8, 0.4, 0.4],
    [0.3, 0.4, 0.2, 0.4],
]
IOU = [1.0, 0.5, 0.0, 1.0]
RIGHT = [True, True, True, False]
LABELS = [0, 1, 2, 3]
LOGITS = [[3.0, 0, 0, 0, 0], [0, 3.0, 0, 0, 0], [0, 0, 3.0, 0, 0], [3.0, 0, 0, 0, 0]]


def by_hand() -> BoxBatch:
    outputs = torch.cat([torch.tensor(LOGITS), torch.tensor(CODES)], 1)
    return BoxBatch(outputs, torch.tensor(LABELS), torch.tensor(TRUE), torch.arange(4))


def smooth_l1(distance: float, beta: float) -> float:
    """Girshick 2015, equation 3, with the turn at beta."""
    return 0.5 * distance**2 / beta if distance < beta else distance - 0.5 * beta


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.1), (4.0, 1.0), (2.0, 0.2)])
def test_losses_by_hand(alpha: float, beta: float) -> None:
    task = Localization(num_classes=CLASSES, alpha=alpha, beta=beta)
    pairs = task.losses(nn.Identity(), by_hand())
    figures = {name: (total.item(), count.item()) for name, (total, count) in pairs.items()}
    fits, misses = -math.log(math.e**3 / (math.e**3 + 4)), -math.log(1 / (math.e**3 + 4))
    assert figures["loss"] == (pytest.approx(3 * fits + misses, rel=1e-6), 4)
    # The second: 0.125 in x, 0.25 in width. The third: 0.6 in x and y.
    apart = [smooth_l1(d, beta) for d in (0.125, 0.25, 0.6, 0.6)]
    assert figures["box"] == (pytest.approx(alpha * sum(apart), rel=1e-5), 4)
    assert figures["top1_err"] == (100, 4)
    assert figures["loc_err"] == (200, 4)  # an IoU of 0.5 is enough
    assert figures["iou"] == (pytest.approx(100 * sum(IOU)), 4)


def test_figures_by_hand() -> None:
    task = Localization(num_classes=CLASSES)
    evaluator = task.evaluator()
    evaluator.update(task.predict(nn.Identity(), by_hand()), by_hand())
    pairs = task.losses(nn.Identity(), by_hand())
    means = {name: (total / count).item() for name, (total, count) in pairs.items()}
    assert evaluator.compute() == {
        "loss": pytest.approx(means["loss"] + means["box"], rel=1e-6),
        "box": pytest.approx(means["box"], rel=1e-6),
        "top1_err": 25,
        "loc_err": 50,
        "iou": pytest.approx(62.5),
    }
    assert Localization.primary.name in evaluator.compute()


def test_a_network_gives_four_more_than_classes() -> None:
    assert Localization.outputs(INFO, {}) == 9


# Boxes


def test_overlap_is_torchvisions() -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = (
        torch.rand(50, 2, 2, generator=generator).sort(1).values.flatten(1) for _ in range(2)
    )
    expected = torch.stack([box_iou(a[None], b[None])[0, 0] for a, b in zip(first, second)])  # noqa: B905
    torch.testing.assert_close(overlap(first, second), expected)
    torch.testing.assert_close(decode(encode(first)), first)
    assert overlap(torch.zeros(2, 4), torch.zeros(2, 4)).tolist() == [0, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -1e30])
def test_what_is_no_box_overlaps_nothing(value: float) -> None:
    """An infinite box would end the process inside torchvision."""
    batch = by_hand()
    outputs = batch.images.clone()
    outputs[:, CLASSES:] = value
    batch = batch._replace(images=outputs)
    task = Localization(num_classes=CLASSES)
    evaluator = task.evaluator()
    evaluator.update(task.predict(nn.Identity(), batch), batch)
    figures = evaluator.compute()
    assert figures["loc_err"] == 100
    assert figures["iou"] < 30  # at most the image itself
    assert math.isfinite(figures["box"]) == math.isfinite(value)
    evaluator.merge([evaluator.kept()])
    assert evaluator.pictures(Pictured(), "val").keys() == {"confusion", "boxes"}


def test_boxes_are_clipped_to_the_image_and_never_inside_out() -> None:
    codes = torch.tensor([[0.0, 0.0, 1.0, 3.0], [0.5, 0.5, -0.4, 0.2], [2.0, 0.5, 0.2, 0.2]])
    expected = [[0, 0, 0.5, 1], [0.5, 0.4, 0.5, 0.6], [1, 0.4, 1, 0.6]]
    torch.testing.assert_close(decode(codes), torch.tensor(expected))


# One division over any batching


@pytest.mark.parametrize("settings", [{}, {"class_weights": [1.0, 2.0, 0.5, 1.0, 3.0]}])
@pytest.mark.parametrize("size", [64, 7, 1])
def test_accumulated_gradients_are_those_of_the_whole(settings: dict[str, Any], size: int) -> None:
    task, batch, gradients = Localization(num_classes=CLASSES, **settings), batch_of(), []
    for pieces in ([batch], parts(batch, size)):
        layer = nn.Linear(9, 9)
        with torch.no_grad():
            layer.weight.copy_(torch.eye(9))
            layer.bias.zero_()
        counts: dict[str, Tensor] = {}
        for piece in pieces:
            for name, count in task.counts(layer, piece).items():
                counts[name] = counts.get(name, torch.zeros(())) + count
        for piece in pieces:
            mean_loss(task.losses(layer, piece), counts).backward()
        gradients.append(layer.weight.grad)
    assert gradients[0] is not None
    assert (gradients[0].abs().sum(1) > 0).all()  # the classes' rows and the box's
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_counts_are_known_before_the_network_runs() -> None:
    task, batch = Localization(num_classes=CLASSES, class_weights=[1.0, 2, 3, 4, 5]), batch_of()
    pairs, counts = task.losses(nn.Identity(), batch), task.counts(nn.Identity(), batch)
    assert counts.keys() == pairs.keys()
    assert all(torch.equal(counts[name], count) for name, (_, count) in pairs.items())
    batch = batch._replace(images=batch.images.requires_grad_())
    pairs = task.losses(nn.Identity(), batch)
    assert {name for name, (total, _) in pairs.items() if total.requires_grad} == {"loss", "box"}


def evaluated(task: Localization, batch: BoxBatch, size: int) -> dict[str, float]:
    evaluator = task.evaluator()
    for part in parts(batch, size):
        evaluator.update(task.predict(nn.Identity(), part), part)
    return evaluator.compute()


def test_evaluation_does_not_depend_on_the_batching() -> None:
    task, batch = Localization(num_classes=CLASSES, label_smoothing=0.1), batch_of()
    whole = evaluated(task, batch, 64)
    assert 0 < whole["top1_err"] < whole["loc_err"] < 100
    for size in (1, 7, 63):
        split = evaluated(task, batch, size)
        assert all(split[name] == whole[name] for name in ("top1_err", "loc_err"))
        assert split == pytest.approx(whole, rel=1e-6)
    ious = box_iou(decode(batch.images[:, CLASSES:]), batch.boxes).diagonal()
    located = (ious >= 0.5) & (batch.images[:, :CLASSES].argmax(1) == batch.labels)
    assert whole["loc_err"] == 100 * (~located).sum().item() / 64
    assert whole["iou"] == pytest.approx(100 * ious.double().mean().item(), rel=1e-9)


def test_totals_of_processes_add_up() -> None:
    task, batch = Localization(num_classes=CLASSES), batch_of()
    shares = [task.evaluator() for _ in range(3)]  # one without a batch
    for evaluator, part in zip(shares, parts(batch, 40), strict=False):
        evaluator.update(task.predict(nn.Identity(), part), part)
    together = task.evaluator()
    together.totals = {
        n: sum(s.totals[n].double() for s in shares)  # type: ignore[misc]
        for n in shares[0].totals
    }
    assert together.compute() == pytest.approx(evaluated(task, batch, 64), rel=1e-6)
    together.merge([evaluator.kept() for evaluator in shares])
    ious = overlap(decode(batch.images[:, CLASSES:]), batch.boxes)
    assert {row[1] for row in together.rows} == set(ious.topk(16, largest=False).indices.tolist())
    assert [-row[0] for row in together.rows] == sorted(-row[0] for row in together.rows)


# Refusals


@pytest.mark.parametrize(
    "settings", [{"alpha": -1.0}, {"beta": math.nan}, {"class_weights": [1.0]}]
)
def test_numbers_that_make_no_loss(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"task.{next(iter(settings))}"):
        Localization(num_classes=CLASSES, **settings)


def test_auxiliary_heads_find_no_boxes() -> None:
    model = lambda x: (x, x)  # noqa: E731
    with pytest.raises(ConfigError, match=r"type model\.aux=false"):
        Localization(num_classes=CLASSES).losses(model, batch_of())  # type: ignore[arg-type]


# What is shown


class Pictured(Source):
    def __init__(self) -> None:
        self.info, self.mean, self.std = INFO, [0.5], [0.25]

    def image_of(self, index: int, split: str = "val") -> Tensor | None:
        return torch.zeros(1, 20, 20, dtype=torch.uint8) if index else None


def test_the_worst_boxes_are_shown() -> None:
    task, batch = Localization(num_classes=CLASSES), by_hand()
    evaluator = task.evaluator()
    assert isinstance(evaluator, Showing)
    evaluator.update(task.predict(nn.Identity(), batch), batch)
    evaluator.merge([evaluator.kept()])
    assert [row[1] for row in evaluator.rows][:2] == [2, 1]
    pictures = evaluator.pictures(Pictured(), "val")
    assert pictures.keys() == {"confusion", "boxes"}
    row = evaluator.report(Pictured())["per_class"]["d"]
    assert (row["error"], row["samples"]) == (100, 1)
    seen = {tuple(colour) for colour in pictures["boxes"].reshape(-1, 3).tolist()}
    assert {(0, 255, 0), (255, 0, 0)} <= seen


def test_a_box_is_drawn_where_it_is() -> None:
    black = np.zeros((21, 41, 3), np.uint8)
    picture = draw_boxes(black, [[0.25, 0.0, 0.75, 0.5]], ["lime"])
    rows, columns = picture[:, :, 1].nonzero()
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (10, 0, 30, 10)
    assert not black.any()


def test_samples_have_their_true_boxes() -> None:
    images = torch.zeros(2, 1, 21, 21)
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    batch = BoxBatch(images, torch.tensor([0, 4]), boxes, torch.arange(2))
    picture = Localization(num_classes=CLASSES).pictures(batch, Pictured())["samples"]
    assert (picture == [0, 255, 0]).all(2).any()


# Through the command


def test_smoke(tmp_path: Path) -> None:
    data = ("data=shapes_box", "data.size=16", "data.train=16", "data.val=8", "trainer.workers=0")
    words = ("model=cnn", "trainer.accumulate=2", "trainer.ema=0.9", f"data_dir={tmp_path}")
    done = command("debug=smoke", *data, *words, "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told, [first, *_] = summary(tmp_path / "run"), metrics(tmp_path / "run")
    assert {"train/loss", "train/box", "train/loc_err", "train/iou"} <= first.keys()
    assert told["primary"] == "loc_err"
    assert 0 <= told["val/iou"] <= 100
    for name in ("samples", "confusion", "boxes", "curves"):
        assert (tmp_path / "run" / f"{name}.png").exists()
    assert any(line.split()[:1] == ["iou"] and "%" in line for line in done.stdout.splitlines())
