"""Layers by name: which stand still, and how fast each of the others learns."""

import difflib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cvtrain.errors import ConfigError


def parameters_of(model: nn.Module, layer: str, *, key: str) -> set[str]:
    """The names of the parameters of a layer: its name, the paper's, or a pattern (`layer*`).

    Raises ConfigError with the nearest names.
    """
    wanted = aliases_of(model).get(layer, layer)
    names = [name for name, _ in model.named_parameters()]
    found = {n for n in names if fnmatchcase(n, wanted) or fnmatchcase(n, f"{wanted}.*")}
    if found:
        return found
    what, close = f"there is no layer {layer} with weights", nearest_layers(model, layer, *names)
    fix = f"the nearest are {close}; cvtrain summary model=NAME lists them all"
    raise ConfigError(what, f"{key}={layer}", fix)


def aliases_of(model: nn.Module) -> dict[str, str]:
    """From the paper's names of layers to those in `named_modules`, as the model file has them."""
    return getattr(inspect.getmodule(type(model)), "ALIASES", {})


def nearest_layers(model: nn.Module, name: str, *further: str) -> str:
    """Those whose names are like a wrong one, else the outermost ones."""
    names = [*aliases_of(model), *(name for name, _ in model.named_modules() if name), *further]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return ", ".join(close or [name for name, _ in model.named_children()])


@dataclass
class Frozen:
    """Parameters that stand still: `always`, and before step `until` all but those of `head`.

    Each is a set of names. Whatever stands still has no gradient, so that an optimizer leaves it
    alone; batch norm whose weights stand still keeps its statistics too.
    """

    always: set[str] = field(default_factory=set)
    head: set[str] = field(default_factory=set)
    until: int = 0

    def check(self, model: nn.Module) -> None:
        """Raises ConfigError where there is nothing left to train."""
        trained = self.head if self.until else {name for name, _ in model.named_parameters()}
        if not trained - self.always:
            what = "every layer that could be trained is frozen"
            raise ConfigError(what, "model.freeze", "type fewer layers: model.freeze=[conv1]")

    def apply(self, model: nn.Module, step: int) -> None:
        """Before the step `step`. Nothing is touched where nothing ever stands still."""
        if not self.always and not self.until:
            return
        still = set(self.always)
        if step < self.until:
            still |= {name for name, _ in model.named_parameters()} - self.head
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in still)
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm):
                module.train(not self._stands(model, name))

    def _stands(self, model: nn.Module, name: str) -> bool:
        """Whether a layer's parameters stand still; of one without, those of what it is part of."""
        while True:
            trained = [p.requires_grad for p in model.get_submodule(name).parameters()]
            if trained or not name:
                return not any(trained)
            name = name.rpartition(".")[0]


def rates(model: nn.Module, scale: dict[str, float], decay: float | None) -> dict[str, float]:
    """By what the rate of each parameter is multiplied: by `decay` for every layer between it and
    the last one, and by those of `scale` whose layer it belongs to.
    """
    depths = depths_of(name for name, parameter in model.named_parameters() if parameter.ndim > 1)
    rates, depth = {}, max(depths.values(), default=0)
    for name, _ in model.named_parameters():
        depth = depths.get(block_of(name), depth)  # norms and biases belong to the layer before
        rates[name] = (1.0 if decay is None else decay) ** depth
    for layer, factor in scale.items():
        for name in parameters_of(model, layer, key="optimizer.lr_scale"):
            rates[name] *= factor
    return rates


def depths_of(weights: Iterable[str]) -> dict[str, int]:
    """Of each block that has weights how many come after it."""
    blocks = list(dict.fromkeys(block_of(name) for name in weights))
    return {block: depth for depth, block in enumerate(reversed(blocks))}


def block_of(name: str) -> str:
    """A child of the network, or of a sequence in it: `layer1.0` of `layer1.0.conv1.weight`."""
    words = name.split(".")[:-1]
    return ".".join(words[:2] if len(words) > 1 and words[1].isdigit() else words[:1])
