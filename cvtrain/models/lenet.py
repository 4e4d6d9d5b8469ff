"""LeNet-5 as it is built today (LeCun, Bottou, Bengio, Haffner, Proc. IEEE 86(11), 1998, Fig. 2).

Differs: plain tanh, average pooling without trainable coefficients, every C3 map connected to every
S2 map, and a linear output layer; hence 61,706 parameters against the paper's 60,000. The network
of the paper is `lenet_1998`.
"""

import torch
from torch import Tensor, nn


class LeNet5(nn.Module):
    """Float images [N, in_channels, 32, 32] to logits [N, num_classes]."""

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(in_channels, 6, kernel_size=5)
        self.s2 = nn.AvgPool2d(2)
        self.c3 = nn.Conv2d(6, 16, kernel_size=5)
        self.s4 = nn.AvgPool2d(2)
        self.c5 = nn.Conv2d(16, 120, kernel_size=5)
        self.f6 = nn.Linear(120, 84)
        self.output = nn.Linear(84, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.s2(torch.tanh(self.c1(images)))
        x = self.s4(torch.tanh(self.c3(x)))
        x = torch.tanh(self.c5(x)).flatten(1)
        return self.output(torch.tanh(self.f6(x)))
