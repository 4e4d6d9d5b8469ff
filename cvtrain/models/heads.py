"""Several heads over one backbone: they take the place of a classifier's last linear layer.

Nothing before that layer changes its name, so the weights of the plain classifier load as they
are. A head that is kept has the layer's own names (`fc.weight`, `fc.bias`); a new one called
`level` is `fc.level_head.*`, initialised by PyTorch's default.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from cvtrain.errors import ConfigError

NONE_FITS = "type model=NAME for one that ends in a linear layer, such as resnet18"


class Heads(nn.Module):
    """Features `[N, features]` to logits `[N, outputs]` of each head, by name.

    `heads` have `outputs`, units of a `hidden` layer (0: none) and `pretrained`: at most one is
    `linear` itself, which stands still.
    """

    def __init__(self, linear: nn.Linear, heads: dict[str, Any]) -> None:
        super().__init__()
        self.keys: dict[str, str] = {}  # of each new head, the name of its module
        self.order = tuple(heads)
        for name, head in heads.items():
            if head.pretrained:
                if hasattr(self, "weight"):
                    raise ConfigError("two heads are kept", f"task.heads.{name}", "keep one")
                self.weight, self.bias = linear.weight, linear.bias
                continue
            self.keys[name] = f"{name.replace('.', '-')}_head"  # a module's name has no dot
            if hasattr(self, self.keys[name]):
                raise ConfigError("two heads of one name", f"task.heads.{name}", "rename one")
            self.add_module(self.keys[name], make_head(linear, head))
        for parameter in self.parameters(recurse=False):
            parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {
            name: getattr(self, self.keys[name])(x)
            if name in self.keys
            else F.linear(x, self.weight, self.bias)
            for name in self.order
        }


def make_head(linear: nn.Linear, head: Any) -> nn.Module:
    """A linear layer, or two with a ReLU between them, where `linear` stood."""
    place: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
    if not head.hidden:
        return nn.Linear(linear.in_features, head.outputs, **place)
    return nn.Sequential(
        nn.Linear(linear.in_features, head.hidden, **place),
        nn.ReLU(),
        nn.Linear(head.hidden, head.outputs, **place),
    )


def with_heads(
    network: nn.Module, heads: dict[str, Any], *, image: tuple[int, int, int] | None = None
) -> nn.Module:
    """The same network; where it gave logits it now gives those of each head, by name.

    `image` (channels, height, width) is the shape on which it is tried, without numbers. Raises
    ConfigError for a network that does not end in a linear layer, or has auxiliary heads.
    """
    name = type(network).__name__
    if getattr(network, "aux_heads", 0):
        what = f"{name} has auxiliary heads, which several heads do not go with"
        raise ConfigError(what, "model, task.heads", "type model.aux=false")
    path, last = last_layer(network)
    if not isinstance(last, nn.Linear):
        what = f"{name} ends in {type(last).__name__}, no linear layer that heads could replace"
        raise ConfigError(what, "model", NONE_FITS)
    kept = [key for key, head in heads.items() if head.pretrained]
    if kept and heads[kept[0]].outputs != last.out_features:
        what = f"{heads[kept[0]].outputs} classes, but the network's head has {last.out_features}"
        fix = f"type classes: {last.out_features} there"
        raise ConfigError(what, f"task.heads.{kept[0]}", fix)
    if not path:  # it is that layer, no more
        return Heads(last, heads)
    network.set_submodule(path, Heads(last, heads))
    if image is not None:
        try_heads(network, heads, image)
    return network


def last_layer(network: nn.Module) -> tuple[str, nn.Module]:
    """The name and the module of the last one that holds tensors itself."""
    holders = [
        (name, module)
        for name, module in network.named_modules()
        if [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    ]
    return holders[-1] if holders else ("", network)


def try_heads(network: nn.Module, heads: dict[str, Any], image: tuple[int, int, int]) -> None:
    """One forward pass on shapes alone; raises ConfigError where the heads' logits get lost."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
    training = network.training
    try:
        given = functional_call(network.eval(), shapes, (torch.empty(1, *image, device="meta"),))
        found = {name: tuple(logits.shape) for name, logits in given.items()}
    except (AttributeError, TypeError, RuntimeError, ValueError) as error:
        found, reason = {}, str(error).partition("\n")[0]
    else:
        reason = f"gives {found}"
    network.train(training)
    if found != {name: (1, head.outputs) for name, head in heads.items()}:
        what = f"{type(network).__name__} does not end in its linear layer ({reason})"
        raise ConfigError(what, "model", NONE_FITS)
