"""What detectors are built on: a network for the map of an image, and one for what is pooled of it.

Parameters are named as in the ImageNet network that a body comes from, so that its weights load
below the detector's prefix `body.`: `body.features.0.weight`, `body.layer4.2.conv3.weight`.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvtrain.errors import ConfigError
from cvtrain.models.resnet import Bottleneck, ResNet, check_choice
from cvtrain.models.vgg import VGG
from cvtrain.models.zoo import freeze_norm

FROZEN_VGG = (0, 5, 10)  # layers of `features` before conv1, conv2 and conv3


class Body(nn.Module):
    """`forward`: images [N, 3, H, W], H and W multiples of `stride`, to maps [N, channels, h, w].
    `head`: what is pooled of a map, [R, channels, bins down, bins across], to [R, features].
    """

    stride: int  # pixels between two cells of the map
    channels: int
    features_out: int

    def head(self, pooled: Tensor) -> Tensor:
        raise NotImplementedError


class VGGBody(Body):
    """VGG-16 without its last pool, which RoI pooling replaces; the head is fc6 and fc7.

    The first `frozen_stages` of its five blocks stand still: conv1 and conv2 in the papers.
    """

    stride, channels, features_out = 16, 512, 4096

    def __init__(
        self, *, pooled: tuple[int, int], frozen_stages: int = 2, dropout: float = 0.5
    ) -> None:
        super().__init__()
        check_choice("body.frozen_stages", frozen_stages, (0, 1, 2))
        vgg = VGG(config="D", num_classes=1, dropout=dropout)
        self.features = vgg.features[:-1]
        self.classifier = vgg.classifier[:-1]
        if math.prod(pooled) != 49:  # no longer the fc6 of the paper
            self.classifier[0] = nn.Linear(512 * math.prod(pooled), 4096)
        self.features[: FROZEN_VGG[frozen_stages]].requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)

    def head(self, pooled: Tensor) -> Tensor:
        return self.classifier(pooled.flatten(1))


class ResNetBody(Body):
    """ResNet; the first `frozen_stages` stand still: 1 is conv1, 2 also conv2_x.

    `layers="c4"`: the map is conv4_x, of stride 16, the head conv5_x and the mean over its cells
    (He, Zhang, Ren, Sun 2015, appendix A). "c5": the map is conv5_x, of stride 32, the head one
    hidden layer of `hidden` units.

    `batch_norm="frozen"`: statistics, scales and shifts are constants, those of the ImageNet
    weights. Without such weights it normalises nothing, and "live" is what trains.
    """

    def __init__(
        self,
        *,
        pooled: tuple[int, int],
        depth: int = 50,
        layers: Literal["c4", "c5"] = "c4",
        stride_in: Literal["1x1", "3x3"] = "1x1",
        batch_norm: Literal["frozen", "live"] = "frozen",
        frozen_stages: int = 2,
        hidden: int = 1024,
    ) -> None:
        super().__init__()
        check_choice("body.depth", depth, (50, 101, 152))
        check_choice("body.layers", layers, ("c4", "c5"))
        check_choice("body.batch_norm", batch_norm, ("frozen", "live"))
        check_choice("body.frozen_stages", frozen_stages, (0, 1, 2))
        network = ResNet(depth=depth, num_classes=1, stride_in=stride_in, stem="imagenet")
        self.conv1, self.bn1, self.maxpool = network.conv1, network.bn1, network.maxpool
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        self.c4 = layers == "c4"
        self.stride, self.channels = (16, 1024) if self.c4 else (32, 2048)
        self.features_out = 2048 if self.c4 else hidden
        if not self.c4:
            self.hidden = nn.Linear(2048 * math.prod(pooled), hidden)
            nn.init.normal_(self.hidden.weight, std=0.01)
            nn.init.zeros_(self.hidden.bias)
        elif min(pooled) == 1:
            what = "conv5_x takes a map, not a pyramid"
            raise ConfigError(what, "model.roi_pool=spp", "type model.roi_pool=align")
        stages = (nn.ModuleList([self.conv1, self.bn1]), self.layer1)[:frozen_stages]
        for stage in stages:
            stage.requires_grad_(False)
        if batch_norm == "frozen":
            freeze_norm(self)
            soften(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return x if self.c4 else self.layer4(x)

    def head(self, pooled: Tensor) -> Tensor:
        if self.c4:
            return self.layer4(pooled).mean(dim=(2, 3))
        return F.relu(self.hidden(pooled.flatten(1)))


def soften(network: nn.Module) -> None:
    """Until weights are loaded, what so many blocks add up is of the size of what went in."""
    blocks = [module for module in network.modules() if isinstance(module, Bottleneck)]
    for block in blocks:
        nn.init.constant_(block.bn3.weight, len(blocks) ** -0.5)


class TinyBody(Body):
    """3x3 convolutions with group norm: from zero, on few and small images, on a laptop.

    `widths` are the channels of each convolution; the first three halve the image. Statistics are
    taken over the whole padded image: images of several sizes in a batch are not quite alone.
    """

    stride = 8

    def __init__(
        self,
        *,
        pooled: tuple[int, int],
        widths: list[int] | tuple[int, ...] = (24, 48, 96, 96, 96),
        groups: int = 8,
        hidden: int = 128,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (inputs, width) in enumerate(zip((3, *widths), widths, strict=False)):
            stride = 2 if number < 3 else 1
            layers += [nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)]
            layers += [nn.GroupNorm(groups, width), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.channels, self.features_out = widths[-1], hidden
        self.hidden = nn.Linear(self.channels * math.prod(pooled), hidden)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(self.hidden.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)

    def head(self, pooled: Tensor) -> Tensor:
        return F.relu(self.hidden(pooled.flatten(1)))


BODIES: dict[str, Callable[..., Body]] = {"vgg16": VGGBody, "resnet": ResNetBody, "tiny": TinyBody}


def make_body(arguments: Mapping[str, Any], pooled: tuple[int, int]) -> Body:
    """Of a `name` and its own arguments. Raises ConfigError for another name, TypeError for others.

    `pooled` are the bins down and across of what its head will get.
    """
    given = dict(arguments)
    name = given.pop("name", None)
    check_choice("body.name", name, tuple(BODIES))
    return BODIES[cast(str, name)](pooled=pooled, **given)


def classifier_of(
    arguments: Mapping[str, Any], pooled: tuple[int, int]
) -> tuple[type[nn.Module], dict[str, Any], str, str] | None:
    """The network that a body comes from, its arguments, and how the same names begin, there and
    in a detector. None for a body that comes from none.
    """
    name = arguments.get("name")
    if name == "vgg16":
        part = "" if math.prod(pooled) == 49 else "features."  # another fc6 is not the paper's
        return VGG, {"config": "D"}, part, f"body.{part}"
    if name == "resnet":
        return ResNet, {"depth": arguments.get("depth", 50)}, "", "body."
    return None


def padded(images: Iterable[Tensor], stride: int) -> Tensor:
    """[N, C, H, W] of images [C, h, w] of any sizes, with zeros right and below, up to `stride`."""
    images = list(images)
    height, width = (
        max((image.shape[side] + stride - 1) // stride * stride for image in images)
        for side in (-2, -1)
    )
    return torch.stack(
        [F.pad(i, (0, width - i.shape[-1], 0, height - i.shape[-2])) for i in images]
    )


def init_normal(layer: nn.Conv2d | nn.Linear, std: float) -> None:
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
