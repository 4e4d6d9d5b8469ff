"""The network that a verb works on: of a run, or of a config and its weights; no data are read."""

import inspect
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from cvtrain.build import build_model, size_of
from cvtrain.compose import (
    COMPOSITION_ERRORS,
    Composed,
    compose_config,
    explain,
    flatten,
    to_config,
)
from cvtrain.config import GROUPS, Config, flat
from cvtrain.data.batch import DataInfo
from cvtrain.data.scan import class_folders
from cvtrain.data.source import Source
from cvtrain.engine.checkpoint import best_of, load_weights, weights_of
from cvtrain.engine.layers import aliases_of, nearest_layers
from cvtrain.errors import CheckpointError, ConfigError, DataError, nearest
from cvtrain.resume import read_run_checkpoint
from cvtrain.targets import make, resolve
from cvtrain.tasks.base import Task
from cvtrain.trained.runs import find
from cvtrain.trained.start import Start

log = logging.getLogger(__name__)

# What a run brings with it.
TENSORS = ("model", "ema", "optimizer", "scaler", "schedule")
REPLACED = (*GROUPS, "init.weights", "init.reset_head", "resume")


@dataclass(frozen=True)
class Network:
    """A network in evaluation, and the images that it takes: `channels` x `size` x `size`."""

    model: nn.Module
    config: Config
    source: Source  # its info, mean and std; not the data themselves
    channels: int
    size: int  # pixels
    about: dict[str, Any] = field(default_factory=dict)  # of a run's checkpoint all but its tensors


def described(config: Config) -> Source:
    """What is known of a config's data without reading them: classes, channels, size."""
    kind = resolve(config.data.args.get("_target_"), Source, config.trust)
    arguments = config.data.args
    constant = getattr(kind, "classes", None) or getattr(inspect.getmodule(kind), "CLASSES", None)
    count = 80 if config.data.task == "detection" else 1000  # COCO's, ImageNet's
    classes = constant or _folders(arguments) or [str(number) for number in range(count)]
    side = getattr(kind, "native_size", 224)
    native = arguments.get("size", 0) or getattr(kind, "image_size", side)
    mean, std = arguments.get("mean", [0.5]), arguments.get("std", [0.5])
    source = Source()
    source.info = DataInfo(
        name=kind.__name__,
        classes=tuple(classes),
        channels=getattr(kind, "channels", len(mean)),
        image_size=config.data.image_size or native,
        fingerprint="",
        columns=getattr(kind, "drawn", {}),
    )
    source.mean, source.std = mean, std
    return source


def _folders(arguments: dict[str, Any]) -> list[str]:
    """The class folders of an image folder, if it is there."""
    root = Path(str(arguments.get("root", "")))
    folder = root / str(arguments.get("train_dir", "train"))
    try:
        return (
            class_folders(folder if folder.is_dir() else root) if "train_dir" in arguments else []
        )
    except DataError:
        return []


def build(config: Config, source: Source, *, device: torch.device, size: int = 0) -> Network:
    """With random weights; of the size that the data and the network agree on, unless given."""
    size = size or size_of(config, source)
    channels, model = build_model(config, source, size, device=device)
    return Network(model.eval(), config, source, channels, size)


def make_task(network: Network) -> Task:
    """Of a network whose data are not at hand: their counts of samples only weigh the loss."""
    config, info = network.config, network.source.info
    arguments = dict(config.task.args)
    if arguments.get("class_weights") == "auto" and not info.counts:
        arguments["class_weights"] = None
    known = {"num_classes": len(info.classes), "class_counts": info.counts, "info": info}
    return make(arguments, Task, key="task", trust=config.trust, **known)


def of_config(start: Start, source: Source, *, device: torch.device) -> Network:
    """The network of what was typed, with the weights that it names."""
    network = build(start.composed.config, source, device=device)
    if start.weights is None and start.pretrained is None:
        fix = "type run=DIR, model.pretrained=imagenet, or init.weights=FILE"
        log.warning("warning: the weights are random; %s", fix)
    start.load(network.model, source)
    return network


def of_run(run: str, composed: Composed, overrides: list[str], *, device: torch.device) -> Network:
    """The network of a run directory's best checkpoint (else its last), or of a checkpoint file.

    Its config goes through the same checks as a typed one, trusting what is trusted now. Raises
    CheckpointError, ConfigError.
    """
    path = best_of(find(run))
    state = read_run_checkpoint(path)
    config = _config_of_run(state, composed, overrides, path)
    try:
        source = described(config)
        classes = state.get("classes") or source.info.classes
        columns = {name: tuple(map(str, of)) for name, of in (state.get("columns") or {}).items()}
        source.info = replace(source.info, classes=tuple(map(str, classes)), columns=columns)
        network = build(config, source, device=device)
    except ConfigError as error:
        if error.name != "TARGET":
            raise
        what = f"its config cannot be used: {error.what}"
        raise CheckpointError(what, str(path), "do not load it", name="TARGET") from error
    load_weights(network.model, weights_of(state), source=str(path), reset=False)
    averaged = " (averaged)" if state.get("ema") else ""
    log.info("weights%s of %s, step %s", averaged, path, state["position"].get("step"))
    return replace(network, about={k: v for k, v in state.items() if k not in TENSORS})


def _config_of_run(
    state: dict[str, Any], composed: Composed, overrides: list[str], path: Path
) -> Config:
    """The stored config, and over it what was typed: `data=` with its keys, or single keys."""
    try:
        stored = OmegaConf.create(state["config"])
        assert isinstance(stored, DictConfig)
        known = list(flatten(state["config"]))
        stored.trust = composed.config.trust  # what is typed now, not what the run trusted
        if "devices" in stored.model:  # of the machine that trained it
            stored.model.devices = None
        to_config(stored)
    except Exception as error:  # of any parser; nothing of the text was followed
        name = "TARGET" if getattr(error, "name", "") == "TARGET" else "CKPT-CORRUPT"
        what = f"its config cannot be used: {str(error).partition(chr(10))[0]}"
        raise CheckpointError(what, str(path), "do not load it", name=name) from error
    seen = state.get("input") or {}
    trained_on = {k: seen[k] for k in ("mean", "std") if seen.get(k)}
    if stored.model.task != "detection" and seen.get("size"):
        trained_on["image_size"] = seen["size"]
    for word in _with_data(stored, composed, overrides, trained_on):
        _put_over(stored, word, known)
    try:
        return to_config(stored)
    except COMPOSITION_ERRORS as error:
        raise explain(error, []) from error


def _put_over(stored: DictConfig, word: str, known: list[str]) -> None:
    """What is typed, over the stored config."""
    key, equals, value = word.partition("=")
    if not equals or key in REPLACED or key[0] in "+~":
        fix = "leave it out; data=NAME with its keys may be typed"
        raise ConfigError("a run has its own config", word, fix)
    if key not in known:
        raise ConfigError(f"there is no key {key}", word, nearest(key, known, value))
    if key == "data_dir":
        _move_data(stored, value)
        return
    try:
        if isinstance(OmegaConf.select(stored, key), str):  # as it is: a path may hold anything
            OmegaConf.update(stored, key, None if value == "null" else value)
        else:
            stored.merge_with_dotlist([word])
    except Exception as error:  # of YAML's parser
        raise ConfigError(f"{value} is no value", word) from error


def _move_data(stored: DictConfig, folder: str) -> None:
    """What lay below the run's `data_dir` lies below another one."""
    plain: Any = OmegaConf.to_container(stored)  # with its interpolations, as of the environment
    old = str(plain["data_dir"])
    for key, value in flat(plain["data"], "data").items():
        if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
            OmegaConf.update(stored, key, folder + value.removeprefix(old))
    stored.data_dir = folder


def _with_data(
    stored: DictConfig, composed: Composed, overrides: list[str], trained_on: dict[str, Any]
) -> list[str]:
    """Where `data=` is typed, its block replaces the stored one. Returns the words left."""
    if not any(word.startswith("data=") for word in overrides):
        return overrides
    mine = [
        word for word in overrides if word.startswith(("data=", "data.", "data_dir=", "trust="))
    ]
    own = f"model.task={stored.model.task}"
    typed = compose_config([*mine, own, "recipe=none"], extra_dir=composed.extra_dir)
    data = OmegaConf.create(typed.text).data
    for key, value in trained_on.items():  # other images, seen as those that it knows
        if key in data and f"data.{key}" not in {word.partition("=")[0] for word in mine}:
            data[key] = value
    stored.data = data
    return [word for word in overrides if word not in mine]


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """By its name in `named_modules`, or by the paper's in the model file's ALIASES.

    Raises ConfigError with the nearest names.
    """
    modules = dict(model.named_modules())
    if found := modules.get(aliases_of(model).get(name, name or "-")):
        return found
    what = f"there is no layer {name}" if name else "no layer is named"
    fix = f"type layer= and one of {nearest_layers(model, name)}; cvtrain summary lists them all"
    raise ConfigError(what, f"layer={name}", fix)
