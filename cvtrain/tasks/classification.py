"""One label per image; in training an image may be a mixture and have a share of each class."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.data.batch import ClassificationBatch
from cvtrain.errors import ConfigError
from cvtrain.metrics.sheet import sheet
from cvtrain.tasks.base import Metric, Picture, Task
from cvtrain.tasks.classification_evaluator import ClassificationEvaluator
from cvtrain.tasks.shown import as_seen
from cvtrain.tasks.told import View, Wanted, ranked


class Classification(Task):
    """Cross-entropy over logits `[N, classes]`; top-1 and top-5 error in per cent.

    Labels are int64 `[N]`, or in training float `[N, classes]`: the shares of a mixed image, whose
    error is that of the class with the largest one.
    `class_weights` weigh each sample's loss by its class, and the mean by the weights' sum; "auto"
    makes every class weigh as much as any other, from the `class_counts` of the training data.
    `reject_logit` adds to the loss a further class of that constant logit: with logits of minus a
    distance it is the discriminative criterion of LeCun et al. 1998, equation 9, where -j is the
    logit and keeps the distances of wrong classes from growing for ever.
    A network that in training gives a tuple, its logits and those of `aux_heads` auxiliary heads,
    is judged by the first; each of the others adds `aux_weight` times its own cross-entropy.
    """

    primary = Metric("top1_err", higher_is_better=False)

    def __init__(
        self,
        *,
        num_classes: int,
        label_smoothing: float = 0.0,
        class_weights: list[float] | str | None = None,
        reject_logit: float | None = None,
        aux_weight: float = 0.3,
        class_counts: Sequence[int] = (),
    ) -> None:
        if isinstance(class_weights, str):
            class_weights = balanced_weights(class_weights, class_counts)
        if class_weights is not None and len(class_weights) != num_classes:
            raise ConfigError(
                f"{len(class_weights)} weights for {num_classes} classes", "task.class_weights"
            )
        self.num_classes, self.aux_weight = num_classes, aux_weight
        self.label_smoothing, self.reject_logit = label_smoothing, reject_logit
        self.class_weights = None if class_weights is None else torch.tensor(class_weights)

    def losses(
        self, model: nn.Module, batch: ClassificationBatch
    ) -> dict[str, tuple[Tensor, Tensor]]:
        logits, *auxiliary = all_logits(model(batch.images))
        labels = batch.labels.argmax(1) if batch.labels.is_floating_point() else batch.labels
        wrong = (logits.detach().argmax(1) != labels).sum()
        pairs = {
            "loss": (self.cross_entropy(logits, batch.labels), self.weight(batch)),
            "top1_err": (100 * wrong, self.samples(batch)),
        }
        for number, head in enumerate(auxiliary, start=1):
            loss = self.aux_weight * self.cross_entropy(head, batch.labels)
            pairs[f"aux{number}"] = (loss, self.weight(batch))
        return pairs

    def counts(self, model: nn.Module, batch: ClassificationBatch) -> dict[str, Tensor]:
        # DistributedDataParallel has the network one level down.
        network = model if hasattr(model, "aux_heads") else getattr(model, "module", model)
        heads = range(1, 1 + getattr(network, "aux_heads", 0))
        auxiliary = {f"aux{number}": self.weight(batch) for number in heads}
        return {"loss": self.weight(batch), "top1_err": self.samples(batch), **auxiliary}

    def predict(self, model: nn.Module, batch: ClassificationBatch) -> Tensor:
        """Of several views, images `[N, V, C, H, W]`, the logarithm of their mean probabilities."""
        if batch.images.ndim < 5:
            return all_logits(model(batch.images))[0]
        logits = self.rejecting(all_logits(model(batch.images.flatten(0, 1)))[0])
        mean = logits.log_softmax(1).unflatten(0, batch.images.shape[:2]).logsumexp(1)
        mean = mean - math.log(batch.images.shape[1])
        if self.reject_logit is None:
            return mean
        # Up or down together, to where the further class has its constant logit again.
        return mean[:, :-1] - mean[:, -1:] + self.reject_logit

    def evaluator(self) -> ClassificationEvaluator:
        return ClassificationEvaluator(self)

    def told(
        self, predictions: Tensor, seen: Sequence[View], wanted: Wanted
    ) -> list[dict[str, Any]]:
        """`top`: the likeliest classes; the rest of their sum is that of the further class."""
        shares = self.rejecting(predictions.float()).softmax(1)[:, : predictions.shape[1]]
        return [{"top": top} for top in ranked(shares, wanted)]

    def pictures(self, batch: ClassificationBatch, source: Any) -> dict[str, Picture]:
        """`samples`: images as the network sees them, but for the normalisation, and classes."""
        captions = [shares(label, source.info.shown) for label in batch.labels.cpu()]
        return {"samples": sheet([*as_seen(batch.images, source)], captions, columns=8)}

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Summed over the batch, so that the engine can divide once."""
        weights = self.class_weights
        if self.reject_logit is not None:
            weights = None if weights is None else F.pad(weights, (0, 1))
            labels = F.pad(labels, (0, 1)) if labels.is_floating_point() else labels
        return F.cross_entropy(
            self.rejecting(logits),
            labels,
            weight=None if weights is None else weights.to(logits.device),
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )

    def rejecting(self, logits: Tensor) -> Tensor:
        """With that of the further class, if there is one."""
        rejected = self.reject_logit
        return logits if rejected is None else F.pad(logits, (0, 1), value=rejected)

    def samples(self, batch: ClassificationBatch) -> Tensor:
        return torch.tensor(float(len(batch.labels)), device=batch.labels.device)

    def weight(self, batch: ClassificationBatch) -> Tensor:
        if self.class_weights is None:
            return self.samples(batch)
        weights = self.class_weights.to(batch.labels.device)
        if batch.labels.is_floating_point():
            return (batch.labels @ weights.to(batch.labels.dtype)).sum()
        return weights[batch.labels].sum()


def balanced_weights(word: str, counts: Sequence[int]) -> list[float]:
    """`auto`: samples / (classes * those of the class). Raises ConfigError."""
    if word != "auto" or not counts:
        what = "the data have no counts" if word == "auto" else f"class_weights={word}"
        fix = "type task.class_weights=auto, or a number for each class: [1,1,2]"
        raise ConfigError(what, "task.class_weights", fix)
    # A class without samples weighs nothing: it is never met.
    return [sum(counts) / (len(counts) * count) if count else 0.0 for count in counts]


def all_logits(outputs: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """float32, the network's own first."""
    heads = outputs if isinstance(outputs, tuple) else (outputs,)
    return [logits.float() for logits in heads]


def shares(label: Tensor, names: Sequence[str]) -> list[str]:
    """The class of a sample; of a mixed one the two largest shares."""
    if not label.is_floating_point():
        return [names[int(label)]]
    values, classes = label.topk(min(2, len(label)))
    pairs = zip(values.tolist(), classes.tolist(), strict=True)
    return [f"{names[c]}, {100 * value:.0f} %" for value, c in pairs if value > 0.005]
