"""GoogLeNet (Szegedy et al. 2014, Table 1): nine Inception modules, 6,998,552 parameters.

The 5x5 branches are 5x5. Max-pools round up, so that 224 pixels become 112, 56, 28, 14 and 7. Two
auxiliary heads, on 4a and 4d, are there for training only (section 5): then the output is a tuple
of three logits, which the task weighs. `inception="naive"` builds the modules of Figure 2a, without
the 1x1 reductions of 2b, to show what those save.

Differs: the paper does not say how weights start; convolutions are normal after He et al. (fan in)
with biases of 0, linear layers PyTorch's default. The first convolution is a full 7x7; the 2.7 K
weights of Table 1 would be a separable one. The paper gives no constants of its local response
normalisation: they are AlexNet's. The average pooling of the heads, 5x5 every 3 pixels of a map of
14x14, has windows that leave 4x4 of any other map. `batch_norm=True` normalises after every
convolution in place of that response normalisation. Images of at most 64 pixels get a first
convolution of 3x3, stride 1, and no first max-pool (`stem="auto"`); the paper's stem would leave
them maps of 4x4 or less from 4a on.
"""

import logging
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.errors import ConfigError
from cvtrain.models.alexnet import ResponseNorm
from cvtrain.models.resnet import check_choice


class Widths(NamedTuple):
    """The columns of Table 1 for an Inception module, in channels."""

    c1x1: int
    reduce3x3: int
    c3x3: int
    reduce5x5: int
    c5x5: int
    pool_proj: int


TABLE_1 = {
    "3a": Widths(64, 96, 128, 16, 32, 32),
    "3b": Widths(128, 128, 192, 32, 96, 64),
    "4a": Widths(192, 96, 208, 16, 48, 64),
    "4b": Widths(160, 112, 224, 24, 64, 64),
    "4c": Widths(128, 128, 256, 24, 64, 64),
    "4d": Widths(112, 144, 288, 32, 64, 64),
    "4e": Widths(256, 160, 320, 32, 128, 128),
    "5a": Widths(256, 160, 320, 32, 128, 128),
    "5b": Widths(384, 192, 384, 48, 128, 128),
}
POOL_BEFORE = ("4a", "5a")
HEADS_AFTER = ("4a", "4d")
SMALL_IMAGE = 64  # pixels
LEAST = {"imagenet": 64, "small": 16}  # pixels: 4a then has the 4x4 that the heads look at
SMALL_STEM_NOTE = (
    "googlenet: images of %d px get the small stem (3x3, stride 1, one max-pool less); "
    "model.stem=imagenet model.input='fixed 224' restore the paper's"
)

log = logging.getLogger(__name__)


def max_pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


class Conv(nn.Sequential):
    """A convolution that keeps the image's size up to its stride, batch norm if asked, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, *, stride: int = 1, batch_norm: bool
    ) -> None:
        padding = kernel_size // 2
        super().__init__(nn.Conv2d(inputs, outputs, kernel_size, stride=stride, padding=padding))
        if batch_norm:
            self.append(nn.BatchNorm2d(outputs))
        self.append(nn.ReLU(inplace=True))


class Inception(nn.Module):
    """1x1, 3x3, 5x5 and pooling side by side (Fig. 2b); not `reduced`, straight (Fig. 2a)."""

    def __init__(self, inputs: int, widths: Widths, *, reduced: bool, batch_norm: bool) -> None:
        super().__init__()

        def branch(reduce: int, outputs: int, kernel_size: int) -> nn.Sequential:
            if not reduced:
                return nn.Sequential(Conv(inputs, outputs, kernel_size, batch_norm=batch_norm))
            return nn.Sequential(
                Conv(inputs, reduce, 1, batch_norm=batch_norm),
                Conv(reduce, outputs, kernel_size, batch_norm=batch_norm),
            )

        self.branch1x1 = Conv(inputs, widths.c1x1, 1, batch_norm=batch_norm)
        self.branch3x3 = branch(widths.reduce3x3, widths.c3x3, 3)
        self.branch5x5 = branch(widths.reduce5x5, widths.c5x5, 5)
        self.branch_pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1))
        if reduced:
            self.branch_pool.append(Conv(inputs, widths.pool_proj, 1, batch_norm=batch_norm))
        pooled = widths.pool_proj if reduced else inputs
        self.outputs = widths.c1x1 + widths.c3x3 + widths.c5x5 + pooled

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.branch1x1, self.branch3x3, self.branch5x5, self.branch_pool)
        return torch.cat([branch(x) for branch in branches], dim=1)


class AuxiliaryHead(nn.Module):
    """Average pooling to 4x4, 1x1 convolution, two linear layers (section 5): logits."""

    def __init__(self, inputs: int, num_classes: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.conv = Conv(inputs, 128, 1, batch_norm=batch_norm)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        # Of a map of 14 the paper's 5x5 windows every 3 pixels; four a side of any other.
        stride = [side // 4 for side in x.shape[-2:]]
        window = [side - 3 * step for side, step in zip(x.shape[-2:], stride, strict=True)]
        x = self.conv(F.avg_pool2d(x, window, stride))
        return self.fc2(self.dropout(F.relu(self.fc1(x.flatten(1)))))


def takes_small_stem(stem: str, image_size: int) -> bool:
    """Raises ConfigError for a stem that does not exist or is too coarse for such images."""
    check_choice("stem", stem, ("auto", *LEAST))
    small = stem == "small" or (stem == "auto" and image_size <= SMALL_IMAGE)
    least = LEAST["small" if small else "imagenet"]
    if image_size < least:
        what = f"images of {image_size} px are too small for stem={stem}"
        raise ConfigError(what, f"model.stem={stem}", f"set model.input='min {least}'")
    if small and stem == "auto":
        log.info(SMALL_STEM_NOTE, image_size)
    return small


def make_stem(in_channels: int, *, small: bool, batch_norm: bool) -> nn.Sequential:
    """Up to 3a: an eighth of the image's side, of the small stem half of it; 192 channels."""

    def norm() -> nn.Module:
        return nn.Identity() if batch_norm else ResponseNorm()

    kernel_size, stride = (3, 1) if small else (7, 2)
    return nn.Sequential(
        Conv(in_channels, 64, kernel_size, stride=stride, batch_norm=batch_norm),
        nn.Identity() if small else max_pool(),
        norm(),
        Conv(64, 64, 1, batch_norm=batch_norm),
        Conv(64, 192, 3, batch_norm=batch_norm),
        norm(),
        max_pool(),
    )


def init_after_he(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)


class GoogLeNet(nn.Module):
    """Float images [N, in_channels, H, W] to logits [N, num_classes].

    With `aux`, in training to a tuple of three: the network's, those of the head on 4a, of 4d.
    `image_size` (pixels) serves stem="auto" and the check of the least size. Raises ConfigError for
    a stem or inception that does not exist, and for images too small for the stem.
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int = 224,
        aux: bool = True,
        batch_norm: bool = False,
        inception: Literal["reduced", "naive"] = "reduced",
        stem: Literal["auto", "imagenet", "small"] = "auto",
        dropout: float = 0.4,
    ) -> None:
        super().__init__()
        check_choice("inception", inception, ("reduced", "naive"))
        small = takes_small_stem(stem, image_size)
        self.stem = make_stem(in_channels, small=small, batch_norm=batch_norm)
        self.inceptions, self.heads = nn.ModuleDict(), nn.ModuleDict()
        channels = 192
        for name, widths in TABLE_1.items():
            block = Inception(
                channels, widths, reduced=inception == "reduced", batch_norm=batch_norm
            )
            self.inceptions[name], channels = block, block.outputs
            if aux and name in HEADS_AFTER:
                self.heads[name] = AuxiliaryHead(channels, num_classes, batch_norm=batch_norm)
        self.pool = max_pool()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        self.aux_heads = len(self.heads)
        init_after_he(self)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        x, auxiliary = self.stem(images), []
        for name, block in self.inceptions.items():
            x = block(self.pool(x) if name in POOL_BEFORE else x)
            if self.training and name in self.heads:
                auxiliary.append(self.heads[name](x))
        logits = self.fc(self.dropout(x.mean(dim=(2, 3))))
        return (logits, *auxiliary) if auxiliary else logits
