"""What a network starts from: chance, the weights of `init.weights`, or those of
`model.pretrained`, which also settle what the images are normalised and resized to.
"""

import inspect
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from cvtrain.build import channels_of, head_of, size_of
from cvtrain.compose import Composed, to_config
from cvtrain.config import Config
from cvtrain.data.source import Source
from cvtrain.engine.checkpoint import best_of, load_weights, weights_of
from cvtrain.errors import ConfigError
from cvtrain.pretrained import (
    Origin,
    Pretrained,
    fit,
    fit_body,
    origin_of,
    read_pretrained,
)
from cvtrain.pretrained.files import read
from cvtrain.targets import resolve

log = logging.getLogger(__name__)

BACKGROUND = "__background__"  # as torchvision names it


@dataclass(frozen=True)
class Start:
    """`composed` is what was typed, with `followed`: the keys that the weights settled."""

    composed: Composed
    followed: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Any] | None = None
    pretrained: Pretrained | None = None
    origin: Origin | None = None  # where they are but a backbone's

    @classmethod
    def read(cls, composed: Composed, overrides: list[str]) -> "Start":
        """Fetch and read what the config names. Raises ConfigError, CheckpointError, DataError."""
        config = composed.config
        init, model = config.init.weights, config.model
        kinds = {
            "init.weights": init,
            "model.pretrained": model.pretrained,
            "model.pretrained_backbone": model.pretrained_backbone,
        }
        given = {key: word for key, word in kinds.items() if word}
        mine = given.keys() & typed(overrides)
        if len(given) > 1 and len(mine) == 1:  # a recipe's give way to what was typed
            composed = with_values(composed, dict.fromkeys(given.keys() - mine))
            return cls.read(composed, overrides)
        if len(given) > 1:
            words = " ".join(f"{key}={word}" for key, word in given.items())
            raise ConfigError("weights of two kinds", words, "type one of them")
        if init:
            return cls(composed, weights=weights_of(read(best_of(Path(init)))))
        if not given:
            return cls(composed)
        target, origin = resolve(model.args.get("_target_"), nn.Module, config.trust), None
        if model.pretrained:
            pretrained = read_pretrained(model.pretrained, target=target, arguments=model.args)
        else:
            origin = origin_of(target, model.args)
            pretrained = read_pretrained(
                str(model.pretrained_backbone), target=origin.target, arguments=origin.arguments
            )
        wanted = wanted_by(pretrained, composed, target, origin)
        followed = {key: value for key, value in wanted.items() if key not in typed(overrides)}
        if followed:
            words = " ".join(f"{key}={value}" for key, value in followed.items())
            log.info("%s sets %s", pretrained.name, words)
        return cls(with_values(composed, followed), followed, None, pretrained, origin)

    def following(self, followed: dict[str, Any], overrides: list[str]) -> "Start":
        """With keys that weights settled before; a run that goes on does not read those again."""
        values = {key: value for key, value in followed.items() if key not in typed(overrides)}
        return Start(with_values(self.composed, values), followed)

    def load(self, model: nn.Module, source: Source) -> None:
        """Into a network for the classes of `source`. Raises CheckpointError (CKPT-MISMATCH)."""
        config, info = self.composed.config, source.info
        if self.weights is not None:
            init = config.init
            left = load_weights(
                model, self.weights, source=str(init.weights), reset=init.reset_head
            )
            log.info("weights of %s%s", init.weights, f"; new: {', '.join(left)}" if left else "")
        elif self.pretrained is not None and self.origin is not None:
            for line in fit_body(model, self.pretrained, self.origin):
                log.info(line)
        elif self.pretrained is not None:
            head = head_of(config, source, model)
            classes, shown, weights = info.classes, info.shown, self.pretrained
            if config.model.task == "detection":  # its first class is no class of the data
                classes, shown = (BACKGROUND, *classes), (BACKGROUND, *shown)
                known = weights.classes
                known = known if known[:1] in ((), (BACKGROUND,)) else (BACKGROUND, *known)
                weights = replace(weights, classes=known)
            for line in fit(model, weights, head=head, classes=classes, names=shown):
                log.info(line)


def input_of(config: Config, source: Source) -> dict[str, Any]:
    """What a network's weights are trained on, for those who start from them."""
    return {
        "size": size_of(config, source),
        "channels": channels_of(config, source),
        "mean": list(getattr(source, "mean", [])),  # of images, which not all data are
        "std": list(getattr(source, "std", [])),
    }


def wanted_by(
    pretrained: Pretrained, composed: Composed, target: Any, origin: Origin | None
) -> dict[str, Any]:
    """The keys and values that the weights were trained with."""
    model = composed.config.model
    keys: dict[str, Any] = {f"model.{name}": v for name, v in pretrained.arguments.items()}
    if origin is not None:  # a detector sees images of its own size
        body = model.args.get("body", {})
        keys = {f"model.body.{n}": v for n, v in pretrained.arguments.items() if n in body}
    elif model.task != "detection":
        keys["data.image_size"] = pretrained.size
    if "in_channels" in inspect.signature(target).parameters:
        keys["model.in_channels"] = pretrained.channels
    for name in ("mean", "std"):
        if name in composed.config.data.args:
            keys[f"data.{name}"] = getattr(pretrained, name)
    return {key: value for key, value in keys.items() if value is not None}


def typed(overrides: list[str]) -> set[str]:
    return {word.partition("=")[0].lstrip("+") for word in overrides}


def with_values(composed: Composed, values: dict[str, Any]) -> Composed:
    """The same config but for some keys. It is the text that a run keeps, so it changes with it."""
    if not values:
        return composed
    config = OmegaConf.create(composed.text)
    assert isinstance(config, DictConfig)
    for key, value in values.items():
        OmegaConf.update(config, key, value, force_add=True)
    sets = {key: value for key, value in composed.recipe_sets.items() if key not in values}
    text = OmegaConf.to_yaml(config)
    return replace(composed, config=to_config(config), text=text, recipe_sets=sets)
