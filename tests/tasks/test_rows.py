"""Rows of samples give the evaluators' own figures; several networks' predictions, by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

from cvtrain.data.batch import BoxBatch, ClassificationBatch, DataInfo, DetectionBatch, LabelsBatch
from cvtrain.errors import ConfigError
from cvtrain.models.detection.nms import suppress
from cvtrain.tasks.base import Metric, Task
from cvtrain.tasks.classification import Classification
from cvtrain.tasks.detection import Detection
from cvtrain.tasks.ensemble import Ensemble, Votes
from cvtrain.tasks.heads import Heads
from cvtrain.tasks.localization import Localization
from cvtrain.tasks.rows import Recorded, rows_of

N, K = 40, 6
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 2 * torch.randn(N, K, generator=GENERATOR)
LABELS = torch.randint(K, (N,), generator=GENERATOR)
INFO = DataInfo(
    "x", ("main", "kind"), 3, 8, "", columns={"main": ("no", "yes"), "kind": ("a", "b", "c")}
)


class Given(nn.Module):
    """A network whose outputs are those of the samples that images name."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, ids: Any) -> Any:
        if isinstance(self.outputs, dict):
            return {name: value[ids] for name, value in self.outputs.items()}
        return self.outputs[ids]


def corners(count: int) -> torch.Tensor:
    low = 0.4 * torch.rand(count, 2, generator=GENERATOR)
    return torch.cat([low, low + 0.2 + 0.4 * torch.rand(count, 2, generator=GENERATOR)], 1)


BOXES = corners(N)
CODES = torch.cat([(BOXES[:, :2] + BOXES[:, 2:]) / 2, BOXES[:, 2:] - BOXES[:, :2]], 1)
CODES = CODES + 0.06 * torch.randn(N, 4, generator=GENERATOR)
COLUMNS = torch.stack([LABELS % 2, LABELS % 3], 1)
COLUMNS[::5, 1] = -1
HEADS = {"main": LOGITS[:, :1], "kind": LOGITS[:, 1:4]}

CASES: dict[str, tuple[Task, nn.Module, Any]] = {
    "classification": (
        Classification(num_classes=K),
        Given(LOGITS),
        lambda i: ClassificationBatch(i, LABELS[i], i),
    ),
    "weighted": (
        Classification(num_classes=K, class_weights=[1.0, 2, 3, 4, 5, 6]),
        Given(LOGITS),
        lambda i: ClassificationBatch(i, LABELS[i], i),
    ),
    "rejecting": (
        Classification(num_classes=K, reject_logit=0.5),
        Given(LOGITS),
        lambda i: ClassificationBatch(i, LABELS[i], i),
    ),
    "localization": (
        Localization(num_classes=K),
        Given(torch.cat([LOGITS + 4 * torch.eye(K)[LABELS], CODES], 1)),
        lambda i: BoxBatch(i, LABELS[i], BOXES[i], i),
    ),
    "heads": (Heads(info=INFO), Given(HEADS), lambda i: LabelsBatch(i, COLUMNS[i], i)),
}


def seen(task: Task, model: nn.Module, batch: Any, keeper: Any, size: int) -> Any:
    recorded = Recorded(task, [keeper])
    evaluator = recorded.evaluator()
    for ids in torch.arange(N).flip(0).split(size):
        evaluator.update(recorded.predict(model, batch(ids)), batch(ids))
    return evaluator


@pytest.mark.parametrize("size", [N, 7])
@pytest.mark.parametrize("case", CASES)
def test_rows_have_the_evaluators_figures(case: str, size: int) -> None:
    task, model, batch = CASES[case]
    rows = rows_of(task)
    assert rows is not None
    evaluator = seen(task, model, batch, rows, size)
    rows.finish(evaluator)
    figures = evaluator.compute()
    assert rows.ids == list(range(N))
    found = dict(zip(rows.names, rows(np.ones(N)), strict=True))
    assert found == pytest.approx({name: figures[name] for name in rows.names}, rel=1e-5)
    assert ("loss" in found) == (case in ("classification", "rejecting"))
    assert task.primary.name in found
    if rows.wrong is not None:
        assert 100 * rows.wrong.mean() == pytest.approx(figures[task.primary.name])
    assert all(len(column) == N for column in rows.columns([*"abcdef"]).values())


def test_a_sample_that_counts_twice() -> None:
    """As often as it counts: the figures of a batch in which it comes as often."""
    for case in ("classification", "localization", "heads"):
        task, model, batch = CASES[case]
        rows, evaluator = rows_of(task), task.evaluator()
        assert rows is not None
        rows.finish(seen(task, model, batch, rows, N))
        counts = np.arange(N) % 3
        ids = torch.arange(N).repeat_interleave(torch.from_numpy(counts))
        evaluator.update(task.predict(model, batch(ids)), batch(ids))
        figures = evaluator.compute()
        found = dict(zip(rows.names, rows(counts.astype(float)), strict=True))
        assert found == pytest.approx({name: figures[name] for name in rows.names}, rel=1e-5)


def test_what_does_not_count_is_an_empty_cell() -> None:
    task, model, batch = CASES["heads"]
    rows = rows_of(task)
    assert rows is not None
    rows.finish(seen(task, model, batch, rows, N))
    table = rows.columns(())
    assert table["kind_label"][0] is table["kind_loss"][0] is table["kind_correct"][0] is None
    assert table["kind_label"][1] == "abc"[int(LABELS[1]) % 3]
    assert set(table["main_prediction"]) == {"no", "yes"}
    assert rows.wrong is None  # two heads, and one of them has samples that do not count


def test_a_users_own_task_has_no_rows() -> None:
    class Own(Task):
        primary = Metric("x", higher_is_better=False)

    assert rows_of(Own()) is None
    with pytest.raises(ConfigError, match="Own has no ensemble"):
        Votes(Own(), [0])


# Several networks


def together(case: str, *models: tuple[nn.Module, list[int]]) -> tuple[Ensemble, Any]:
    task, _, batch = CASES[case]
    members = []
    for model, order in models:
        votes = Votes(task, order)
        seen(task, model, batch, votes, 7)
        members.append(votes.finish())
    return Ensemble(members, suppress), batch


def test_probabilities_are_averaged_in_the_first_ones_order() -> None:
    order = [3, 0, 5, 1, 2, 4]  # of each class of the first its number in the second
    other = 2 * torch.randn(N, K, generator=GENERATOR)
    ensemble, batch = together(
        "classification", (Given(LOGITS), list(range(K))), (Given(other), order)
    )
    ids = torch.tensor([5, 0, 31])
    found = ensemble.predict(nn.Identity(), batch(ids)).softmax(1)
    expected = (LOGITS[ids].softmax(1) + other[ids].softmax(1)[:, order]) / 2
    torch.testing.assert_close(found, expected)


def test_one_network_alone_is_what_it_was() -> None:
    for case in ("classification", "localization", "heads"):
        task, model, batch = CASES[case]
        ensemble, _ = together(case, (model, list(range(K))))
        ids = torch.arange(N)
        alone, figures = task.evaluator(), ensemble.evaluator()
        alone.update(task.predict(model, batch(ids)), batch(ids))
        figures.update(ensemble.predict(nn.Identity(), batch(ids)), batch(ids))
        assert figures.compute() == pytest.approx(alone.compute(), rel=1e-4)


def test_heads_are_averaged_one_by_one() -> None:
    other = {"main": -HEADS["main"] + 1, "kind": HEADS["kind"].flip(1)}
    ensemble, batch = together("heads", (Given(HEADS), []), (Given(other), []))
    found = ensemble.predict(nn.Identity(), batch(torch.arange(N)))
    main = (HEADS["main"].sigmoid() + other["main"].sigmoid()) / 2
    kind = (HEADS["kind"].softmax(1) + other["kind"].softmax(1)) / 2
    torch.testing.assert_close(found["main"].sigmoid(), main)
    torch.testing.assert_close(found["kind"].softmax(1), kind)


def test_boxes_of_images_of_other_sizes_meet_in_the_files_pixels() -> None:
    """A file of 100x200 that one network sees at its size, the other at half of it."""
    task = Detection(num_classes=2)
    members, batches = [], []
    for scale, order, rows in (
        (1.0, [0, 1], [([20, 30, 60, 70], 1, 0.6), ([100, 10, 150, 60], 2, 0.5)]),
        (0.5, [1, 0], [([10, 15, 30, 35], 2, 0.9), ([1, 1, 9, 9], 1, 0.2)]),
    ):
        image = torch.zeros(3, int(100 * scale), int(200 * scale))
        truth = {"size": torch.tensor([100, 200]), "boxes": torch.zeros(0, 4), "labels": []}
        batch = DetectionBatch([image], [], [truth], None, torch.tensor([4]))
        found = {
            "boxes": torch.tensor([row[0] for row in rows], dtype=torch.float32),
            "labels": torch.tensor([row[1] for row in rows]),
            "scores": torch.tensor([row[2] for row in rows]),
        }
        votes = Votes(task, order)
        votes.add([found], batch)
        members.append(votes.finish())
        batches.append(batch)
    [one] = Ensemble(members, suppress).predict(nn.Identity(), batches[0])
    assert one["labels"].tolist() == [1, 2, 2]
    assert one["scores"].tolist() == pytest.approx([0.9, 0.5, 0.2])
    boxes = torch.tensor([[20, 30, 60, 70], [100, 10, 150, 60], [2, 2, 18, 18.0]])
    assert box_iou(one["boxes"], boxes).diagonal().tolist() == pytest.approx([1, 1, 1])
    [small] = Ensemble(members, suppress).predict(nn.Identity(), batches[1])
    torch.testing.assert_close(small["boxes"], one["boxes"] / 2)
