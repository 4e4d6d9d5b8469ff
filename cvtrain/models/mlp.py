"""Multilayer perceptron: flattened pixels, hidden ReLU layers, a linear output. The baseline."""

from collections.abc import Sequence

from torch import Tensor, nn

from cvtrain.errors import ConfigError


class MLP(nn.Module):
    """Float images [N, in_channels, image_size, image_size] to logits [N, num_classes].

    `hidden` lists the width of each hidden layer (empty: logistic regression); `dropout` is the
    probability after each of them. Raises ConfigError for a width below 1 or a dropout outside
    [0, 1).
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 28,
        hidden: Sequence[int] = (256, 128),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if any(width < 1 for width in hidden):
            raise ConfigError("a layer needs at least 1 unit", f"model.hidden={list(hidden)}")
        if not 0 <= dropout < 1:
            raise ConfigError("dropout is a probability in [0, 1)", f"model.dropout={dropout}")
        inputs = in_channels * image_size**2
        layers: list[nn.Module] = [nn.Flatten()]
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout)]
            inputs = width
        self.hidden = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.hidden(images))
