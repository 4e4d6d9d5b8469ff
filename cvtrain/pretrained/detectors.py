"""torchvision's detectors: their published files, as our instance of the same network has them."""

from typing import Any

import torchvision
from torch import Tensor
from torchvision.models import WeightsEnum, detection

from cvtrain.models.zoo import unknown

# Published with a backbone whose batch norm stands still,
FROZEN = ("resnet50_fpn", "mobilenet_v3_large_fpn", "mobilenet_v3_large_320_fpn")
# and of these with an epsilon of 0, where the network has:
EPS = 1e-5
COUNTER = "num_batches_tracked"
WITHOUT_EPS = (
    detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
    detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
    detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1,
)

# What two of them subtract and divide by.
SCALED = {
    "ssd300_vgg16": ([0.48235, 0.45882, 0.40784], [1 / 255] * 3),
    "ssdlite320_mobilenet_v3_large": ([0.5] * 3, [0.5] * 3),
}


def published_detector(name: str) -> tuple[str, dict[str, Any]]:
    """`FasterRCNN_ResNet50_FPN_Weights.COCO_V1`, and the arguments of the network that it wants."""
    valid = torchvision.models.list_models(module=detection)
    if name not in valid:
        raise unknown("torchvision", name, valid, "detector")
    newest = torchvision.models.get_model_weights(name).DEFAULT
    wanted = {"frozen_norm": True} if name.endswith(FROZEN) else {}
    return f"{type(newest).__name__}.{newest.name}", wanted


def by_todays_names(
    weights: WeightsEnum, tensors: dict[str, Tensor], name: str
) -> dict[str, Tensor]:
    """Files are older than some names: torchvision's own network reads them.

    Raises RuntimeError for another network's.
    """
    classes = len(weights.meta["categories"])
    network = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=classes
    )
    network.load_state_dict(tensors)
    # Batch norm that stands still counts nothing.
    found = {k: v for k, v in network.state_dict().items() if k in tensors or COUNTER not in k}
    if weights in WITHOUT_EPS:
        for key, tensor in found.items():
            if key.endswith("running_var"):
                found[key] = tensor - EPS  # to which the network adds it again
    return found
