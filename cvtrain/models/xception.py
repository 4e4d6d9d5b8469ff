"""Xception (Chollet 2016, Figure 5): depthwise separable convolutions with shortcuts; 22,855,952
parameters.

36 convolutions in 14 modules, a separable one counted as one: a 3x3 of each channel alone, then a
1x1 over channels, with nothing in between. Batch norm (eps 1e-3, as in the author's Keras network)
follows every convolution and separable convolution, none has a bias. The first two convolutions are
not padded, and max-pools are padded as TensorFlow's "same": on both sides of a map of odd size,
right and below only of an even one.

Weights of timm's `legacy_xception`, which are the author's of Keras, load by `from_timm`. timm's
network has another eps, 1e-5, and pads even maps on both sides in max-pooling: its logits differ.

Differs: the paper does not say how weights start; convolutions are normal after He et al. (fan in),
the linear layer is PyTorch's default.
"""

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

# Figure 5, modules 2 to 13: the widths of the separable convolutions; whether the map is halved.
MODULES = (
    ((128, 128), True),
    ((256, 256), True),
    ((728, 728), True),
    *(((728, 728, 728), False),) * 8,
    ((728, 1024), True),
)
# timm's names of the layers outside the modules of MODULES
OUTER = {
    **{"conv1": "blocks.0.0", "bn1": "blocks.0.1", "conv2": "blocks.0.3", "bn2": "blocks.0.4"},
    **{"conv3.conv1": "blocks.13.0.0", "conv3.pointwise": "blocks.13.0.1", "bn3": "blocks.13.0.2"},
    **{"conv4.conv1": "blocks.14.0.0", "conv4.pointwise": "blocks.14.0.1", "bn4": "blocks.14.0.2"},
}
LAST = (1536, 2048)  # the fourteenth, without shortcut
EPS = 1e-3


class Separable(nn.Sequential):
    """3x3 of each channel, 1x1 over channels, batch norm; keeps the image's size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs, eps=EPS),
        )


class SamePool(nn.Module):
    """3x3 max-pooling, stride 2, of n pixels to half of n, rounded up."""

    def forward(self, x: Tensor) -> Tensor:
        # Padded by itself: a pool of the exported formats has the padding of one size only.
        height, width = x.shape[-2:]
        x = F.pad(x, (width % 2, 1, height % 2, 1), value=-math.inf)
        return F.max_pool2d(x, 3, stride=2)


class Block(nn.Module):
    """ReLU before every separable convolution; one that `halves` pools, and projects its shortcut.

    `relu_first=False`: what comes in has just been through a ReLU (the second module).
    """

    def __init__(
        self, inputs: int, widths: tuple[int, ...], *, halves: bool, relu_first: bool
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((inputs, *widths), widths, strict=False):
            layers += [nn.ReLU(), Separable(before, width)]
        self.body = nn.Sequential(*layers[0 if relu_first else 1 :])
        self.shortcut = nn.Sequential()  # the identity
        if halves:
            self.body.append(SamePool())
            self.shortcut.append(nn.Conv2d(inputs, widths[-1], 1, stride=2, bias=False))
            self.shortcut.append(nn.BatchNorm2d(widths[-1], eps=EPS))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


def first(in_channels: int) -> nn.Sequential:
    """Two plain convolutions without padding: 299 pixels become 147."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 32, 3, stride=2, bias=False),
        nn.BatchNorm2d(32, eps=EPS),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 64, 3, bias=False),
        nn.BatchNorm2d(64, eps=EPS),
        nn.ReLU(inplace=True),
    )


def timm_layers() -> dict[str, str]:
    """timm's name of each layer to ours."""
    layers = dict(OUTER)
    for number, (widths, halves) in enumerate(MODULES, start=1):
        theirs, ours = f"block{number}", f"blocks.{number}"
        relu = number > 1  # comes first, in both
        for i in range(len(widths)):  # they count batch norms, which are a part of Separable here
            at, separable = 3 * i + relu, f"{ours}.body.{2 * i + relu}"
            layers[f"{theirs}.rep.{at}.conv1"] = f"{separable}.0"
            layers[f"{theirs}.rep.{at}.pointwise"] = f"{separable}.1"
            layers[f"{theirs}.rep.{at + 1}"] = f"{separable}.2"
        if halves:
            layers |= {f"{theirs}.skip": f"{ours}.shortcut.0"}
            layers |= {f"{theirs}.skipbn": f"{ours}.shortcut.1"}
    return layers


class Xception(nn.Module):
    """Float images [N, in_channels, H, W] of any size from 7 pixels to logits [N, num_classes].

    The eight modules in the middle see 19x19 of 299 pixels, 5x5 of 71 and less of smaller images.
    """

    def __init__(
        self, *, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.blocks, channels = nn.Sequential(first(in_channels)), 64
        for number, (widths, halves) in enumerate(MODULES, start=2):
            self.blocks.append(Block(channels, widths, halves=halves, relu_first=number != 2))
            channels = widths[-1]
        for width in LAST:
            self.blocks.append(nn.Sequential(Separable(channels, width), nn.ReLU(inplace=True)))
            channels = width
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    @staticmethod
    def imagenet_weights(**arguments: Any) -> tuple[str, dict[str, Any]] | None:
        """timm's weights for this network, and the arguments that they want (none)."""
        return "timm/legacy_xception", {}

    @staticmethod
    def from_timm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict by our names; one that has them already is left alone."""
        layers = timm_layers()
        split = ((*name.rpartition("."), tensor) for name, tensor in tensors.items())
        return {f"{layers.get(layer, layer)}{dot}{leaf}": t for layer, dot, leaf, t in split}

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(images)
        return self.fc(self.dropout(x.mean(dim=(2, 3))))
