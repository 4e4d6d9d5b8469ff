"""What R-CNN, Fast R-CNN and Faster R-CNN have in common: which regions of an image are learnt,
and how detections are picked from what is said of them.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from cvtrain.errors import ConfigError
from cvtrain.models.detection.boxes import STDS, decode
from cvtrain.models.detection.matching import (
    POSITIVE,
    generator_of,
    match_proposals,
    sample,
)
from cvtrain.models.detection.nms import METHODS, suppress
from cvtrain.models.resnet import check_choice

LEAST = 0.01  # pixels: a detection, as a proposal, has at least this width and height
Pairs = dict[str, tuple[Tensor, Tensor]]
Targets = Sequence[dict[str, Tensor]]
Detections = list[dict[str, Tensor]]
Size = tuple[int, int]  # height and width of an image, pixels


class Regions(NamedTuple):
    """What is learnt, of one image or of several."""

    boxes: Tensor  # float32 [R, 4]
    labels: Tensor  # int64 [R], 0 is the background
    objects: Tensor  # float32 [R, 4]: the box of the object; of background, its own


class Said(NamedTuple):
    """Of R regions, by the network."""

    scores: Tensor  # float32 [R, K + 1]: logits
    offsets: Tensor | None  # float32 [R, K + 1, 4] of each class's box from the region; None: it


class RegionDetector(nn.Module):
    """A list of float images [3, H, W] to losses in training, else to detections.

    Losses are pairs of a sum and its fixed count; detections dicts of `boxes` [n, 4] in pixels,
    `labels` [n] in 1 to K and `scores` [n], best first.

    samples: regions an image in a step, at most `object_share` of them objects (IoU >= 0.5), the
    others of IoU `background` to below 0.5. score, nms, detections: how sure, how far apart (IoU),
    and how many an image detections are. nms_method, sigma, final_score: Soft-NMS (see nms.py) in
    place of the plain one; what has decayed below `final_score` goes.
    """

    needs_proposals = True

    def __init__(
        self,
        *,
        samples: int = 64,
        object_share: float = 0.25,
        background: float = 0.1,
        score: float = 0.05,
        nms: float = 0.3,
        nms_method: Literal["hard", "linear", "gaussian"] = "hard",
        sigma: float = 0.5,
        final_score: float = 0.001,
        detections: int = 100,
    ) -> None:
        super().__init__()
        check_choice("nms_method", nms_method, METHODS)
        if not sigma > 0:
            raise ConfigError("sigma is above 0", f"model.sigma={sigma}", "type model.sigma=0.5")
        self.samples, self.object_share, self.background = samples, object_share, background
        self.score, self.nms, self.detections = score, nms, detections
        # Nothing decays under the plain method: `score` has said it all.
        least = 0.0 if nms_method == "hard" else final_score
        self.soft: dict[str, Any] = {"method": nms_method, "sigma": sigma, "least": least}

    def look(self, images: list[Tensor]) -> Tensor:
        """What is computed once for an image: [N, C, h, w]."""
        raise NotImplementedError

    def classify(self, seen: Tensor, boxes: list[Tensor]) -> Said:
        """Of the regions `boxes` [R_n, 4] of each image, all together."""
        raise NotImplementedError

    def forward(
        self,
        images: list[Tensor],
        targets: Targets | None = None,
        proposals: list[Tensor] | None = None,
    ) -> Pairs | Detections:
        if proposals is None:
            what = f"{type(self).__name__} takes proposals, and the data give none"
            fix = "type data.proposals=grid, or model=faster_rcnn, which makes its own"
            raise ConfigError(what, "model", fix)
        sizes = sizes_of(images)
        proposals = [tidy(*image) for image in zip(proposals, sizes, strict=True)]
        if self.training:
            return self.losses(self.look(images), proposals, targets)
        return self.detect(self.look(images), proposals, sizes)

    # Training

    def losses(self, seen: Tensor, proposals: list[Tensor], targets: Targets | None) -> Pairs:
        if targets is None:
            raise ValueError("training needs targets")
        chosen = [self.choose(*image) for image in zip(proposals, targets, strict=True)]
        said = self.classify(seen, [regions.boxes for regions in chosen])
        together = Regions(*(torch.cat(parts) for parts in zip(*chosen, strict=True)))
        counts = self.loss_counts(len(targets))
        return {
            name: (total, total.new_tensor(counts[name]))
            for name, total in self.sums(said, together).items()
        }

    def sums(self, said: Said, regions: Regions) -> dict[str, Tensor]:
        """The losses, by name, before they are divided: the log loss of the class."""
        return {"cls": F.cross_entropy(said.scores, regions.labels, reduction="sum")}

    def loss_counts(self, images: int) -> dict[str, float]:
        """What the losses of so many images are divided by."""
        return {"cls": float(self.samples * images)}

    @torch.no_grad()
    def choose(self, proposals: Tensor, target: dict[str, Tensor]) -> Regions:
        """A step's regions of one image, from its proposals and the true boxes themselves."""
        objects = target["boxes"].float()
        boxes = torch.cat([proposals, objects])
        found = match_proposals(objects, boxes, background=self.background)
        drawn = generator_of(target, "regions")
        both = torch.cat(sample(found.labels, self.samples, self.object_share, drawn))
        nearest, hit = found.object[both], found.labels[both] == POSITIVE
        labels, aims = torch.zeros_like(both), boxes[both]
        labels[hit] = target["labels"][nearest[hit]]
        aims[hit] = objects[nearest[hit]]
        return Regions(boxes[both], labels, aims)

    # Evaluation

    @torch.no_grad()
    def detect(self, seen: Tensor, proposals: list[Tensor], sizes: list[Size]) -> Detections:
        said = self.classify(seen, proposals)
        counts = [boxes.shape[0] for boxes in proposals]  # which of an exported network may vary
        scores = said.scores.split(counts)
        none: list[Tensor | None] = [None] * len(counts)
        offsets = none if said.offsets is None else said.offsets.split(counts)
        parts = map(Said, scores, offsets)
        return [self.pick(*image) for image in zip(parts, proposals, sizes, strict=True)]

    def pick(self, said: Said, proposals: Tensor, size: Size) -> dict[str, Tensor]:
        """The detections of one image."""
        chances = said.scores.softmax(1)[:, 1:]
        region, kind = (chances > self.score).nonzero().unbind(1)
        boxes, chances, labels = proposals[region], chances[region, kind], kind + 1
        if said.offsets is not None:
            boxes = clip_boxes_to_image(decode(said.offsets[region, labels], boxes, STDS), size)
        large = remove_small_boxes(boxes, LEAST)  # what is not finite is not large either
        boxes, chances, labels = boxes[large], chances[large], labels[large]
        kept, chances = suppress(boxes, chances, labels, iou=self.nms, **self.soft)
        best = kept[: self.detections]
        return {"boxes": boxes[best], "labels": labels[best], "scores": chances[: self.detections]}


def tidy(proposals: Tensor, size: Size) -> Tensor:
    """float32: those that are numbers, within the image, and have a width and a height."""
    boxes = clip_boxes_to_image(proposals.float(), size)
    return boxes[remove_small_boxes(boxes, LEAST)]


def sizes_of(images: Sequence[Tensor]) -> list[Size]:
    return [(image.shape[-2], image.shape[-1]) for image in images]
