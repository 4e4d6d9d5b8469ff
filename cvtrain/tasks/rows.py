"""Of each sample what was predicted and how wrong it is; and the figures of resampled samples."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cvtrain.data.batch import ClassificationBatch
from cvtrain.metrics.detection_mistakes import FALSE, IGNORED, match
from cvtrain.metrics.detections import Detections
from cvtrain.metrics.resample_map import ResampledMap
from cvtrain.metrics.topk import topk_missed
from cvtrain.tasks.base import Evaluator, Task
from cvtrain.tasks.classification import Classification
from cvtrain.tasks.detection import Detection
from cvtrain.tasks.detection_evaluator import DetectionEvaluator
from cvtrain.tasks.heads import Heads
from cvtrain.tasks.heads_config import Column
from cvtrain.tasks.localization import Localization, as_classified

Floats = NDArray[np.float64]
COLUMNS = ("label", "prediction", "probability", "loss", "wrong")  # of a head
SURE = 0.3  # the score from which a detection counts in a row of its image


Gather = Callable[[Any], list[Any]]  # a value of every process


class Keeper(Protocol):
    """What looks on while a network is evaluated."""

    def add(self, predictions: Any, batch: Any) -> None: ...


class Recorded(Task):
    """A task that is evaluated as ever while keepers look on."""

    def __init__(self, task: Task, keepers: Sequence[Keeper]) -> None:
        self.task, self.keepers = task, keepers

    def predict(self, model: nn.Module, batch: Any) -> Any:
        predictions = self.task.predict(model, batch)
        for keeper in self.keepers:
            keeper.add(predictions, batch)
        return predictions

    def evaluator(self) -> Evaluator:
        return self.task.evaluator()


class Rows(Keeper, Protocol):
    names: tuple[str, ...]  # of the figures

    def finish(self, evaluator: Any, gather: Gather = lambda mine: [mine]) -> None:
        """Once all is added, on every process: into the order of the samples' ids."""

    @property
    def ids(self) -> list[int]: ...

    @property
    def wrong(self) -> NDArray[np.bool_] | None:
        """`[N]`, where the primary figure is the share of those that are."""

    @property
    def size(self) -> int:
        """How many numbers each call touches."""

    def __call__(self, counts: Floats) -> Floats:
        """The figures `[F]` where each sample counts so often, `[N]`."""

    def columns(self, classes: Sequence[str]) -> dict[str, list[Any]]:
        """Of a table with a row for each sample; None is not known."""


class _Table:
    """Columns `[N]`, batch by batch on the device; afterwards arrays in the order of the ids."""

    def __init__(self) -> None:
        self.parts: list[dict[str, Tensor]] = []
        self.values: dict[str, NDArray[Any]] = {}

    def finish(self, evaluator: Any, gather: Gather = lambda mine: [mine]) -> None:
        mine = [{name: column.cpu() for name, column in part.items()} for part in self.parts]
        parts = [part for of_one in gather(mine) for part in of_one]
        names = parts[0] if parts else {}
        together = {name: torch.cat([part[name] for part in parts]) for name in names}
        order = together["id"].argsort() if together else None
        self.values = {name: column[order].numpy() for name, column in together.items()}
        self.parts = []

    @property
    def ids(self) -> list[int]:
        return self.values["id"].tolist()

    @property
    def size(self) -> int:
        return len(self.values["id"])

    def mean(self, name: str, counts: Floats) -> float:
        return float(counts @ self.values[name].astype(np.float64) / counts.sum())


class ClassificationRows(_Table):
    names: tuple[str, ...] = ("top1_err", "top5_err")

    def __init__(self, task: Classification) -> None:
        super().__init__()
        self.task = task
        if task.class_weights is None and not task.label_smoothing:
            self.names = ("loss", *self.names)  # a mean of what the samples' rows say

    def add(self, logits: Any, batch: Any) -> None:
        self.parts.append({"id": batch.ids, **self.judged(logits, batch)})

    def judged(self, logits: Tensor, batch: ClassificationBatch) -> dict[str, Tensor]:
        logarithms = self.task.rejecting(logits).log_softmax(1)
        predicted = logits.argmax(1)
        return {
            "label": batch.labels,
            "prediction": predicted,
            "probability": logarithms.gather(1, predicted[:, None])[:, 0].exp(),
            "loss": -logarithms.gather(1, batch.labels[:, None])[:, 0],
            "top1": topk_missed(logits, batch.labels, 1),
            "top5": topk_missed(logits, batch.labels, 5),
        }

    @property
    def wrong(self) -> NDArray[np.bool_]:
        return self.values["top1"]

    def __call__(self, counts: Floats) -> Floats:
        means = {
            "loss": self.mean("loss", counts),
            "top1_err": 100 * self.mean("top1", counts),
            "top5_err": 100 * self.mean("top5", counts),
        }
        return np.array([means[name] for name in self.names])

    def columns(self, classes: Sequence[str]) -> dict[str, list[Any]]:
        values = self.values
        return {
            "label": [classes[label] for label in values["label"].tolist()],
            "prediction": [classes[label] for label in values["prediction"].tolist()],
            "probability": values["probability"].tolist(),
            "loss": values["loss"].tolist(),
            "correct": [int(not wrong) for wrong in values["top1"].tolist()],
        }


class LocalizationRows(ClassificationRows):
    def __init__(self, task: Localization) -> None:
        super().__init__(task.classes)
        self.localization, self.names = task, ("top1_err", "loc_err", "iou")

    def add(self, prediction: Any, batch: Any) -> None:
        judged = self.localization.judge(prediction, batch)
        columns = self.judged(prediction.logits, as_classified(batch))
        own = {"iou": judged.iou, "missed": ~judged.located}
        self.parts.append({"id": batch.ids, **columns, **own})

    @property
    def wrong(self) -> NDArray[np.bool_]:
        return self.values["missed"]

    def __call__(self, counts: Floats) -> Floats:
        return 100 * np.array([self.mean(name, counts) for name in ("top1", "missed", "iou")])

    def columns(self, classes: Sequence[str]) -> dict[str, list[Any]]:
        located = [int(not missed) for missed in self.values["missed"].tolist()]
        own = {"iou": self.values["iou"].tolist(), "located": located}
        return {**super().columns(classes), **own}


class HeadsRows(_Table):
    def __init__(self, task: Heads) -> None:
        super().__init__()
        self.heads = task.columns
        self.names = ("err", *(f"{name}_err" for name in self.heads))

    def add(self, predictions: Any, batch: Any) -> None:
        row = {"id": batch.ids}
        for name, column in self.heads.items():
            logits, targets = predictions[name], column.targets(batch.labels)
            row[f"{name}/label"] = targets
            row[f"{name}/prediction"] = column.predicted(logits)
            row[f"{name}/probability"] = probability(column, logits)
            row[f"{name}/loss"] = column.losses(logits, targets)
            row[f"{name}/wrong"] = column.wrong(logits, targets)
        self.parts.append(row)

    @property
    def wrong(self) -> NDArray[np.bool_] | None:
        """Of one head, if every sample counts for it."""
        [name, *others] = self.heads
        alone = not others and bool((self.values[f"{name}/label"] >= 0).all())
        return self.values[f"{name}/wrong"] if alone else None

    def __call__(self, counts: Floats) -> Floats:
        errors, weights = [], []
        for name, column in self.heads.items():
            count = counts @ (self.values[f"{name}/label"] >= 0)
            wrong = counts @ self.values[f"{name}/wrong"]
            errors.append(100 * wrong / count if count else np.nan)
            weights.append(column.weight if count else 0.0)
        if not any(weights):
            weights = [float(np.isfinite(error)) for error in errors]
        total = np.nansum(np.multiply(errors, weights)) / max(sum(weights), 1e-300)
        return np.array([total, *errors])

    def columns(self, classes: Sequence[str]) -> dict[str, list[Any]]:
        table: dict[str, list[Any]] = {}
        for name, column in self.heads.items():
            of = {key: self.values[f"{name}/{key}"].tolist() for key in COLUMNS}
            known = [label >= 0 for label in of["label"]]
            named = [column.classes[label] for label in of["label"]]
            table[f"{name}_label"] = _where(known, named)
            table[f"{name}_prediction"] = [column.classes[label] for label in of["prediction"]]
            table[f"{name}_probability"] = of["probability"]
            table[f"{name}_loss"] = _where(known, of["loss"])
            table[f"{name}_correct"] = _where(known, [int(not wrong) for wrong in of["wrong"]])
        return table


def _where(known: list[bool], values: list[Any]) -> list[Any]:
    return [value if here else None for here, value in zip(known, values, strict=True)]


def probability(column: Column, logits: Tensor) -> Tensor:
    """`[N]`: of what a head predicts."""
    if column.outputs > 1:
        return logits.softmax(1).amax(1)
    return logits[:, 0].abs().sigmoid()


class DetectionRows:
    """The evaluator keeps what there is of each image."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ResampledMap.names
        self.wrong: NDArray[np.bool_] | None = None
        self.detections = Detections()
        self.resampled: ResampledMap | None = None
        self.classes: list[str] = []

    def add(self, predictions: Any, batch: Any) -> None:
        pass

    def finish(self, evaluator: DetectionEvaluator, gather: Gather = lambda mine: [mine]) -> None:
        self.detections, self.classes = evaluator.detections, evaluator.names

    @property
    def ids(self) -> list[int]:
        return sorted(self.detections.images)

    @property
    def figures(self) -> ResampledMap:
        if self.resampled is None:  # not before it is asked for: it matches everything
            self.resampled = ResampledMap(self.detections, self.classes)
        return self.resampled

    @property
    def size(self) -> int:
        return self.figures.size

    def __call__(self, counts: Floats) -> Floats:
        return self.figures(counts)

    def columns(self, classes: Sequence[str]) -> dict[str, list[Any]]:
        """At an IoU of 0.5, of detections that are SURE; of all objects but the excused ones."""
        table: dict[str, list[Any]] = {}
        for number in self.ids:
            record = self.detections.images[number]
            hits = match(record)[record.scores >= SURE]
            row = {
                "objects": int((~record.crowd & ~record.difficult).sum()),
                "detections": len(hits),
                "hits": int((hits >= 0).sum()),
                "false": int((hits == FALSE).sum()),
                "excused": int((hits == IGNORED).sum()),
            }
            row["missed"] = row["objects"] - row["hits"]
            for name, value in row.items():
                table.setdefault(name, []).append(value)
        return table


def rows_of(task: Task) -> Rows | None:
    """None of a task whose predictions are not known here."""
    if isinstance(task, Localization):
        return LocalizationRows(task)
    if isinstance(task, Classification):
        return ClassificationRows(task)
    if isinstance(task, Heads):
        return HeadsRows(task)
    return DetectionRows() if isinstance(task, Detection) else None
