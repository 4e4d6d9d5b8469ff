"""Classes as a user may write them, named with `trust=[user_code]`: tasks that meet trouble.

FAULT in the environment says when and what, as `losses 7 SIGTERM`: in the seventh training
micro-batch of this process (with `predict`, evaluation batch) it is sent that signal, as if from
outside; a further number makes that batch last so many seconds. `RAISE` and `DATA-ERROR` in place
of a signal raise instead. With FAULT_RANK only that one of several processes is meant.
"""

import os
import signal
import time
from typing import Any

import torch
from torch import Tensor, nn

from cvtrain.errors import DataError
from cvtrain.tasks.base import Task
from cvtrain.tasks.classification import Classification, ClassificationEvaluator
from cvtrain.tasks.detection import Detection


class Interrupted(Task):
    """During a task a signal arrives, at an exact place."""

    losses_seen = predict_seen = 0

    def losses(self, model: nn.Module, batch: Any) -> dict[str, tuple[Tensor, Tensor]]:
        self.count("losses")
        return super().losses(model, batch)

    def predict(self, model: nn.Module, batch: Any) -> Any:
        self.count("predict")
        return super().predict(model, batch)

    def count(self, what: str) -> None:
        seen = getattr(self, f"{what}_seen") + 1
        setattr(self, f"{what}_seen", seen)
        when, number, name, *seconds = os.environ.get("FAULT", "").split() or ("", "0", "")
        rank = os.environ.get("RANK")
        if (when, int(number)) == (what, seen) and os.environ.get("FAULT_RANK", rank) == rank:
            if name == "RAISE":
                raise ZeroDivisionError("a bug of the user's")
            if name == "DATA-ERROR":
                raise DataError("is cut off", "photos/7.jpg", "mend it", name="BAD-IMAGE")
            if name != "SLEEP":
                os.kill(os.getpid(), signal.Signals[name])
            time.sleep(float(seconds[0]) if seconds else 0)


class Faulty(Interrupted, Classification):
    """One label an image."""


class FaultyDetection(Interrupted, Detection):
    """Boxes."""


class BadDetection(FaultyDetection):
    """In the third step a number of the second image is not finite: `pixel_nan`, `box_inf`, ..."""

    def __init__(self, *, num_classes: int, bad: str, **rest: Any) -> None:
        super().__init__(num_classes=num_classes, **rest)
        self.bad, value = bad.split("_")
        self.value = float(value)

    def losses(self, model: nn.Module, batch: Any) -> dict[str, tuple[Tensor, Tensor]]:
        if self.losses_seen == 2 and self.bad == "pixel":
            batch.images[1][0, 5, 5] = self.value
        if self.losses_seen == 2 and self.bad == "box":
            boxes = torch.tensor([[4.0, 4, self.value, 20]])
            batch.targets[1] |= {"boxes": boxes, "labels": torch.tensor([1])}
        return super().losses(model, batch)


class Slow(Faulty):
    """A batch takes a hundredth of a second, so that something can be done while it lasts."""

    def count(self, what: str) -> None:
        time.sleep(0.01)
        super().count(what)


class WithSecret(Classification):
    """Needs two values from the environment, as one that reports elsewhere would."""

    def __init__(self, *, num_classes: int, note: str, token: str, **rest: Any) -> None:
        super().__init__(num_classes=num_classes, **rest)
        assert [note, token] == os.environ["SECRETS"].split()


class NanPart(Faulty):
    """From the fourth step on, one of two named losses is not a number."""

    def losses(self, model: nn.Module, batch: Any) -> dict[str, tuple[Tensor, Tensor]]:
        pairs = super().losses(model, batch)
        total, count = pairs["loss"]
        part = float("nan") if self.losses_seen > 3 else 0.0
        return {**pairs, "part": (total * part, count)}


class InfGradient(Faulty):
    """From the fourth step on, the loss is finite and its gradient is not."""

    def losses(self, model: nn.Module, batch: Any) -> dict[str, tuple[Tensor, Tensor]]:
        pairs = super().losses(model, batch)
        total, count = pairs["loss"]
        if self.losses_seen > 3:
            total = InfiniteSlope.apply(total)
        return {**pairs, "loss": (total, count)}


class InfiniteSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * float("inf")


class NanFigure(Faulty):
    """From the second evaluation on, the figure that picks the best is not a number."""

    evaluations = 0

    def evaluator(self) -> "NanEvaluator":
        self.evaluations += 1
        return NanEvaluator(self)


class NanEvaluator(ClassificationEvaluator):
    task: NanFigure

    def compute(self) -> dict[str, float]:
        figures = super().compute()
        return figures if self.task.evaluations < 2 else {**figures, "top1_err": float("nan")}


class BadSamples(Faulty):
    """Batches with one of these samples are bad: `images` of them infinite, or only the `loss`."""

    def __init__(self, *, num_classes: int, bad: list[int], where: str, **rest: Any) -> None:
        super().__init__(num_classes=num_classes, **rest)
        self.bad, self.where = torch.tensor(bad), where

    def losses(self, model: nn.Module, batch: Any) -> dict[str, tuple[Tensor, Tensor]]:
        found = torch.isin(batch.ids, self.bad)
        if self.where == "images":
            factor = 1 + found.float().mul(float("inf")).nan_to_num(0, posinf=float("inf"))
            batch = batch._replace(images=batch.images * factor.view(-1, 1, 1, 1))
        pairs = super().losses(model, batch)
        if self.where == "loss" and found.any():
            total, count = pairs["loss"]
            pairs["loss"] = (total + float("inf"), count)  # its gradient is finite
        return pairs
