"""The region proposal network (Ren, He, Girshick, Sun 2015, section 3.1).

Differs: the box loss is divided by the 256 anchors of the batch, as the authors' end-to-end code
does, in place of lambda / N_reg = 10 / 2400: nearly the same number. The denominator is 256 an
image even where fewer anchors could be drawn. An image in which no anchor lies wholly inside uses
them all.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image, nms, remove_small_boxes

from cvtrain.models.detection.anchors import anchor_grid, base_anchors, within
from cvtrain.models.detection.bodies import init_normal
from cvtrain.models.detection.boxes import decode, encode
from cvtrain.models.detection.matching import (
    POSITIVE,
    generator_of,
    match_anchors,
    sample,
)

BETA = 1 / 9  # where smooth L1 turns from squared to absolute (sigma 3 in the authors' code)
Pairs = dict[str, tuple[Tensor, Tensor]]


class RPN(nn.Module):
    """Maps [N, in_channels, h, w] to proposals [P, 4] an image, in its pixels, best first.

    sizes, ratios: of the anchors, in pixels and as height / width. channels: of the 3x3
    convolution. softmax: two scores an anchor, as in the paper; else one, of a sigmoid.
    cross_boundary: learn from anchors that lie partly outside the image, too. samples: anchors an
    image in a step, half of them positive at most. pre_nms, post_nms: how many of the best
    proposals are kept before and after suppression, in training and in evaluation. nms: IoU above
    which a worse one goes. min_size: pixels, of the smaller side of a proposal.
    """

    def __init__(
        self,
        in_channels: int,
        stride: int,
        *,
        sizes: Sequence[float] = (128, 256, 512),
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        channels: int = 512,
        softmax: bool = True,
        cross_boundary: bool = False,
        samples: int = 256,
        pre_nms: tuple[int, int] = (12000, 6000),
        post_nms: tuple[int, int] = (2000, 300),
        nms: float = 0.7,
        min_size: float = 16,
    ) -> None:
        super().__init__()
        base = base_anchors(sizes, ratios, stride)
        self.register_buffer("base", base, persistent=False)
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.cls = nn.Conv2d(channels, len(base) * (2 if softmax else 1), 1)
        self.reg = nn.Conv2d(channels, len(base) * 4, 1)
        for layer in (self.conv, self.cls, self.reg):
            init_normal(layer, std=0.01)
        self.stride, self.softmax, self.cross_boundary = stride, softmax, cross_boundary
        self.samples, self.pre_nms, self.post_nms = samples, tuple(pre_nms), tuple(post_nms)
        self.nms, self.min_size = nms, min_size

    def forward(
        self,
        maps: Tensor,
        sizes: Sequence[tuple[int, int]],
        targets: Sequence[dict[str, Tensor]] | None = None,
    ) -> tuple[list[Tensor], Pairs]:
        """Proposals of each image, and in training the losses (pairs), for which it needs targets.

        `sizes` are (height, width) of the images within the padded batch.
        """
        anchors = anchor_grid(self.get_buffer("base"), self.stride, *maps.shape[-2:])
        scores, offsets = self.scores(maps)
        with torch.no_grad():
            proposals = [
                self.propose(anchors, *image) for image in zip(scores, offsets, sizes, strict=True)
            ]
        if targets is None:
            return proposals, {}
        return proposals, self.losses(anchors, scores, offsets, sizes, targets)

    def scores(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Of each anchor, the logit of an object [N, R] and the offsets [N, R, 4] of its box."""
        x = F.relu(self.conv(maps))
        scores = self.cls(x).float().permute(0, 2, 3, 1).flatten(1)
        if self.softmax:  # of two scores, which is the sigmoid of their difference
            background, found = scores.unflatten(1, (-1, 2)).unbind(2)
            scores = found - background
        return scores, self.reg(x).float().permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4))

    def propose(
        self, anchors: Tensor, scores: Tensor, offsets: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Of one image. A box that is not finite is never proposed."""
        mode = 0 if self.training else 1
        before, after = self.pre_nms[mode], self.post_nms[mode]
        scores, best = highest(scores, before)
        boxes = clip_boxes_to_image(decode(offsets[best], anchors[best]), size)
        large = remove_small_boxes(boxes, self.min_size)
        boxes, scores = boxes[large], scores[large]
        return boxes[nms(boxes, scores, self.nms)[:after]]

    def losses(
        self,
        anchors: Tensor,
        scores: Tensor,
        offsets: Tensor,
        sizes: Sequence[tuple[int, int]],
        targets: Sequence[dict[str, Tensor]],
    ) -> Pairs:
        logits, truths, apart = [], [], []
        every = torch.arange(len(anchors), device=anchors.device)
        for image, (size, target) in enumerate(zip(sizes, targets, strict=True)):
            objects = target["boxes"].float()
            used = every if self.cross_boundary else within(anchors, size)
            found = match_anchors(objects, anchors[used])
            drawn = generator_of(target, "anchors")
            positives, negatives = sample(found.labels, self.samples, 0.5, drawn)
            both = torch.cat([positives, negatives])
            logits.append(scores[image, used[both]])
            truths.append((found.labels[both] == POSITIVE).float())
            wanted = encode(objects[found.object[positives]], anchors[used[positives]])
            apart.append(offsets[image, used[positives]] - wanted)
        cls = F.binary_cross_entropy_with_logits(
            torch.cat(logits), torch.cat(truths), reduction="sum"
        )
        error = torch.cat(apart)
        box = F.smooth_l1_loss(error, torch.zeros_like(error), beta=BETA, reduction="sum")
        count = cls.new_tensor(self.samples * len(sizes))
        return {"rpn_cls": (cls, count), "rpn_box": (box, count)}


def highest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Up to `count` of the best scores [n], best first, and their places."""
    if torch.jit.is_tracing() or torch.compiler.is_exporting():  # n is that of another image, then
        most = count if torch.jit.is_tracing() else torch.sym_min(count, scores.shape[0])
        ranked, places = scores.sort(descending=True)
        return ranked[:most], places[:most]
    best, places = scores.topk(min(count, len(scores)))
    return best, places
