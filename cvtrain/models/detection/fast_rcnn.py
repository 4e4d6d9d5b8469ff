"""Fast R-CNN (Girshick 2015): the image once through the convolutions, every proposal pooled from
their map, its class and its box learnt at once.

With VGG-16 and the 20 classes of VOC it has 134,690,729 parameters. As in the released network a
box is predicted for the background, too, which is never used: 4 (K + 1) numbers, the paper 4 K.

Differs: offsets are divided by fixed deviations (0.1, 0.1, 0.2, 0.2), as in the authors' later
code, not by those of the training set. The losses are divided by the number of regions that are
asked for, also where an image has fewer.
"""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cvtrain.models.detection.bodies import classifier_of, init_normal, make_body, padded
from cvtrain.models.detection.boxes import STDS, encode
from cvtrain.models.detection.pooling import KINDS, Kind, pool_regions, pooled_shape
from cvtrain.models.detection.regions import RegionDetector, Regions, Said
from cvtrain.models.resnet import check_choice


class FastRCNN(RegionDetector):
    """As RegionDetector.

    body: `name` of a network and its own arguments; ImageNet weights load below `body.`.
    roi_pool, roi_size: how proposals are pooled, and to how many bins a side. box_weight: the
    paper's lambda. Raises ConfigError for a body or pooling that does not exist.
    """

    def __init__(
        self,
        *,
        num_classes: int = 21,
        body: Mapping[str, Any] = {"name": "vgg16"},
        roi_pool: Kind = "max",
        roi_size: int = 7,
        box_weight: float = 1.0,
        **regions: Any,
    ) -> None:
        super().__init__(**regions)
        check_choice("roi_pool", roi_pool, KINDS)
        self.body = make_body(body, pooled_shape(roi_pool, roi_size))
        self.cls_score = nn.Linear(self.body.features_out, num_classes)
        self.bbox_pred = nn.Linear(self.body.features_out, 4 * num_classes)
        init_normal(self.cls_score, std=0.01)
        init_normal(self.bbox_pred, std=0.001)
        self.roi_pool, self.roi_size, self.box_weight = roi_pool, roi_size, box_weight

    @staticmethod
    def classifier(
        *,
        body: Mapping[str, Any],
        roi_pool: str = "max",
        roi_size: int = 7,
        **others: Any,
    ) -> tuple[type[nn.Module], dict[str, Any], str, str] | None:
        """What ImageNet weights of the body are of: see classifier_of."""
        return classifier_of(body, pooled_shape(roi_pool, roi_size))

    def look(self, images: list[Tensor]) -> Tensor:
        return self.body(padded(images, self.body.stride))

    def classify(self, seen: Tensor, boxes: list[Tensor]) -> Said:
        pooled = pool_regions(
            seen, boxes, kind=self.roi_pool, size=self.roi_size, stride=self.body.stride
        )
        features = self.body.head(pooled)
        offsets = self.bbox_pred(features).float().unflatten(1, (-1, 4))
        return Said(self.cls_score(features).float(), offsets)

    def sums(self, said: Said, regions: Regions) -> dict[str, Tensor]:
        """Also smooth L1 of the box, as the object's own class has it; of objects only."""
        assert said.offsets is not None
        hits = regions.labels.nonzero().squeeze(1)
        wanted = encode(regions.objects[hits], regions.boxes[hits], STDS)
        found = said.offsets[hits, regions.labels[hits]]
        box = self.box_weight * F.smooth_l1_loss(found, wanted, beta=1.0, reduction="sum")
        return super().sums(said, regions) | {"box": box}

    def loss_counts(self, images: int) -> dict[str, float]:
        return super().loss_counts(images) | {"box": float(self.samples * images)}
