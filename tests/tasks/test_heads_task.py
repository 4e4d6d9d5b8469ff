"""Several heads: sums and counts against arithmetic by hand and torch's own losses."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import command, metrics, summary
from torch import Tensor, nn

from cvtrain.build import build_model, build_parts
from cvtrain.compose import compose_config
from cvtrain.data.batch import DataInfo, LabelsBatch
from cvtrain.data.source import Source
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.summary import parts_of
from cvtrain.engine.window import mean_loss
from cvtrain.errors import ConfigError, DataError
from cvtrain.tasks.base import Head, Showing
from cvtrain.tasks.heads import Heads

COLUMNS = {"main": ("no", "yes"), "level": ("0", "1", "2", "3"), "spare": ("a", "b", "c")}
INFO = DataInfo("table", tuple(COLUMNS), 1, 8, "", columns=COLUMNS)
HEADS: dict[str, Any] = {
    "main": {"classes": 1, "weight": 1.0},
    "level": {"classes": 4, "weight": 0.5, "when": "main"},
}


class Table(nn.Module):
    """The images are the logits: the first of main, then four of level, then three of spare."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"main": x[:, :1], "level": x[:, 1:5], "spare": x[:, 5:], "unused": 0 * x}


def batch_of(count: int = 64) -> LabelsBatch:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, 8, generator=generator)
    labels = torch.stack(
        [torch.randint(-1, len(c), (count,), generator=generator) for c in COLUMNS.values()], 1
    )
    return LabelsBatch(logits, labels, torch.arange(count))


def parts(batch: LabelsBatch, size: int) -> list[LabelsBatch]:
    return [LabelsBatch(*c) for c in zip(*(c.split(size) for c in batch), strict=True)]


# By hand

#          main, level; what counts: main 0,1,2  level 0,1
LABELS = [[1, 2, 0], [1, 0, 0], [0, 3, 0], [-1, 1, 0], [1, -1, 0]]
LOGITS = [
    [2.0, 0, 0, math.log(3), 0, 0, 0, 0],
    [-1.0, 0, math.log(5), 0, 0, 0, 0, 0],
    [1.0, 9, 0, 0, 0, 0, 0, 0],
    [7.0, 9, 0, 0, 0, 0, 0, 0],
    [-3.0, 9, 0, 0, 0, 0, 0, 0],
]
MAIN = [math.log1p(math.exp(-z)) for z in (2.0, -1.0, -1.0, -3.0)]  # -log sigmoid of the truth
LEVEL = [-math.log(3 / 6), -math.log(1 / 8)]
BY_HAND = LabelsBatch(torch.tensor(LOGITS), torch.tensor(LABELS), torch.arange(5))


def test_losses_by_hand() -> None:
    pairs = Heads(info=INFO, heads=HEADS).losses(Table(), BY_HAND)
    assert pairs.keys() == {"main", "main_err", "level", "level_err"}
    sums = {name: (total.item(), count.item()) for name, (total, count) in pairs.items()}
    assert sums["main"] == (pytest.approx(sum(MAIN), rel=1e-6), 4)
    assert sums["main_err"] == (300, 4)
    assert sums["level"] == (pytest.approx(0.5 * sum(LEVEL), rel=1e-6), 2)
    assert sums["level_err"] == (100, 2)


def test_figures_by_hand() -> None:
    task = Heads(info=INFO, heads=HEADS)
    evaluator = task.evaluator()
    evaluator.update(task.predict(Table(), BY_HAND), BY_HAND)
    assert evaluator.compute() == {
        "loss": pytest.approx(sum(MAIN) / 4 + 0.5 * sum(LEVEL) / 2, rel=1e-6),
        "err": pytest.approx((75 + 0.5 * 50) / 1.5),
        "main_err": 75,
        "level_err": 50,
    }


def test_without_when_every_label_counts() -> None:
    pairs = Heads(info=INFO, heads={"level": {}}).losses(Table(), BY_HAND)
    assert pairs["level"][1] == 4
    assert pairs["level"][0].item() == pytest.approx(
        sum(LEVEL) + math.log(math.exp(9) + 3) + math.log(math.exp(9) + 3), rel=1e-6
    )


def test_null_is_a_head_for_each_column() -> None:
    batch = batch_of()
    pairs = Heads(info=INFO).losses(Table(), batch)
    losses = [name for name, (total, _) in pairs.items() if not name.endswith("_err")]
    assert losses == [*COLUMNS]
    logits, labels = Table()(batch.images), batch.labels
    for place, name in ((1, "level"), (2, "spare")):
        expected = F.cross_entropy(logits[name], labels[:, place], ignore_index=-1)
        total, count = pairs[name]
        torch.testing.assert_close(total / count, expected)
    known = labels[:, 0] >= 0
    expected = F.binary_cross_entropy_with_logits(
        logits["main"][known, 0], labels[known, 0].float()
    )
    torch.testing.assert_close(pairs["main"][0] / pairs["main"][1], expected)
    assert Heads.outputs(INFO, {"heads": None}) == {
        "main": Head(1),
        "level": Head(4),
        "spare": Head(3),
    }


def test_two_classes_by_softmax_if_asked() -> None:
    task = Heads(info=INFO, heads={"main": {"classes": 2}, "level": {"when": "main"}})
    model = lambda x: {"main": x[:, :2], "level": x[:, 2:6]}  # noqa: E731
    total, count = task.losses(model, batch := batch_of())["main"]  # type: ignore[arg-type]
    expected = F.cross_entropy(batch.images[:, :2], batch.labels[:, 0], ignore_index=-1)
    torch.testing.assert_close(total / count, expected)


# One division over any batching


@pytest.mark.parametrize("size", [64, 7, 1])
def test_training_does_not_depend_on_the_batching(size: int) -> None:
    """Of single samples many count for no head at all."""
    task, batch = Heads(info=INFO, heads=HEADS), batch_of()
    whole = task.losses(Table(), batch)
    for name, pair in whole.items():
        totals = [task.losses(Table(), part)[name] for part in parts(batch, size)]
        for place in (0, 1):
            together = torch.stack([t[place].float() for t in totals]).sum()
            torch.testing.assert_close(together, pair[place].float())


@pytest.mark.parametrize("size", [64, 7, 1])
def test_accumulated_gradients_are_those_of_the_whole(size: int) -> None:
    task, batch = Heads(info=INFO, heads=HEADS), batch_of()
    gradients = []
    for pieces in ([batch], parts(batch, size)):
        layer = nn.Linear(8, 8)
        with torch.no_grad():
            layer.weight.copy_(torch.eye(8))
            layer.bias.zero_()
        counts: dict[str, Tensor] = {}
        for piece in pieces:
            for name, count in task.counts(layer, piece).items():
                counts[name] = counts.get(name, torch.zeros(())) + count
        for piece in pieces:
            mean_loss(task.losses(nn.Sequential(layer, Table()), piece), counts).backward()
        gradients.append(layer.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
    assert gradients[0].isfinite().all()  # type: ignore[union-attr]


def test_counts_are_known_before_the_network_runs() -> None:
    task, batch = Heads(info=INFO, heads=HEADS), batch_of()
    pairs, counts = task.losses(Table(), batch), task.counts(Table(), batch)
    assert counts.keys() == pairs.keys()
    assert all(torch.equal(counts[name], count) for name, (_, count) in pairs.items())
    carrying = batch._replace(images=batch.images.clone().requires_grad_())
    pairs = task.losses(Table(), carrying)
    assert {name for name, (total, _) in pairs.items() if total.requires_grad} == {"main", "level"}


def evaluated(task: Heads, batch: LabelsBatch, size: int) -> dict[str, float]:
    evaluator = task.evaluator()
    for part in parts(batch, size):
        evaluator.update(task.predict(Table(), part), part)
    return evaluator.compute()


def test_evaluation_does_not_depend_on_the_batching() -> None:
    task, batch = Heads(info=INFO, heads=HEADS), batch_of()
    whole = evaluated(task, batch, 64)
    for size in (1, 7, 63):
        split = evaluated(task, batch, size)
        assert all(split[name] == whole[name] for name in ("main_err", "level_err"))
        assert split == pytest.approx(whole, rel=1e-12)
    pairs = task.losses(Table(), batch)
    means = {name: (total / count).item() for name, (total, count) in pairs.items()}
    assert whole["loss"] == pytest.approx(means["main"] + means["level"], rel=1e-5)
    assert whole["level_err"] == pytest.approx(means["level_err"], rel=1e-5)


def test_totals_of_processes_add_up() -> None:
    task, batch = Heads(info=INFO, heads=HEADS), batch_of()
    shares = [task.evaluator() for _ in range(3)]  # one without a batch
    for evaluator, part in zip(shares, parts(batch, 40), strict=False):
        evaluator.update(task.predict(Table(), part), part)
    together = task.evaluator()
    together.totals = {  # as all_reduce hands them over: float64
        n: sum(s.totals[n].double() for s in shares)  # type: ignore[misc]
        for n in shares[0].totals
    }
    assert together.compute() == pytest.approx(evaluated(task, batch, 64), rel=1e-12)
    matrix = together.matrix("level")
    assert matrix is not None
    counted = (batch.labels[:, 0] == 1) & (batch.labels[:, 1] >= 0)
    expected = np.zeros((4, 4), np.int64)
    for row, label in zip(batch.images[counted, 1:5], batch.labels[counted, 1], strict=True):
        expected[label, row.argmax()] += 1
    assert (matrix == expected).all()
    assert matrix.dtype == np.int64


def test_a_head_that_meets_no_label_has_no_figure() -> None:
    task, batch = Heads(info=INFO, heads=HEADS), batch_of()
    labels = batch.labels.clone()
    labels[:, 0] = 0  # never main: nothing counts for level
    figures = evaluated(task, batch._replace(labels=labels), 7)
    assert figures.keys() == {"loss", "err", "main_err"}
    assert figures["err"] == figures["main_err"]
    labels[:, :] = -1
    with pytest.raises(DataError, match="no evaluated sample counts for main, level"):
        evaluated(task, batch._replace(labels=labels), 7)
    pairs = task.losses(Table(), batch._replace(labels=labels))
    assert all(pair[0] == 0 and pair[1] == 0 for pair in pairs.values())


def test_a_score_that_is_not_a_number_is_wrong() -> None:
    task, batch = Heads(info=INFO, heads=HEADS), batch_of()
    nowhere = batch._replace(images=torch.full_like(batch.images, math.nan))
    figures = evaluated(task, nowhere, 7)
    assert (figures["main_err"], figures["level_err"]) == (100, 100)
    assert math.isnan(figures["loss"])  # which stops the run


# Refusals


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"mian": {}}, r"the data have no column mian; task\.heads\.mian; type main$"),
        ({"colour": {}}, "no column colour; .*; type one of main, level, spare"),
        ({"level": {"classes": 3}}, "3 classes, but the column has 4: 0, 1, 2, 3; .*classes: 4"),
        ({"level": {"classes": 1}}, "1 classes, but the column has 4"),
        ({"level": {"clases": 4}}, r"no key clases of a head; task\.heads\.level; type classes"),
        ({"level": {"classes": "4"}}, "classes: 4; .*a whole number from 1 on"),
        ({"level": {"classes": 4.5}}, r"classes: 4\.5"),
        ({"main": {}, "level": {"when": "spare"}}, "there is no head spare; .*; type one of main"),
        ({"spare": {}, "level": {"when": "spare"}}, "not binary; .*when=spare; leave out when"),
        ({"main": {"when": "main"}}, "cannot wait for itself"),
        ({"main": {}, "level": {"when": ["main"]}}, "there is no head"),
        ({"main": {"weight": -1}}, "weight: -1; .*a number from 0 on"),
        ({"main": {"weight": math.nan}}, "weight: nan"),
        ({"main": {"weight": 0}}, "no head learns anything"),
        ({"main": {"hidden": True}}, "hidden: True"),
        ({"main": {}, "net": {"pretrained": "yes"}}, "pretrained: yes; .*; type pretrained: keep"),
        ({"main": {}, "net": {"pretrained": "keep", "weight": 2}}, "leave out weight"),
        ({"net": {"pretrained": "keep"}}, "no head learns anything"),
        ({"main": 4}, r"task\.heads\.main=4 is no head"),
        (["main"], "has no names of heads"),
    ],
)
def test_what_no_heads_can_be(heads: Any, message: str) -> None:
    for read in (
        lambda: Heads(info=INFO, heads=heads),
        lambda: Heads.outputs(INFO, {"heads": heads}),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            read()
        assert "\n" not in caught.value.line()


def test_data_that_cannot_have_heads() -> None:
    plain = DataInfo("plain", ("a", "b"), 1, 8, "")
    with pytest.raises(ConfigError, match="no columns of labels are known; task=heads"):
        Heads(info=plain)
    for name in ("loss", "lr"):
        with pytest.raises(ConfigError, match="would be taken for others"):
            Heads(info=DataInfo("odd", (name,), 1, 8, "", columns={name: ("a", "b")}))
    clash = {"x": ("a", "b"), "x_err": ("a", "b")}
    with pytest.raises(ConfigError, match="head x_err would be taken for others"):
        Heads(info=DataInfo("odd", tuple(clash), 1, 8, "", columns=clash))


def test_what_a_head_may_be() -> None:
    heads = {
        "main": None,
        "level": {"classes": 6, "hidden": 5, "when": None},
        "imagenet": {"pretrained": "keep"},
        "old": {"pretrained": "keep", "classes": 7},
    }
    assert Heads.outputs(INFO, {"heads": heads}) == {
        "main": Head(1),
        "level": Head(6, 5),
        "imagenet": Head(1000, pretrained=True),
        "old": Head(7, pretrained=True),
    }
    assert Heads(info=INFO, heads=heads).columns["level"].classes == (*"0123", "4", "5")


# What is shown


class Named(Source):
    def __init__(self) -> None:
        self.info, self.mean, self.std = INFO, [0.5], [0.25]


def test_report_and_pictures() -> None:
    task = Heads(info=INFO, heads=HEADS)
    evaluator = task.evaluator()
    assert isinstance(evaluator, Showing)
    evaluator.update(task.predict(Table(), BY_HAND), BY_HAND)
    evaluator.merge([evaluator.kept()])
    report = json.loads(json.dumps(evaluator.report(Named())))["heads"]
    rows = report["main"]["per_class"]
    assert rows["no"] == {"error": 100, "samples": 1, "precision": 0, "recall": 0, "f1": 0}
    assert rows["yes"] == {
        **{"error": 66.6667, "samples": 3},
        **{"precision": 50, "recall": 33.3333, "f1": 40},
    }
    assert report["main"]["samples"] == 4
    assert report["main"]["confusion"] == [[0, 1], [2, 1]]
    assert report["level"]["confusion"] == [[0, 1, 0, 0], [0] * 4, [0, 0, 1, 0], [0] * 4]
    row = report["level"]["per_class"]["3"]
    assert (row["error"], row["samples"]) == (None, 0)
    pictures = evaluator.pictures(Named(), "val")
    assert pictures.keys() == {"confusion_main", "confusion_level"}
    assert all(p.dtype == np.uint8 and p.ndim == 3 for p in pictures.values())


def test_captions_say_what_counts() -> None:
    task = Heads(info=INFO, heads=HEADS)
    captions = [task.caption(labels) for labels in BY_HAND.labels]
    assert captions == [["main yes, level 2"], ["main yes, level 0"], ["main no"], [], ["main yes"]]
    batch = LabelsBatch(torch.rand(5, 1, 8, 8), BY_HAND.labels, torch.arange(5))
    assert task.pictures(batch, Named())["samples"].dtype == np.uint8


def test_curves_show_the_errors_that_err_is_the_mean_of() -> None:
    lines = [{"epoch": 1, "train/main_err": 9}, {"val/err": 5, "val/main_err": 5, "val/loss": 1}]
    assert parts_of("err", lines) == ["val/main_err"]
    assert parts_of("loss", lines) == parts_of("top1_err", lines) == []


# With a real network


def test_a_step_moves_what_it_should() -> None:
    """The kept head stays to the bit; a head that no sample counts for gets no gradient."""
    arguments = [
        *("model=cnn", "data=shapes_labels", "model.widths=[4,8]"),
        "task.heads={main: {hidden: 3}, level: {when: main}, old: {pretrained: keep, classes: 3}}",
    ]
    config, source = compose_config(arguments).config, Source()
    columns = {name: COLUMNS[name] for name in ("main", "level")}
    source.info = DataInfo("table", tuple("abc"), 3, 8, "", columns=columns)
    _, model = build_model(config, source, 8, device=torch.device("cpu"))
    task = Heads(info=source.info, heads=config.task.args["heads"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.1)
    labels = torch.tensor([[0, 1], [-1, 2], [0, 3]])  # never main
    batch = LabelsBatch(torch.rand(3, 3, 8, 8), labels, torch.arange(3))
    pairs = task.losses(model.train(), batch)
    mean_loss(pairs, {name: count for name, (_, count) in pairs.items()}).backward()
    gradients = dict(model.named_parameters())
    assert gradients["fc.level_head.weight"].grad.abs().max() == 0  # type: ignore[union-attr]
    assert gradients["stages.0.0.weight"].grad.abs().max() > 0  # type: ignore[union-attr]
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p.detach(), before[n])}
    assert before.keys() - moved == {"fc.weight", "fc.bias"}


# Through the command

DATA = ("data=shapes_labels", "data.size=16", "data.train=16", "data.val=8")
WORDS = ("debug=smoke", "model=cnn", "trainer.workers=0", *DATA)


def test_smoke(tmp_path: Path) -> None:
    heads = "task.heads={main: {}, level: {weight: 0.5, when: main}}"
    words = (*WORDS, heads, "trainer.accumulate=2", "trainer.ema=0.9", f"data_dir={tmp_path}")
    done = command(*words, "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told, [first, *_] = summary(tmp_path / "run"), metrics(tmp_path / "run")
    assert {"train/main", "train/main_err", "train/level", "train/loss"} <= first.keys()
    assert first["train/loss"] == pytest.approx(first["train/main"] + first["train/level"])
    assert told["primary"] == "err"
    assert 0 <= told["val/main_err"] <= 100
    assert told["heads"]["main"]["samples"] > 0
    assert (tmp_path / "run" / "samples.png").exists()
    assert any(line.split()[:1] == ["err"] and "%" in line for line in done.stdout.splitlines())


def test_a_mistake_in_the_config_has_code_2(tmp_path: Path) -> None:
    words = (*WORDS, "task.heads={mian: {}}", f"data_dir={tmp_path}")
    config = compose_config([*words]).config
    with pytest.raises(
        ConfigError, match=r"no column mian; task\.heads\.mian; type main$"
    ) as caught:
        build_parts(config, device=torch.device("cpu"), ranks=Ranks())
    assert caught.value.code == 2
