"""One label per image."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.data.batch import ClassificationBatch
from cvtrain.errors import ConfigError
from cvtrain.metrics.topk import topk_wrong
from cvtrain.tasks.base import Metric, Task


class Classification(Task):
    """Cross-entropy over logits `[N, classes]`; top-1 and top-5 error in per cent.

    `class_weights` weigh each sample's loss by its class, and the mean by the weights' sum.
    `reject_logit` adds to the loss a further class of that constant logit: with logits of minus a
    distance it is the discriminative criterion of LeCun et al. 1998, equation 9, where -j is the
    logit and keeps the distances of wrong classes from growing for ever.
    """

    primary = Metric("top1_err", higher_is_better=False)

    def __init__(
        self,
        *,
        num_classes: int,
        label_smoothing: float = 0.0,
        class_weights: list[float] | None = None,
        reject_logit: float | None = None,
    ) -> None:
        if class_weights is not None and len(class_weights) != num_classes:
            raise ConfigError(
                f"{len(class_weights)} weights for {num_classes} classes", "task.class_weights"
            )
        self.label_smoothing, self.reject_logit = label_smoothing, reject_logit
        self.class_weights = None if class_weights is None else torch.tensor(class_weights)

    def losses(
        self, model: nn.Module, batch: ClassificationBatch
    ) -> dict[str, tuple[Tensor, Tensor]]:
        logits = model(batch.images).float()
        wrong = (logits.detach().argmax(1) != batch.labels).sum()
        samples = self.samples(batch)
        return {
            "loss": (self.cross_entropy(logits, batch.labels), self.weight(batch)),
            "top1_err": (100 * wrong, samples),
        }

    def counts(self, model: nn.Module, batch: ClassificationBatch) -> dict[str, Tensor]:
        return {"loss": self.weight(batch), "top1_err": self.samples(batch)}

    def predict(self, model: nn.Module, batch: ClassificationBatch) -> Tensor:
        return model(batch.images).float()

    def evaluator(self) -> "ClassificationEvaluator":
        return ClassificationEvaluator(self)

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Summed over the batch, so that the engine can divide once."""
        weights = self.class_weights
        if self.reject_logit is not None:
            logits = F.pad(logits, (0, 1), value=self.reject_logit)
            weights = None if weights is None else F.pad(weights, (0, 1))
        return F.cross_entropy(
            logits,
            labels,
            weight=None if weights is None else weights.to(logits.device),
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )

    def samples(self, batch: ClassificationBatch) -> Tensor:
        return torch.tensor(float(len(batch.labels)), device=batch.labels.device)

    def weight(self, batch: ClassificationBatch) -> Tensor:
        if self.class_weights is None:
            return self.samples(batch)
        return self.class_weights.to(batch.labels.device)[batch.labels].sum()


class ClassificationEvaluator:
    """Errors in whole samples, the loss in float64: exact over any batching."""

    def __init__(self, task: Classification) -> None:
        self.task = task
        names = ("samples", "top1_wrong", "top5_wrong", "loss_sum", "weight")
        self.totals = {name: torch.zeros((), dtype=torch.float64) for name in names}

    def update(self, predictions: Tensor, batch: ClassificationBatch) -> None:
        self._add("samples", self.task.samples(batch))
        self._add("top1_wrong", topk_wrong(predictions, batch.labels, 1))
        self._add("top5_wrong", topk_wrong(predictions, batch.labels, 5))
        self._add("loss_sum", self.task.cross_entropy(predictions, batch.labels))
        self._add("weight", self.task.weight(batch))

    def _add(self, name: str, value: Tensor) -> None:
        # A zero-dimensional tensor of the CPU joins one of any device: nothing waits for a GPU.
        self.totals[name] = self.totals[name] + value.double()

    def compute(self) -> dict[str, float]:
        total = {name: value.item() for name, value in self.totals.items()}
        return {
            "loss": total["loss_sum"] / total["weight"],
            "top1_err": 100 * total["top1_wrong"] / total["samples"],
            "top5_err": 100 * total["top5_wrong"] / total["samples"],
        }
