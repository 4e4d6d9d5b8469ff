"""Faster R-CNN (Ren, He, Girshick, Sun 2015): Fast R-CNN whose proposals come from its own map.

With VGG-16, 9 anchors and the 20 classes of VOC it has 137,078,239 parameters. It is trained by the
paper's approximate joint training: all four losses at once, and no gradient through the proposals'
corners. Its four alternating steps are scripts/alternate.py.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cvtrain.models.detection.fast_rcnn import FastRCNN
from cvtrain.models.detection.regions import Detections, Pairs, Targets, sizes_of
from cvtrain.models.detection.rpn import RPN


class FasterRCNN(FastRCNN):
    """As FastRCNN, without proposals from outside; `rpn` are the arguments of RPN."""

    needs_proposals = False

    def __init__(
        self, *, num_classes: int = 21, rpn: Mapping[str, Any] | None = None, **fast_rcnn: Any
    ) -> None:
        super().__init__(num_classes=num_classes, **fast_rcnn)
        self.rpn = RPN(self.body.channels, self.body.stride, **(rpn or {}))

    def forward(
        self,
        images: list[Tensor],
        targets: Targets | None = None,
        proposals: list[Tensor] | None = None,
    ) -> Pairs | Detections:
        maps, sizes = self.look(images), sizes_of(images)
        proposals, losses = self.rpn(maps, sizes, targets if self.training else None)
        if self.training:
            return losses | self.losses(maps, proposals, targets)
        return self.detect(maps, proposals, sizes)

    def loss_counts(self, images: int) -> dict[str, float]:
        rpn = dict.fromkeys(("rpn_cls", "rpn_box"), float(self.rpn.samples * images))
        return rpn | super().loss_counts(images)
