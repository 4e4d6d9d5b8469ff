"""A ResNet of ours below the feature pyramid of torchvision's detectors (Lin et al. 2016).

Its layers are named as torchvision names its own (`backbone.body.layer4.0.conv1.weight`): weights
of one fit the other. With 50 layers and the strides in the 3x3 convolutions it is torchvision's
network. The pyramid is made anew, for it goes by the channels of the stages.
"""

import difflib
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from cvtrain.errors import ConfigError
from cvtrain.models.resnet import BASIC, BOTTLENECK, ResNet

DEPTHS = {f"resnet{depth}": depth for depth in (*BASIC, *BOTTLENECK)}
STAGES = ("layer1", "layer2", "layer3", "layer4")


class Stages(nn.Module):
    """Images [N, 3, H, W] to maps of strides 4, 8, 16 and 32, of those stages that are named.

    `returned` has the names of the maps by those of the stages.
    """

    def __init__(self, network: ResNet, returned: Mapping[str, str]) -> None:
        super().__init__()
        self.conv1, self.bn1, self.maxpool = network.conv1, network.bn1, network.maxpool
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        self.returned = dict(returned)
        # Each stage has twice the channels of the one before.
        widest, last = network.fc.in_features, len(STAGES) - 1
        self.channels = [widest >> (last - STAGES.index(stage)) for stage in returned]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        maps: dict[str, Tensor] = {}
        for stage in STAGES:
            x = getattr(self, stage)(x)
            if stage in self.returned:
                maps[self.returned[stage]] = x
        return maps


def body_depth(body: Mapping[str, Any] | None, detector: str) -> int | None:
    """The layers of the ResNet that is asked for; None for torchvision's own body.

    Raises ConfigError for a name that is none, or beside a detector whose body cannot be another.
    """
    name = (body or {}).get("name")
    if name is None:
        return None
    if name not in DEPTHS:
        close = difflib.get_close_matches(str(name), DEPTHS, n=1, cutoff=0.0)[0]
        what = f"no such body of a pyramid (there are {', '.join(DEPTHS)})"
        raise ConfigError(what, f"model.body.name={name}", f"type model.body.name={close}")
    if "resnet50_fpn" not in detector:
        fix = "type model.body.name=null, or model=fasterrcnn_resnet50_fpn, which takes one"
        raise ConfigError(f"{detector} has no body that can be another", "model.body.name", fix)
    return DEPTHS[name]


def put_body(
    backbone: nn.Module, body: Mapping[str, Any], detector: str, *, image_size: int
) -> None:
    """Put the ResNet that is asked for into the backbone that torchvision made, in place.

    Raises ConfigError as `body_depth`, and for an option that it does not take.
    """
    depth = body_depth(body, detector)
    if depth is None:
        return
    options = {key: value for key, value in body.items() if key != "name"}
    for option in options.keys() - {"stride_in", "stem"}:
        raise ConfigError("a body has no such option", f"model.body.{option}", "remove it")
    network = ResNet(depth=depth, num_classes=1, image_size=image_size, **options)
    assert isinstance(backbone, BackboneWithFPN)
    stages = Stages(network, backbone.body.return_layers)
    extra = backbone.fpn.extra_blocks
    if isinstance(extra, LastLevelP6P7) and not extra.use_P5:  # made of the last map itself
        extra = LastLevelP6P7(stages.channels[-1], backbone.out_channels)
    normed = len(backbone.fpn.inner_blocks[0]) > 1
    backbone.body = stages
    backbone.fpn = FeaturePyramidNetwork(
        stages.channels, backbone.out_channels, extra, nn.BatchNorm2d if normed else None
    )
