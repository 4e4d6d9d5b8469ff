"""Any number of objects in each image: a class and a box for each."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cvtrain.data.batch import DataInfo, DetectionBatch
from cvtrain.errors import ConfigError
from cvtrain.metrics.boxes import draw_boxes
from cvtrain.metrics.sheet import sheet
from cvtrain.tasks.base import Metric, Picture, Task
from cvtrain.tasks.detection_evaluator import TRUE, YEARS, DetectionEvaluator, WithLosses
from cvtrain.tasks.detection_mirror import merged, mirrored_back, mirrored_boxes
from cvtrain.tasks.shown import as_seen
from cvtrain.tasks.told import View, Wanted, objects

Found = dict[str, Tensor]  # of an image: `boxes` [n, 4], `labels` [n], `scores` [n], `masks`


class Detection(Task):
    """COCO's twelve figures of what a detector finds, in per cent; `mAP` is the mean over IoUs.

    A network gives its losses in training: (sum, count) pairs, or, as torchvision's, means of a
    batch, which count as those of so many images. `losses` are the ones that train, null for all;
    the others are figures (over several processes, what they alone would train has to be frozen:
    model.freeze). `loss_weights` multiply them by name. `voc` adds Pascal VOC's `voc_mAP`: of 2007,
    read at eleven recalls, or of 2010 on, the area under the curve. `masks` adds the twelve figures
    of masks as `mask_mAP` and so on; null: if both the data and the network have them. `flip`
    evaluates each image and its mirror image, `val_losses` the losses, too.
    """

    primary = Metric("mAP", higher_is_better=True)

    def __init__(
        self,
        *,
        num_classes: int,
        losses: Sequence[str] | None = None,
        loss_weights: dict[str, float] | None = None,
        voc: int | None = None,
        masks: bool | None = None,
        flip: bool = False,
        val_losses: bool = False,
    ) -> None:
        if losses is not None and (isinstance(losses, str) or not losses):
            raise ConfigError(f"task.losses={losses} is no list of losses", "", "type null for all")
        if voc not in (None, *YEARS):
            raise ConfigError(f"task.voc={voc}", "", "type task.voc=2007, or 2010 for all since")
        self.num_classes, self.voc, self.masks = num_classes, voc, masks
        self.chosen, self.weights = losses, loss_weights or {}
        self.flip, self.val_losses = flip, val_losses

    @classmethod
    def outputs(cls, info: DataInfo, arguments: dict[str, Any]) -> int:
        """The classes and the background, which is 0."""
        return len(info.classes) + 1

    def losses(self, model: nn.Module, batch: DetectionBatch) -> dict[str, tuple[Tensor, Tensor]]:
        targets, flaw = without_flaws(targets_of(model, batch))
        inputs = (batch.images, targets, *proposals_of(model, batch))
        images = torch.tensor(float(len(batch.images)), device=batch.ids.device)
        pairs = {
            name: value if isinstance(value, tuple) else (value.float() * images, images)
            for name, value in called(model, *inputs).items()
        }
        for name in {*(self.chosen or pairs), *self.weights} - pairs.keys():
            what = f"the network has no loss {name}"
            raise ConfigError(what, "task.losses", f"its losses are {', '.join(pairs)}")
        for name, (total, count) in pairs.items():
            trains = self.chosen is None or name in self.chosen
            weighted = total * self.weights.get(name, 1.0) + flaw
            pairs[name] = (weighted if trains else weighted.detach(), count)
        return pairs

    def counts(self, model: nn.Module, batch: DetectionBatch) -> dict[str, Tensor]:
        network = network_of(model)
        if not hasattr(network, "loss_counts"):
            return super().counts(model, batch)
        counts, device = network.loss_counts(len(batch.images)), batch.ids.device
        return {name: torch.tensor(float(count), device=device) for name, count in counts.items()}

    def predict(self, model: nn.Module, batch: DetectionBatch) -> list[Found] | WithLosses:
        """Of each image, in the pixels of what the network was given."""
        found = self.found(model, batch)
        if self.flip:
            widths = [image.shape[-1] for image in batch.images]
            again = map(mirrored_back, self.found(model, mirrored(batch)), widths)
            found = [merged(both) for both in zip(found, again, strict=True)]
        return WithLosses(found, self.evaluated(model, batch)) if self.val_losses else found

    def found(self, model: nn.Module, batch: DetectionBatch) -> list[Found]:
        found = model(batch.images, None, *proposals_of(model, batch))
        return [usable(f, image) for f, image in zip(found, batch.images, strict=True)]

    @torch.no_grad()
    def evaluated(
        self, model: nn.Module, batch: DetectionBatch
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The losses of a network that is otherwise in evaluation; the same draws each time."""
        # Not through DistributedDataParallel, which would wait for processes without such a batch.
        network = network_of(model)
        devices = [batch.ids.device] if batch.ids.is_cuda else []
        with giving_losses(network), torch.random.fork_rng(devices):
            torch.manual_seed(0)
            return self.losses(network, batch)

    def evaluator(self) -> DetectionEvaluator:
        return DetectionEvaluator(self.num_classes, voc=self.voc, masks=self.masks)

    def told(
        self, predictions: list[Found] | WithLosses, seen: Sequence[View], wanted: Wanted
    ) -> list[dict[str, Any]]:
        """`objects`: each with its class, score, box and mask in the original, the best first."""
        found = predictions.found if isinstance(predictions, WithLosses) else predictions
        pairs = zip(found, seen, strict=True)
        return [{"objects": objects(one, view, wanted)} for one, view in pairs]

    def pictures(self, batch: DetectionBatch, source: Any) -> dict[str, Picture]:
        """`samples`: images as the network sees them, but for the normalisation; true boxes."""
        framed, captions = [], []
        for image, target in zip(batch.images, batch.targets, strict=True):
            height, width = image.shape[-2:]
            shares = target["boxes"].cpu() / torch.tensor([width, height, width, height])
            [picture] = as_seen(image[None], source)
            colours = [TRUE] * len(shares)
            framed.append(draw_boxes(picture, shares.tolist(), colours) if colours else picture)
            labels = (target["labels"] - 1).tolist()
            captions.append([", ".join(dict.fromkeys(source.info.shown[k] for k in labels))])
        return {"samples": sheet([*framed], captions, columns=8)}


def network_of(model: nn.Module) -> Any:
    """DistributedDataParallel has it one level down."""
    inner = getattr(model, "module", None)
    return inner if isinstance(inner, nn.Module) else model


@contextmanager
def giving_losses(network: nn.Module) -> Iterator[None]:
    """As in training, but for what has no parts: batch norm, dropout and the like, which are as in
    evaluation."""
    asking = [m for m in network.modules() if m is network or next(m.children(), None) is not None]
    asking = [module for module in asking if not module.training]
    try:
        for module in asking:
            module.training = True
        yield
    finally:
        for module in asking:
            module.training = False


def called(model: nn.Module, *inputs: Any) -> dict[str, Any]:
    """In training. Raises ConfigError where a process waits for gradients that none computes, or
    batch norm has but one value.
    """
    try:
        return model(*inputs)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        what = "batch norm needs more than one image"
        raise ConfigError(what, "data.batch_size", "type data.batch_size=2") from error
    except RuntimeError as error:
        if "finished reduction" not in str(error):
            raise
        what = "over several processes, what no loss trains has to stand still"
        raise ConfigError(what, "task.losses", "type model.freeze=[LAYER,...]") from error


def targets_of(model: nn.Module, batch: DetectionBatch) -> list[dict[str, Tensor]]:
    """Raises ConfigError where the network learns masks and there are none."""
    learnt = getattr(network_of(model), "needs_masks", False)
    if learnt and not all("masks" in target for target in batch.targets):
        what = "the network learns masks, and the data give none"
        fix = "type data.masks=true (data=coco has them), or model=fasterrcnn_resnet50_fpn"
        raise ConfigError(what, "model, data", fix)
    return batch.targets


def without_flaws(targets: list[dict[str, Tensor]]) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Every box finite, and 0, or NaN if one was not: the loss has to say so, where a network may
    pass over it or end the process inside torchvision."""
    together = torch.cat([target["boxes"] for target in targets])
    finite = together.isfinite().all(1, keepdim=True)
    sound = together.where(finite, together.new_tensor([0, 0, 1, 1]))
    each = sound.split([len(target["boxes"]) for target in targets])
    return [{**t, "boxes": b} for t, b in zip(targets, each, strict=True)], (together * 0).sum()


def proposals_of(model: nn.Module, batch: DetectionBatch) -> tuple[list[Tensor], ...]:
    """The third argument of a network that takes some. Raises ConfigError where there are none."""
    if not getattr(network_of(model), "needs_proposals", False):
        return ()
    if batch.proposals is None:
        what = "the network takes proposals, and the data give none"
        fix = "type data.proposals=grid (or selective_search, or a FILE), or model=faster_rcnn"
        raise ConfigError(what, "model, data.proposals", fix)
    return (batch.proposals,)


def mirrored(batch: DetectionBatch) -> DetectionBatch:
    """Its images, and the proposals of them."""
    images, proposals = [image.flip(-1) for image in batch.images], batch.proposals
    if proposals is not None:
        widths = (image.shape[-1] for image in images)
        proposals = [mirrored_boxes(*one) for one in zip(proposals, widths, strict=True)]
    return batch._replace(images=images, proposals=proposals)


def usable(found: Found, image: Tensor) -> Found:
    """Finite, for compiled code may not survive the rest; inside the image; no background, for
    which torchvision's RetinaNet and FCOS have an output that nothing uses."""
    boxes, scores = found["boxes"].float(), found["scores"].float()
    height, width = image.shape[-2:]
    last = torch.tensor([width, height, width, height], dtype=boxes.dtype, device=boxes.device)
    keep = boxes.isfinite().all(1) & scores.isfinite() & (found["labels"] > 0)
    inside = boxes[keep].clamp(min=0).minimum(last)
    kept = {name: value[keep] for name, value in found.items()}
    return {**kept, "boxes": inside, "scores": scores[keep]}
