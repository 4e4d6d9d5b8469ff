"""R-CNN (Girshick, Donahue, Darrell, Malik 2013): every proposal is cut out of the image, warped to
one size, and classified by itself.

With AlexNet and the 20 classes of VOC it has 56,954,261 parameters. What is trained here is the
network with its softmax, the paper's fine-tuning (section 2.3), and that softmax detects.

Differs: the paper then fits a linear SVM for each class on fc7, and ridge regressions of the box on
pool5, which are no gradient descent; here the softmax scores, and the boxes stay the proposals. The
regions of a step come from its images, not from the whole data set.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from cvtrain.models.alexnet import AlexNet
from cvtrain.models.cnn import CNN
from cvtrain.models.detection.bodies import padded
from cvtrain.models.detection.boxes import centre, extent
from cvtrain.models.detection.regions import RegionDetector, Said
from cvtrain.models.resnet import check_choice
from cvtrain.models.vgg import VGG

NETWORKS: dict[str, Callable[..., nn.Module]] = {"alexnet": AlexNet, "vgg16": VGG, "cnn": CNN}
AT_ONCE = 128  # crops that are in memory together


class RCNN(RegionDetector):
    """As RegionDetector.

    network: `name` of a classifier and its own arguments; ImageNet weights load below `network.`.
    crop: pixels a side. context: those of them on each side that lie around the proposal.
    """

    def __init__(
        self,
        *,
        num_classes: int = 21,
        network: Mapping[str, Any] = {"name": "alexnet"},
        crop: int = 227,
        context: int = 16,
        **regions: Any,
    ) -> None:
        super().__init__(**regions)
        own = dict(network)
        name = own.pop("name", None)
        check_choice("network.name", name, tuple(NETWORKS))
        self.network = NETWORKS[str(name)](num_classes=num_classes, **own)
        self.crop, self.context = crop, context

    def look(self, images: list[Tensor]) -> Tensor:
        return padded(images, stride=1)

    def classify(self, seen: Tensor, boxes: list[Tensor]) -> Said:
        rois = torch.cat([F.pad(some, (1, 0), value=image) for image, some in enumerate(boxes)])
        scores = [self.network(self.warp(seen, some)).float() for some in rois.split(AT_ONCE)]
        return Said(torch.cat(scores), offsets=None)

    def warp(self, images: Tensor, rois: Tensor) -> Tensor:
        """Crops [R, 3, crop, crop] of boxes [R, 5], of image number and corners: whatever their
        shape, stretched to the square; outside an image there is its mean, 0.
        """
        middle, boxes = centre(rois[:, 1:]), rois[:, 1:]
        half = extent(boxes) / 2 * self.crop / (self.crop - 2 * self.context)
        wider = torch.cat([rois[:, :1], middle - half, middle + half], dim=1)
        return roi_align(images.float(), wider, self.crop, aligned=True)
