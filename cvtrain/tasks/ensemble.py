"""Several networks as one: their probabilities averaged, or their boxes brought together."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvtrain.errors import ConfigError
from cvtrain.tasks.base import Evaluator, Task
from cvtrain.tasks.classification import Classification
from cvtrain.tasks.detection import Detection
from cvtrain.tasks.detection_evaluator import DetectionEvaluator, WithLosses
from cvtrain.tasks.detection_mirror import IOU, MOST
from cvtrain.tasks.heads import Heads
from cvtrain.tasks.localization import Localization, Prediction

MERGES = ("nms", "soft")
LEAST = 1e-300  # of a probability whose logarithm is taken


class Votes:
    """What one network says of each sample, in the classes' order of the first network.

    `order` is, of each class of the first network, the number that it has in this one.
    """

    def __init__(self, task: Task, order: Sequence[int]) -> None:
        if not isinstance(task, Classification | Localization | Heads | Detection):
            what = f"{type(task).__name__} has no ensemble"
            raise ConfigError(what, "run=[...]", "type one run")
        self.task, self.order = task, torch.tensor(order)
        self.parts: list[tuple[Tensor, dict[str, Tensor]]] = []
        self.found: dict[int, dict[str, Tensor]] = {}  # of detection, in pixels of the file
        self.ids, self.shares = torch.zeros(0), dict[str, Tensor]()

    def add(self, predictions: Any, batch: Any) -> None:
        if isinstance(self.task, Detection):
            self._add_boxes(predictions, batch)
            return
        shares = {name: value.cpu() for name, value in self.shared(predictions).items()}
        self.parts.append((batch.ids.cpu(), shares))

    def shared(self, predictions: Any) -> dict[str, Tensor]:
        """float64 `[N, ...]`: what is to be averaged."""
        if isinstance(self.task, Heads):
            return {name: _shares(logits) for name, logits in predictions.items()}
        logits = predictions.logits if isinstance(predictions, Prediction) else predictions
        shares = {"classes": _shares(logits)[:, self.order.to(logits.device)]}
        if isinstance(predictions, Prediction):
            shares["codes"] = predictions.codes.double()
        return shares

    def _add_boxes(self, predictions: Any, batch: Any) -> None:
        found = predictions.found if isinstance(predictions, WithLosses) else predictions
        numbers = torch.zeros(len(self.order) + 1, dtype=torch.int64)
        numbers[self.order + 1] = torch.arange(1, len(self.order) + 1)
        for number, one, image, truth in zip(
            batch.ids.tolist(), found, batch.images, batch.truths, strict=True
        ):
            scale = _scale(image, truth)
            self.found[number] = {
                "boxes": one["boxes"].cpu().double() * scale,
                "labels": numbers[one["labels"].cpu()],
                "scores": one["scores"].cpu(),
            }

    def finish(self) -> "Votes":
        """Into the order of the samples' ids."""
        if self.parts:
            ids = torch.cat([part for part, _ in self.parts])
            order = ids.argsort()
            self.ids = ids[order]
            self.shares = {
                name: torch.cat([shares[name] for _, shares in self.parts])[order]
                for name in self.parts[0][1]
            }
            self.parts = []
        return self


def _scale(image: Tensor, truth: dict[str, Any]) -> Tensor:
    """float64 `[4]`: from the pixels of the network's image to those of the file."""
    height, width = (int(side) for side in truth["size"])
    across, down = width / image.shape[-1], height / image.shape[-2]
    return torch.tensor([across, down, across, down], dtype=torch.float64)


class Ensemble(Task):
    """The first network's task, whose predictions are the members' mean; no network is run.

    Boxes are brought together class by class, by `suppress`, which gives the places and scores of
    what stays: NMS keeps the surest of those that overlap, Soft-NMS lets the others lose score.
    """

    def __init__(self, members: Sequence[Votes], suppress: Any, merge: str = "nms") -> None:
        if merge not in MERGES:
            raise ConfigError(f"merge={merge}", "", f"type merge={' or merge='.join(MERGES)}")
        self.first, self.members = copy.copy(members[0].task), members
        self.suppress, self.method = suppress, "hard" if merge == "nms" else "linear"
        self.primary = self.first.primary
        if isinstance(self.first, Classification):
            self.first.reject_logit = None  # the mean is of probabilities that add up to 1
        if isinstance(self.first, Detection) and self.first.masks:
            what = "masks of several networks are not brought together"
            raise ConfigError(what, "run=[...]", "type task.masks=false to measure boxes alone")
        self.shares = {
            name: torch.stack([member.shares[name] for member in members]).mean(0)
            for name in members[0].shares
        }

    def evaluator(self) -> Evaluator:
        if isinstance(self.first, Detection):
            return DetectionEvaluator(self.first.num_classes, voc=self.first.voc, masks=False)
        return self.first.evaluator()

    def predict(self, model: nn.Module, batch: Any) -> Any:
        if isinstance(self.first, Detection):
            triples = zip(batch.ids.tolist(), batch.images, batch.truths, strict=True)
            return [self._together(*triple) for triple in triples]
        rows = torch.searchsorted(self.members[0].ids, batch.ids.cpu())
        device = batch.ids.device
        shares = {name: value[rows].to(device) for name, value in self.shares.items()}
        if isinstance(self.first, Heads):
            return {name: _logits(share) for name, share in shares.items()}
        logits = shares["classes"].clamp(min=LEAST).log().float()
        if isinstance(self.first, Localization):
            return Prediction(logits, shares["codes"].float())
        return logits

    def _together(self, number: int, image: Tensor, truth: dict[str, Any]) -> dict[str, Tensor]:
        found = [member.found[number] for member in self.members]
        boxes, labels, scores = (
            torch.cat([one[name] for one in found]) for name in ("boxes", "labels", "scores")
        )
        places, rescored = self.suppress(boxes, scores, labels, method=self.method, iou=IOU)
        places, rescored = places[:MOST], rescored[:MOST]
        inside = (boxes[places] / _scale(image, truth)).float()
        together = {"boxes": inside, "labels": labels[places], "scores": rescored}
        return {name: value.to(image.device) for name, value in together.items()}


def _shares(logits: Tensor) -> Tensor:
    """float64: probabilities of logits `[N, K]`, or of class 1 of `[N, 1]`."""
    logits = logits.double()
    return logits.softmax(1) if logits.shape[1] > 1 else logits.sigmoid()


def _logits(share: Tensor) -> Tensor:
    """float32, of a head's probabilities `[N, K]`, or `[N, 1]` of class 1."""
    logarithm = share.clamp(min=LEAST).log()
    if share.shape[1] == 1:
        logarithm = logarithm - (1 - share).clamp(min=LEAST).log()
    return logarithm.float()
