"""A small convolutional network of no particular paper: quick on a laptop, and the default."""

from collections.abc import Sequence

from torch import Tensor, nn

from cvtrain.errors import ConfigError


def stage(in_channels: int, width: int, *, convs: int) -> nn.Sequential:
    """`convs` times 3x3 convolution, batch norm, ReLU; the image keeps its size."""
    layers: list[nn.Module] = []
    for _ in range(convs):
        layers += [
            # Batch norm subtracts the mean, so a bias before it would do nothing.
            nn.Conv2d(in_channels, width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        in_channels = width
    return nn.Sequential(*layers)


class CNN(nn.Module):
    """Float images [N, in_channels, H, W] to logits [N, num_classes].

    One stage per width, 2x2 max-pooling between stages, global average pooling, dropout, linear.
    Raises ConfigError for no widths, a width or `convs` below 1, or a dropout outside [0, 1).
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64, 128),
        convs: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not widths or any(width < 1 for width in widths):
            raise ConfigError("a stage needs at least 1 channel", f"model.widths={list(widths)}")
        if convs < 1:
            raise ConfigError("a stage needs at least 1 convolution", f"model.convs={convs}")
        if not 0 <= dropout < 1:
            raise ConfigError("dropout is a probability in [0, 1)", f"model.dropout={dropout}")
        inputs = (in_channels, *widths)
        self.stages = nn.ModuleList(
            stage(before, width, convs=convs) for before, width in zip(inputs, widths, strict=False)
        )
        # Rounding up, an image is never pooled away, however many stages there are.
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages[0](images)
        for later in self.stages[1:]:
            x = later(self.pool(x))
        return self.fc(self.dropout(x.mean(dim=(2, 3))))
