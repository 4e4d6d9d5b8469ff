"""AlexNet (Krizhevsky, Sutskever, Hinton 2012): 60,965,224 parameters, 724,406,816 multiply-adds.

Two towers of half the kernels each, which see each other's maps in conv3 and in the fully-connected
layers only (Fig. 2). In one piece they are the two groups of each convolution. `devices` puts each
on a device of its own: the numbers, the state dict and, for a seed, the random numbers are the
same, but the parameters, and with them the optimizer's state, are halves; for a single process.

Differs: images are 227x227. The paper writes 224, but its 55x55 maps of conv1 come from 227 without
padding (Fig. 2 also gives 253,440 units to conv1, where 96x55x55 is 290,400). Response
normalisation does not reach over the border between the towers, which the paper leaves open: over
it, the towers would have to exchange maps there, too. The last layer, drawn as one, lives on the
first device. torchvision's alexnet is another network, a single tower of other widths.
"""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvtrain.errors import ConfigError, MachineError

IMAGE_SIZE = 227  # pixels
BIAS_OF_ONE = ("conv2", "conv4", "conv5", "fc6", "fc7")  # section 5; zero in the others


class ResponseNorm(nn.Module):
    """b = a / (k + alpha * sum a^2)^beta, summed over n adjacent maps of a group (section 3.3)."""

    k, n, alpha, beta = 2, 5, 1e-4, 0.75

    def __init__(self, *, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        groups = x.float().chunk(self.groups, dim=1)  # in half precision the squares would overflow
        return torch.cat([self.normed(maps) for maps in groups], dim=1).to(x.dtype)

    def normed(self, maps: Tensor) -> Tensor:
        # Not by torch's own layer: its gradient is refused where kernels must be deterministic.
        squares = maps.square().flatten(2).unsqueeze(1)
        mean = F.avg_pool2d(squares, (self.n, 1), stride=1, padding=(self.n // 2, 0))
        return maps / (self.k + self.n * self.alpha * mean.reshape(maps.shape)) ** self.beta


class Tower(nn.Module):
    """The kernels on one of two devices; of `devices=1` those of both, as groups."""

    def __init__(self, in_channels: int, *, devices: int) -> None:
        super().__init__()
        groups = 2 // devices
        self.conv1 = nn.Conv2d(in_channels, 96 // devices, 11, stride=4)
        self.norm1 = ResponseNorm(groups=groups)
        self.pool1 = nn.MaxPool2d(3, stride=2)
        self.conv2 = nn.Conv2d(96 // devices, 256 // devices, 5, padding=2, groups=groups)
        self.norm2 = ResponseNorm(groups=groups)
        self.pool2 = nn.MaxPool2d(3, stride=2)
        self.conv3 = nn.Conv2d(256, 384 // devices, 3, padding=1)  # sees both towers
        self.conv4 = nn.Conv2d(384 // devices, 384 // devices, 3, padding=1, groups=groups)
        self.conv5 = nn.Conv2d(384 // devices, 256 // devices, 3, padding=1, groups=groups)
        self.pool5 = nn.MaxPool2d(3, stride=2)
        self.fc6 = nn.Linear(256 * 6 * 6, 4096 // devices)
        self.fc7 = nn.Linear(4096, 4096 // devices)

    def conv1_to_2(self, x: Tensor) -> Tensor:
        x = self.pool1(self.norm1(F.relu(self.conv1(x))))
        return self.pool2(self.norm2(F.relu(self.conv2(x))))

    def conv3_to_5(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv4(F.relu(self.conv3(x))))
        return self.pool5(F.relu(self.conv5(x)))

    def full6(self, x: Tensor) -> Tensor:
        return F.relu(self.fc6(x.flatten(1)))

    def full7(self, x: Tensor) -> Tensor:
        return F.relu(self.fc7(x))


class AlexNet(Tower):
    """Float images [N, in_channels, 227, 227] to logits [N, num_classes], on the images' device.

    In one piece it is both towers; of two `devices` the tower on the first, and holds the `second`.
    Raises ConfigError for images of another size or what is no two devices, MachineError (NO-CUDA)
    for a GPU that is not there.
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int = IMAGE_SIZE,
        dropout: float = 0.5,
        devices: Sequence[str] | None = None,
    ) -> None:
        if image_size != IMAGE_SIZE:
            what = f"AlexNet cannot take images of {image_size} px"
            raise ConfigError(what, "model.input", f"type model.input='fixed {IMAGE_SIZE}'")
        places = None if devices is None else two_devices(devices)
        if places is not None:  # a seed gives the same network, on however many devices
            whole = AlexNet(num_classes=num_classes, in_channels=in_channels).state_dict()
        super().__init__(in_channels, devices=1 if places is None else 2)
        self.devices = places
        self.second = None if places is None else Tower(in_channels, devices=2)
        self.dropout = nn.Dropout(dropout)
        self.fc8 = nn.Linear(4096, num_classes)
        if places is not None:
            self.load_state_dict(whole)
            return
        for name, parameter in self.named_parameters():
            layer, _, kind = name.rpartition(".")
            if kind == "weight":
                nn.init.normal_(parameter, std=0.01)
            else:
                nn.init.constant_(parameter, 1.0 if layer in BIAS_OF_ONE else 0.0)

    def forward(self, images: Tensor) -> Tensor:
        x = self.both(Tower.conv1_to_2, images)
        x = self.both(Tower.conv3_to_5, x)
        x = self.drop(self.both(Tower.full6, x))
        x = self.drop(self.both(Tower.full7, x))
        logits = self.fc8(x)  # of several heads a dict, which stays where it is
        return logits.to(images.device) if isinstance(logits, Tensor) else logits

    def drop(self, x: Tensor) -> Tensor:
        """Units that stay are as they were, and all of them halved in evaluation (section 4.2).

        Of both towers at once, so that the random numbers are those of one generator.
        """
        return (1 - self.dropout.p) * self.dropout(x)  # which itself has divided by 1 - p

    def both(self, part: Callable[[Any, Tensor], Tensor], x: Tensor) -> Tensor:
        """`part` of each tower where it lives; their outputs side by side on the first device.

        Each GPU works through a stream of its own and nothing here waits for one, so two are busy
        at the same time. Both copies of x are under way before the first tower begins: they go
        through the stream of the device that they leave.
        """
        if self.second is None:
            return part(self, x)
        towers = (self, self.second)
        inputs = [x.to(tower.conv1.weight.device) for tower in towers]
        first, second = (part(tower, x) for tower, x in zip(towers, inputs, strict=True))
        return torch.cat([first, second.to(first.device)], dim=1)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Wherever `.to()` and its like send the network, the towers stay on their devices."""
        super()._apply(fn, recurse)
        if self.devices is not None and not self.fc8.weight.is_meta:
            for child in self.children():
                child.to(self.devices[child is self.second])
        return self

    def state_dict(self, *args: Any, prefix: str = "", **options: Any) -> Any:
        """That of one piece: of each tensor, a tower has half the rows (kernels or units)."""
        state = super().state_dict(*args, prefix=prefix, **options)
        for name, _ in self.second.named_parameters() if self.second is not None else ():
            half = state[f"{prefix}{name}"]
            other = state.pop(f"{prefix}second.{name}").to(half.device)
            state[f"{prefix}{name}"] = torch.cat([half, other])
        return state

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *others: Any, **options: Any
    ) -> None:
        for name, _ in self.second.named_parameters() if self.second is not None else ():
            if (whole := state_dict.get(f"{prefix}{name}")) is not None:
                halves = whole.tensor_split(2)
                state_dict[f"{prefix}{name}"], state_dict[f"{prefix}second.{name}"] = halves
        super()._load_from_state_dict(state_dict, prefix, *others, **options)


def two_devices(names: Sequence[str]) -> list[torch.device]:
    where = f"model.devices={names}".replace("'", "")  # as it is typed
    fix = "type model.devices=[cuda:0,cuda:1], or null for one piece"
    try:
        devices = [torch.device(name) for name in names]
    except RuntimeError as error:
        raise ConfigError("there is no such device", where, fix) from error
    if len(devices) != 2:
        raise ConfigError("each of AlexNet's two towers needs a device", where, fix)
    gpus = torch.cuda.device_count()
    for device in devices:
        if device.type == "cuda" and (device.index or 0) >= gpus:
            what = f"{device} was asked for, {gpus} GPUs are there"
            raise MachineError(what, where, "type model.devices=null", name="NO-CUDA")
    return devices
