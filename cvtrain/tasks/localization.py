"""One object per image: its class and its box."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.data.batch import BoxBatch, ClassificationBatch, DataInfo
from cvtrain.errors import ConfigError
from cvtrain.metrics.boxes import decode, draw_boxes, encode, overlap
from cvtrain.metrics.sheet import sheet
from cvtrain.tasks.base import Metric, Picture, Task
from cvtrain.tasks.classification import Classification
from cvtrain.tasks.localization_evaluator import TRUE, LocalizationEvaluator
from cvtrain.tasks.shown import as_seen
from cvtrain.tasks.told import View, Wanted, check_finite, in_original, ranked

LEAST_IOU = 0.5  # of a box that is right


class Prediction(NamedTuple):
    logits: Tensor  # float32 [N, classes]
    codes: Tensor  # float32 [N, 4]: centre x, centre y, width, height as shares of the image


class Judgement(NamedTuple):
    """Of each sample, `[N]`."""

    right: Tensor  # bool: its class
    iou: Tensor  # of the true box and the one found, 0 to 1
    located: Tensor  # bool: the class is right and the IoU at least 0.5


class Localization(Task):
    """Errors in per cent: `top1_err` of the class, `loc_err` of class and box; `iou`, their mean.

    The network gives K + 4 numbers: K logits and, as they are, the code of Simonyan and Zisserman
    2014, appendix A: centre x, centre y, width, height, here as shares of the image. `loss` is the
    cross-entropy, `box` `alpha` times the smooth L1 distance (`beta` is where it turns from
    squared to absolute; 0: absolute), summed over the four numbers: a robust form of the paper's
    Euclidean one. A sample is in `loc_err` if its class is wrong or its IoU is below 0.5.
    """

    primary = Metric("loc_err", higher_is_better=False)

    def __init__(
        self,
        *,
        num_classes: int,
        alpha: float = 1.0,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        class_weights: list[float] | str | None = None,
        class_counts: Sequence[int] = (),
    ) -> None:
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not value >= 0:
                raise ConfigError(f"task.{name}={value}", "", "type a number from 0 on")
        self.classes = Classification(
            num_classes=num_classes,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
            class_counts=class_counts,
        )
        self.alpha, self.beta = alpha, beta

    @classmethod
    def outputs(cls, info: DataInfo, arguments: dict[str, Any]) -> int:
        return len(info.classes) + 4

    def losses(self, model: nn.Module, batch: BoxBatch) -> dict[str, tuple[Tensor, Tensor]]:
        prediction = self.predict(model, batch)
        judged, counts = self.judge(prediction, batch), self.counts(model, batch)
        sums = {
            "loss": self.classes.cross_entropy(prediction.logits, batch.labels),
            "box": self.box_losses(prediction, batch).sum(),
            "top1_err": 100 * (~judged.right).sum(),
            "loc_err": 100 * (~judged.located).sum(),
            "iou": 100 * judged.iou.sum(),
        }
        return {name: (total, counts[name]) for name, total in sums.items()}

    def counts(self, model: nn.Module, batch: BoxBatch) -> dict[str, Tensor]:
        labelled = as_classified(batch)
        samples, names = self.classes.samples(labelled), ("box", "top1_err", "loc_err", "iou")
        return {"loss": self.classes.weight(labelled), **dict.fromkeys(names, samples)}

    def predict(self, model: nn.Module, batch: BoxBatch) -> Prediction:
        outputs = model(batch.images)
        if isinstance(outputs, tuple):
            what = "auxiliary heads find no boxes"
            raise ConfigError(what, "model, task=localization", "type model.aux=false")
        logits, codes = outputs.float().split([self.classes.num_classes, 4], dim=1)
        return Prediction(logits, codes)

    def evaluator(self) -> LocalizationEvaluator:
        return LocalizationEvaluator(self)

    def told(
        self, predictions: Prediction, seen: Sequence[View], wanted: Wanted
    ) -> list[dict[str, Any]]:
        """`top`, as of a classification, and `box` in pixels of the original."""
        check_finite(predictions.codes)
        boxes = decode(predictions.codes).split(1)
        tops = ranked(predictions.logits.softmax(1), wanted)
        return [
            {"top": top, "box": in_original(box, view)[0]}
            for top, box, view in zip(tops, boxes, seen, strict=True)
        ]

    def box_losses(self, prediction: Prediction, batch: BoxBatch) -> Tensor:
        """float32 `[N]`, times alpha."""
        truth = encode(batch.boxes)
        apart = F.smooth_l1_loss(prediction.codes, truth, beta=self.beta, reduction="none")
        return self.alpha * apart.sum(1)

    def judge(self, prediction: Prediction, batch: BoxBatch) -> Judgement:
        logits, codes = prediction.logits.detach(), prediction.codes.detach()
        right = (logits.argmax(1) == batch.labels) & logits.isfinite().all(1)
        iou = overlap(decode(codes), batch.boxes)
        return Judgement(right, iou, right & (iou >= LEAST_IOU))

    def pictures(self, batch: BoxBatch, source: Any) -> dict[str, Picture]:
        """`samples`: images as the network sees them, but for the normalisation; true boxes."""
        pictures = zip(as_seen(batch.images, source), batch.boxes.tolist(), strict=True)
        framed = [draw_boxes(picture, [box], [TRUE]) for picture, box in pictures]
        captions = [[source.info.shown[label]] for label in batch.labels.tolist()]
        return {"samples": sheet([*framed], captions, columns=8)}


def as_classified(batch: BoxBatch) -> ClassificationBatch:
    return ClassificationBatch(batch.images, batch.labels, batch.ids)
