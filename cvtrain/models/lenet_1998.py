"""LeNet-5 as published (LeCun, Bottou, Bengio, Haffner, Proc. IEEE 86(11), 1998, sec. II.B).

60,000 trainable parameters and 340,908 connections on 32x32 images of one channel: the sparse C3
table, trainable subsampling, the scaled tanh, and Euclidean RBF outputs with fixed centres.

The logits are minus the squared distances to the centres, so that cross-entropy on them, with one
more constant logit -j, is the paper's MAP criterion y_c + log(e^-j + sum_i e^-y_i): set
`task.reject_logit` to -j. Without it the criterion is the same with j infinite.

Differs: trained by SGD, not by the stochastic diagonal Levenberg-Marquardt of the paper (whose
learning rates mean nothing to SGD). The digit bitmaps behind the centres are drawn after the
paper's figure of them, not copied from it. Classes after the tenth, which the paper does not have,
get fixed random codes of +1 and -1. More input channels only give C1 more inputs.
"""

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Table I: the S2 maps that feed each of the 16 maps of C3; 60 links, 10 from every S2 map.
C3_LINKS = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)
# Stylised digits of 7x12 pixels, side by side, drawn after the paper's figure: the RBF centres.
DIGITS = (
    ".#####. ...##.. .#####. ####### .....## ####### ..####. ####### .#####. .#####.",
    "##...## ..###.. ##...## .....## ....### ##..... .##.... #.....# ##...## ##...##",
    "##...## .####.. .....## ....##. ...#### ##..... ##..... .....## ##...## ##...##",
    "##...## ##.##.. .....## ...##.. ..##.## ##..... ##..... ....##. ##...## ##...##",
    "##...## ...##.. ....##. ..####. .##..## ##..... ##..... ....##. .#####. ##...##",
    "##...## ...##.. ....##. .....## ##...## ######. ######. ...##.. .#####. .######",
    "##...## ...##.. ...##.. .....## ##...## .....## ##...## ...##.. ##...## .....##",
    "##...## ...##.. ..##... .....## ####### .....## ##...## ...##.. ##...## .....##",
    "##...## ...##.. .##.... .....## ####### .....## ##...## ..##... ##...## .....##",
    "##...## ...##.. ##..... .....## .....## .....## ##...## ..##... ##...## .....##",
    "##...## ...##.. ##..... ##...## .....## ##...## ##...## ..##... ##...## ....##.",
    ".#####. .###### ####### .#####. .....## .#####. .#####. ..##... .#####. .####..",
)
MAP_SIDES = {"c1": 28, "s2": 14, "c3": 10, "s4": 5, "c5": 1, "f6": 1}  # pixels, Fig. 2
CODE_SEED = 1998  # of the codes of classes after the tenth


def squash(a: Tensor) -> Tensor:
    """1.7159 tanh(2a/3), which maps +-1 to +-1 (appendix A)."""
    return 1.7159 * torch.tanh(2 / 3 * a)


def init_uniform(*parameters: Tensor, fan_in: int) -> None:
    """Uniform in +-2.4 / fan_in, in place; fan_in counts a unit's inputs without its bias."""
    for parameter in parameters:
        nn.init.uniform_(parameter, -2.4 / fan_in, 2.4 / fan_in)


class Subsampling(nn.Module):
    """Sum of 2x2 pixels, times a trainable coefficient per map, plus a bias per map, squashed."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(torch.empty(maps))
        self.bias = nn.Parameter(torch.empty(maps))
        init_uniform(self.coefficient, self.bias, fan_in=4)

    def forward(self, x: Tensor) -> Tensor:
        total = 4 * F.avg_pool2d(x, 2)
        return squash(total * self.coefficient[:, None, None] + self.bias[:, None, None])


class SparseConv(nn.Module):
    """5x5 convolution that holds a kernel only for the (input map, output map) pairs of a table."""

    def __init__(self, links: tuple[tuple[int, ...], ...], *, in_maps: int) -> None:
        super().__init__()
        pairs = [(row, column) for row, columns in enumerate(links) for column in columns]
        self.dense_shape = (len(links), in_maps, 5, 5)
        self.register_buffer("pairs", torch.tensor(pairs).T, persistent=False)  # [2, links]
        self.weight = nn.Parameter(torch.empty(len(pairs), 5, 5))
        self.bias = nn.Parameter(torch.empty(len(links)))
        first = 0
        for row, columns in enumerate(links):
            kernels = self.weight.detach()[first : first + len(columns)]
            init_uniform(kernels, self.bias.detach()[row], fan_in=25 * len(columns))
            first += len(columns)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.get_buffer("pairs")
        dense = self.weight.new_zeros(self.dense_shape).index_put((rows, columns), self.weight)
        return F.conv2d(x, dense, self.bias)


class RBFOutput(nn.Module):
    """Minus the squared distance of F6 [N, 84] to the fixed centre of each class: [N, classes]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        coin = random.Random(CODE_SEED)
        bitmaps = zip(*(row.split() for row in DIGITS), strict=True)
        codes = [[1.0 if ink == "#" else -1.0 for ink in "".join(rows)] for rows in bitmaps]
        while len(codes) < num_classes:
            codes.append([coin.choice((-1.0, 1.0)) for _ in range(84)])
        self.register_buffer("centres", torch.tensor(codes[:num_classes]))

    def forward(self, x: Tensor) -> Tensor:
        return -(x[:, None, :] - self.get_buffer("centres")).square().sum(dim=-1)


class LeNet5_1998(nn.Module):
    """Float images [N, in_channels, 32, 32] to logits [N, num_classes], never above zero.

    The paper's pixels are -0.1 (background) and 1.175 (foreground), about mean 0 and variance 1.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(in_channels, 6, kernel_size=5)
        self.s2 = Subsampling(6)
        self.c3 = SparseConv(C3_LINKS, in_maps=6)
        self.s4 = Subsampling(16)
        self.c5 = nn.Conv2d(16, 120, kernel_size=5)
        self.f6 = nn.Linear(120, 84)
        self.output = RBFOutput(num_classes)
        init_uniform(*self.c1.parameters(), fan_in=25 * in_channels)
        init_uniform(*self.c5.parameters(), fan_in=25 * 16)
        init_uniform(*self.f6.parameters(), fan_in=120)

    def forward(self, images: Tensor) -> Tensor:
        x = self.s2(squash(self.c1(images)))
        x = self.s4(squash(self.c3(x)))
        x = squash(self.c5(x)).flatten(1)
        return self.output(squash(self.f6(x)))

    def connections(self) -> dict[str, int]:
        """Connections of each layer, biases counted, weights once per place that they are used."""
        counts = {}
        for name, side in MAP_SIDES.items():
            layer = self.get_submodule(name)
            if isinstance(layer, Subsampling):
                inputs = 5 * layer.bias.numel()  # four pixels and the bias; one coefficient for all
            else:
                inputs = sum(parameter.numel() for parameter in layer.parameters())
            counts[name] = inputs * side**2
        return counts | {"output": self.output.get_buffer("centres").numel()}
