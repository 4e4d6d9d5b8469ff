"""A ResNet of three stages, the small one that courses teach; of no particular paper.

A 7x7 convolution of stride 2, then two basic blocks each (He, Zhang, Ren, Sun 2015, Figure 5, left;
option B) of 64 channels, of 128 at half the size, and of 256 at that size still; global average
pooling, linear.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from cvtrain.models.resnet import BasicBlock, conv, init_after_he, stage


class ResNet3Stage(nn.Module):
    """Float images [N, in_channels, H, W] of any size to logits [N, num_classes]."""

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, 64, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(BasicBlock, 64, 64, blocks=2, stride=1)
        self.layer2 = stage(BasicBlock, 64, 128, blocks=2, stride=2)
        self.layer3 = stage(BasicBlock, 128, 256, blocks=2, stride=1)
        self.fc = nn.Linear(256, num_classes)
        init_after_he(self)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(dim=(2, 3)))
