"""The thin ResNets for CIFAR-10 (He, Zhang, Ren, Sun 2015, sec. 4.2).

A 3x3 convolution of 16, then 2n layers each of 16, 32 and 64 channels, the image halved by the
first convolution of the second and third stage; global average pooling, linear: depth 6n + 2.
Shortcuts are identities without parameters (option A); `shortcut="B"` puts a 1x1 projection where
the shape changes, as the paper does for ImageNet. Convolutions are initialised after He et al.
(normal, fan out), batch norm as 1 and 0, and the linear layer by PyTorch's default.

Differs: the paper does not say where option A puts its zero channels; here they come last.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from cvtrain.errors import ConfigError


class ZeroPadShortcut(nn.Module):
    """Option A: every second pixel, and zeros for the channels that the input lacks."""

    def __init__(self, extra_channels: int) -> None:
        super().__init__()
        self.extra_channels = extra_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.extra_channels))


def make_shortcut(in_channels: int, width: int, *, option: str) -> nn.Module:
    if in_channels == width:
        return nn.Identity()
    if option == "A":
        return ZeroPadShortcut(width - in_channels)
    projection = nn.Conv2d(in_channels, width, kernel_size=1, stride=2, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(width))


class Block(nn.Module):
    """Two 3x3 convolutions; the second ReLU comes after the addition (Fig. 2)."""

    def __init__(self, in_channels: int, width: int, *, option: str) -> None:
        super().__init__()
        stride = 1 if in_channels == width else 2
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = make_shortcut(in_channels, width, option=option)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + self.shortcut(x))


def stage(in_channels: int, width: int, *, blocks: int, option: str) -> nn.Sequential:
    inputs = (in_channels, *[width] * (blocks - 1))
    return nn.Sequential(*(Block(channels, width, option=option) for channels in inputs))


class ResNetCifar(nn.Module):
    """Float images [N, in_channels, H, W] of any size to logits [N, num_classes].

    Raises ConfigError for a depth that is not 6n + 2, or another shortcut than A and B.
    """

    def __init__(
        self,
        *,
        depth: int = 20,
        num_classes: int = 10,
        in_channels: int = 3,
        shortcut: Literal["A", "B"] = "A",
    ) -> None:
        super().__init__()
        n, rest = divmod(depth - 2, 6)
        if n < 1 or rest:
            nearest = 6 * max(1, round((depth - 2) / 6)) + 2
            raise ConfigError(
                "the depth is 6n + 2 here", f"model.depth={depth}", f"set model.depth={nearest}"
            )
        if shortcut not in ("A", "B"):
            raise ConfigError(
                "no such shortcut", f"model.shortcut={shortcut}", "set model.shortcut=A or B"
            )
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = stage(16, 16, blocks=n, option=shortcut)
        self.layer2 = stage(16, 32, blocks=n, option=shortcut)
        self.layer3 = stage(32, 64, blocks=n, option=shortcut)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(dim=(2, 3)))
