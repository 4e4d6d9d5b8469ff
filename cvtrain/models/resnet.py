"""ResNet for ImageNet (He, Zhang, Ren, Sun 2015, Table 1): 18, 34, 50, 101 and 152 layers.

Bottlenecks halve the image in their first 1x1 convolution, as in the released networks of the
paper (ResNet-50: 3.86 G multiply-adds, the paper's 3.8). `stride_in="3x3"` moves that into the 3x3
convolution ("v1.5", 4.09 G), which is torchvision's network. Names and shapes in the state dict are
torchvision's in both, so its weights load in both, but they were trained with the 3x3: set it.

Convolutions are initialised after He et al. (normal, fan out), batch norm as 1 and 0 (no residual
branch starts at zero), the linear layer by PyTorch's default.

`shortcut` is the paper's option: B, a 1x1 projection where the shape changes; A, every second pixel
and zeros for the channels that lack, as in Table 2 for 18 and 34 layers; C, projections everywhere.

Differs: the paper does not say where option A puts its zero channels; here they come last. The
max-pool is padded by 1; the released networks pad by 0 and round up: the same size, windows one
pixel apart. Images of at most 64 pixels, which
the paper's stem would leave 2x2 at the end, get a stem of one 3x3 convolution (`stem="auto"`).
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from cvtrain.errors import ConfigError

# Table 1: blocks in conv2_x, conv3_x, conv4_x, conv5_x
BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BOTTLENECK = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
SMALL_IMAGE = 64  # pixels
SMALL_STEM_NOTE = (
    "resnet%d: images of %d px get the small stem (3x3, stride 1, no max-pool); "
    "model.stem=imagenet restores the paper's"
)

log = logging.getLogger(__name__)


def conv(inputs: int, outputs: int, kernel_size: int, *, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the image's size up to its stride; batch norm follows: no bias."""
    padding = kernel_size // 2
    return nn.Conv2d(inputs, outputs, kernel_size, stride=stride, padding=padding, bias=False)


class ZeroPad(nn.Module):
    """Option A: every `stride`-th pixel, and zeros for the channels that the input lacks."""

    def __init__(self, lacking: int, *, stride: int) -> None:
        super().__init__()
        self.lacking, self.stride = lacking, stride

    def forward(self, x: Tensor) -> Tensor:
        pixels = x[:, :, :: self.stride, :: self.stride]
        return F.pad(pixels, (0, 0, 0, 0, 0, self.lacking))


def make_shortcut(inputs: int, outputs: int, *, stride: int, option: str) -> nn.Module | None:
    """None for the identity: options A and B, where the shape stays."""
    if option != "C" and stride == 1 and inputs == outputs:
        return None
    if option == "A":
        return ZeroPad(outputs - inputs, stride=stride)
    return nn.Sequential(conv(inputs, outputs, 1, stride=stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (Fig. 5, left); the second ReLU comes after the addition."""

    expansion = 1

    def __init__(self, inputs: int, width: int, *, stride: int, shortcut: str = "B") -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = make_shortcut(inputs, width, stride=stride, option=shortcut)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1x1 that narrows, 3x3, 1x1 that widens fourfold (Fig. 5, right)."""

    expansion = 4

    def __init__(
        self, inputs: int, width: int, *, stride: int, shortcut: str, stride_in: str
    ) -> None:
        super().__init__()
        outputs = self.expansion * width
        stride_1x1, stride_3x3 = (stride, 1) if stride_in == "1x1" else (1, stride)
        self.conv1 = conv(inputs, width, 1, stride=stride_1x1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride=stride_3x3)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = make_shortcut(inputs, outputs, stride=stride, option=shortcut)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


BlockType = Callable[..., BasicBlock | Bottleneck]


def stage(block: BlockType, inputs: int, width: int, *, blocks: int, stride: int) -> nn.Sequential:
    """`blocks` blocks; the first takes the stride and may change the number of channels."""
    first = block(inputs, width, stride=stride)
    outputs = width * first.expansion
    return nn.Sequential(first, *(block(outputs, width, stride=1) for _ in range(blocks - 1)))


def check_choice(key: str, value: object, valid: tuple[object, ...]) -> None:
    if value not in valid:
        choices = ", ".join(map(str, valid))
        raise ConfigError(f"no such {key}", f"model.{key}={value}", f"choose from {choices}")


def init_after_he(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class ResNet(nn.Module):
    """Float images [N, in_channels, H, W] of any size to logits [N, num_classes].

    `image_size` (pixels) only serves stem="auto", `stride_in` only depths 50, 101 and 152.
    Raises ConfigError for a depth, shortcut, stride_in or stem that does not exist.
    """

    def __init__(
        self,
        *,
        depth: int = 50,
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int = 224,
        shortcut: Literal["A", "B", "C"] = "B",
        stride_in: Literal["1x1", "3x3"] = "1x1",
        stem: Literal["auto", "imagenet", "small"] = "auto",
    ) -> None:
        super().__init__()
        check_choice("depth", depth, (*BASIC, *BOTTLENECK))
        check_choice("shortcut", shortcut, ("A", "B", "C"))
        check_choice("stride_in", stride_in, ("1x1", "3x3"))
        check_choice("stem", stem, ("auto", "imagenet", "small"))
        small = stem == "small" or (stem == "auto" and image_size <= SMALL_IMAGE)
        if small and stem == "auto":
            log.info(SMALL_STEM_NOTE, depth, image_size)
        self.conv1 = conv(in_channels, 64, 3) if small else conv(in_channels, 64, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        basic = partial(BasicBlock, shortcut=shortcut)
        bottleneck = partial(Bottleneck, shortcut=shortcut, stride_in=stride_in)
        block: BlockType = basic if depth in BASIC else bottleneck
        widening = BasicBlock.expansion if depth in BASIC else Bottleneck.expansion
        blocks = (BASIC | BOTTLENECK)[depth]
        # conv2_x follows the stem's max-pool and so keeps the size.
        self.layer1 = stage(block, 64, 64, blocks=blocks[0], stride=1)
        self.layer2 = stage(block, 64 * widening, 128, blocks=blocks[1], stride=2)
        self.layer3 = stage(block, 128 * widening, 256, blocks=blocks[2], stride=2)
        self.layer4 = stage(block, 256 * widening, 512, blocks=blocks[3], stride=2)
        self.fc = nn.Linear(512 * widening, num_classes)
        init_after_he(self)

    @staticmethod
    def imagenet_weights(
        *, depth: int = 50, shortcut: str = "B", **others: Any
    ) -> tuple[str, dict[str, Any]] | None:
        """torchvision's weights for this network, and the arguments that they were trained with."""
        if shortcut != "B" or depth not in (*BASIC, *BOTTLENECK):
            return None
        return f"ResNet{depth}_Weights.IMAGENET1K_V1", {"stride_in": "3x3", "stem": "imagenet"}

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))
