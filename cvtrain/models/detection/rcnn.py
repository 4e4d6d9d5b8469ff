"""R-CNN (Girshick, Donahue, Darrell, Malik 2013): every proposal is cut out of the image, warped to
one size, and classified by itself.

With AlexNet and the 20 classes of VOC it has 56,954,261 parameters. What is trained here is the
network with its softmax, the paper's fine-tuning (section 2.3), and that softmax detects.

Differs: the paper then fits a linear SVM for each class on fc7, and ridge regressions of the box on
pool5, which are no gradient descent: scripts/rcnn_fit.py fits them, and a network that is `fitted`
detects by them (see rcnn_fitted.py). The regions of a step come from its images, not from the whole
data set.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from cvtrain.errors import ConfigError
from cvtrain.models.alexnet import AlexNet
from cvtrain.models.cnn import CNN
from cvtrain.models.detection.bodies import padded
from cvtrain.models.detection.boxes import centre, extent
from cvtrain.models.detection.rcnn_fitted import Fitted, Reader, detect, load
from cvtrain.models.detection.regions import Detections, RegionDetector, Said, Size
from cvtrain.models.resnet import check_choice
from cvtrain.models.vgg import VGG

NETWORKS: dict[str, Callable[..., nn.Module]] = {"alexnet": AlexNet, "vgg16": VGG, "cnn": CNN}
AT_ONCE = 128  # crops that are in memory together


class RCNN(RegionDetector):
    """As RegionDetector.

    network: `name` of a classifier and its own arguments; ImageNet weights load below `network.`.
    crop: pixels a side. context: those of them on each side that lie around the proposal. fitted: a
    file of machines and regressions that detect in the softmax's place. Raises ConfigError.
    """

    def __init__(
        self,
        *,
        num_classes: int = 21,
        network: Mapping[str, Any] = {"name": "alexnet"},
        crop: int = 227,
        context: int = 16,
        fitted: str | None = None,
        **regions: Any,
    ) -> None:
        super().__init__(**regions)
        own = dict(network)
        name = own.pop("name", None)
        check_choice("network.name", name, tuple(NETWORKS))
        self.network = NETWORKS[str(name)](num_classes=num_classes, **own)
        self.crop, self.context, self.kind = crop, context, str(name)
        self.fitted: Fitted | None = None
        if fitted is not None:
            self.detect_by(load(Path(fitted)))

    def detect_by(self, fitted: Fitted) -> None:
        """The machines and regressions from now on."""
        self.fitted, self.reader = fitted, Reader(self.network, self.kind)

    def look(self, images: list[Tensor]) -> Tensor:
        return padded(images, stride=1)

    def classify(self, seen: Tensor, boxes: list[Tensor]) -> Said:
        rois = torch.cat([F.pad(some, (1, 0), value=image) for image, some in enumerate(boxes)])
        traced = torch.jit.is_tracing() or torch.compiler.is_exporting()  # for any number of them
        parts = [rois] if traced else rois.split(AT_ONCE)
        scores = [self.network(self.warp(seen, some)).float() for some in parts]
        return Said(torch.cat(scores), offsets=None)

    def warp(self, images: Tensor, rois: Tensor) -> Tensor:
        """Crops [R, 3, crop, crop] of boxes [R, 5], of image number and corners: whatever their
        shape, stretched to the square; outside an image there is its mean, 0.
        """
        middle, boxes = centre(rois[:, 1:]), rois[:, 1:]
        half = extent(boxes) / 2 * self.crop / (self.crop - 2 * self.context)
        wider = torch.cat([rois[:, :1], middle - half, middle + half], dim=1)
        return roi_align(images.float(), wider, self.crop, aligned=True)

    @torch.no_grad()
    def detect(self, seen: Tensor, proposals: list[Tensor], sizes: list[Size]) -> Detections:
        """Raises ConfigError for what was fitted to other classes or to another network."""
        if self.fitted is None:
            return super().detect(seen, proposals, sizes)
        scores = self.classify(seen, proposals).scores
        features, pooled = self.reader.taken()
        given = tuple(part.shape for part in self.fitted)
        classes, wide, deep = scores.shape[1] - 1, features.shape[1], pooled.shape[1]
        if given != ((classes, wide + 1), (classes, 4, deep + 1)):
            what = f"model.fitted is of {given[0][0]} classes, the network tells {classes} apart"
            if given[0][0] == classes:
                what = "model.fitted was fitted to another network"
            raise ConfigError(what, "", "fit it to this run: python scripts/rcnn_fit.py RUN")
        counts = [len(boxes) for boxes in proposals]
        each = zip(features.split(counts), pooled.split(counts), proposals, sizes, strict=True)
        return [detect(self.fitted, *one, nms=self.nms, most=self.detections) for one in each]
