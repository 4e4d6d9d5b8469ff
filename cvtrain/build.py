"""The only place that makes objects of a config: data, then the network (sized by the data),
optimizer, schedule, task.

Targets are code: a `_target_` is resolved here alone, and the object it leads to is checked, not
only its name.
"""

import importlib
import inspect
import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Dataset
from torchvision.transforms import v2

from cvtrain.config import (
    ALLOWED_PACKAGES,
    STEP_UNITS,
    Config,
    Duration,
    EvalSplit,
    Sampler,
    SchedulerConfig,
    Unit,
    below,
)
from cvtrain.data.arrays import Arrays
from cvtrain.data.augment import BatchTransform
from cvtrain.data.loader import ArrayLoader, FileLoader, Loader, Order
from cvtrain.data.source import Augmentations, Source
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.plan import Parts, Plan
from cvtrain.engine.schedule import Schedule
from cvtrain.errors import ConfigError, nearest, refused_target
from cvtrain.models.zoo import timm_model, torchvision_model
from cvtrain.seeding import seed_for
from cvtrain.tasks.base import Task

log = logging.getLogger(__name__)

FACTORIES: tuple[Callable[..., Any], ...] = (torchvision_model, timm_model)


# Targets


def resolve(target: object, kind: type | tuple[type, ...], trust: list[str]) -> Any:
    """The class or listed factory that a `_target_` names. Raises ConfigError (TARGET).

    Only modules below an allowed package are imported, and only their own classes are taken: a
    name that leads through another module's attributes (`torch.nn.functional.torch.hub.load`), or
    to something imported from elsewhere, is refused.
    """
    name = str(target)
    path, _, attribute = name.rpartition(".")
    allowed = (*ALLOWED_PACKAGES, *trust)
    if not below(path, allowed):
        raise refused_target(name, f"it is not below {', '.join(allowed)}")
    try:
        found = getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError) as error:
        raise refused_target(name, str(error)) from error
    if isinstance(found, ModuleType) or not below(getattr(found, "__module__", ""), allowed):
        raise refused_target(name, "it is defined elsewhere")
    if found in FACTORIES or (isinstance(found, type) and issubclass(found, kind)):
        return found
    kinds = kind if isinstance(kind, tuple) else (kind,)
    raise refused_target(name, f"it is no {' or '.join(k.__name__ for k in kinds)}")


def make(
    arguments: dict[str, Any],
    kind: type | tuple[type, ...],
    *,
    key: str,
    trust: list[str],
    **given: Any,
) -> Any:
    """Call a group's target with its arguments and with those of `given` that it takes."""
    if "_target_" not in arguments:
        raise ConfigError(f"{key} has no _target_", "", f"choose a {key}: see cvtrain --help")
    target = resolve(arguments["_target_"], kind, trust)
    typed = {name: value for name, value in arguments.items() if name != "_target_"}
    taken = inspect.signature(target).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    for name in typed:
        if name not in taken and not open_ended:
            raise ConfigError(f"there is no key {key}.{name}", "", nearest(name, list(taken)))
    given = {name: value for name, value in given.items() if name in taken and name not in typed}
    try:
        return target(**given, **typed)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error), f"{key}={arguments['_target_']}") from error


# The parts


def build_parts(config: Config, *, device: torch.device, ranks: Ranks) -> Parts:
    """Everything a trainer needs. Raises what its makers raise, and ConfigError (NO-STEPS)."""
    trust = config.trust
    source: Source = make(config.data.args, Source, key="data", trust=trust)
    size = input_size(config.model.input, config.data.image_size or source.info.image_size)
    train, val = _loaders(config, source, size, device=device, ranks=ranks)
    channels, model = build_model(config, source, size, device=device)
    classes = len(source.info.classes)
    transform = source.transform(
        image_size=size,
        channels=channels,
        device=device,
        channels_last=config.trainer.channels_last,
    )
    known = {"num_classes": classes, "class_counts": source.info.counts}
    task = make(config.task.args, Task, key="task", trust=trust, **known)
    optimizer = _optimizer(config, model)
    schedule = _schedule(config.scheduler, train.steps, trust)
    count = f"{sum(p.numel() for p in model.parameters()):,}"
    log.info(f"input {channels}x{size}x{size}, {classes} classes, {count} parameters")
    return Parts(source, train, val, transform, model, task, optimizer, schedule)


def build_model(
    config: Config, source: Source, size: int, *, device: torch.device
) -> tuple[int, nn.Module]:
    """The channels that it takes, and the network, for images of `size` pixels of the data."""
    torch.manual_seed(seed_for(config.seed, "init"))
    target = resolve(config.model.args.get("_target_"), nn.Module, config.trust)
    # A network that takes no number of channels was made for RGB: grey images are repeated.
    any_channels = "in_channels" in inspect.signature(target).parameters
    channels = source.info.channels if any_channels else 3
    classes = len(source.info.classes)
    sizes = {"num_classes": classes, "in_channels": channels, "image_size": size}
    with device if device.type == "meta" else nullcontext():
        model = make(config.model.args, nn.Module, key="model", trust=config.trust, **sizes)
    layout = torch.channels_last if config.trainer.channels_last else torch.preserve_format
    return channels, model.to(device).to(memory_format=layout)


def input_size(wanted: str, native: int) -> int:
    """The side of the network's images in pixels: `fixed 32`, `min 75` or `any`, of native ones."""
    word, _, number = wanted.partition(" ")
    if word == "any" and not number:
        return native
    if word in ("fixed", "min") and number.isdigit():
        return int(number) if word == "fixed" else max(int(number), native)
    raise ConfigError(f"model.input={wanted}", "", "type any, 'min 75' or 'fixed 32'")


def _loaders(
    config: Config, source: Source, size: int, *, device: torch.device, ranks: Ranks
) -> tuple[Loader, Loader]:
    # Evaluated on the training split, a run sees what it was trained on, unchanged.
    on_train = config.eval.split is EvalSplit.train
    augmentations = _augmentations(config, source)
    training = make_loader(
        config, source.train(size, augmentations), source, size, True, device, ranks
    )
    plain = source.train(size, Augmentations()) if on_train else source.val(size)
    return training, make_loader(config, plain, source, size, False, device, ranks)


def _augmentations(config: Config, source: Source) -> Augmentations:
    kinds = (BatchTransform, v2.Transform, nn.Module)
    classes = len(source.info.classes)
    return Augmentations.sort(
        [
            make(node, kinds, key=f"data.augment.{name}", trust=config.trust, num_classes=classes)
            for name, node in config.data.augment.items()
            if node is not None
        ]
    )


def make_loader(
    config: Config,
    split: Any,
    source: Source,
    size: int,
    train: bool,
    device: torch.device,
    ranks: Ranks,
) -> Loader:
    chosen = None
    limited = train or config.eval.split is EvalSplit.train
    if config.data.limit is not None and limited and config.data.limit < len(split):
        generator = torch.Generator().manual_seed(seed_for(config.seed, "limit"))
        chosen = torch.randperm(len(split), generator=generator)[: config.data.limit]
    balanced = config.data.sampler is Sampler.balanced
    order = Order(
        samples=len(split) if chosen is None else len(chosen),
        batch_size=config.data.batch_size if train else config.eval.batch_size,
        train=train,
        seed=config.seed,
        accumulate=config.trainer.accumulate if train else 1,
        rank=ranks.rank,
        world_size=ranks.world_size,
        chosen=chosen,
        weights=_balance(split, chosen) if train and balanced else None,
    )
    _check_steps(order, config, ranks)
    if isinstance(split, Dataset):
        workers = config.trainer.workers
        if workers is None:  # on the CPU the network needs the cores itself
            workers = 0 if device.type == "cpu" else min(8, len(os.sched_getaffinity(0)) - 1)
        return FileLoader(split, order, workers=workers, device=device)
    # A small step up in size is a frame (28 to 32 for LeNet), a large one is resized later.
    native = source.info.image_size
    if isinstance(split, Arrays) and native < size <= 1.25 * native:
        split = split.padded(size)
    return ArrayLoader(split.to(device), order)


def _balance(split: Any, chosen: torch.Tensor | None) -> torch.Tensor:
    """Of each sample one over the size of its class: all classes are drawn alike."""
    labels = getattr(split, "labels", None)
    if labels is None:
        raise ConfigError(
            "data.sampler=balanced needs samples of one label each",
            "data.sampler",
            "type data.sampler=shuffle",
        )
    labels = labels if chosen is None else labels[chosen]
    return 1 / labels.bincount().double()[labels]


def _check_steps(order: Order, config: Config, ranks: Ranks) -> None:
    split = "train" if order.train else "val"
    least = ranks.world_size * order.accumulate
    if order.samples == 0:
        raise ConfigError(
            f"the {split} split has no samples, which make no step",
            "data",
            "put some there, or type other data",
            name="NO-STEPS",
        )
    if order.steps == 0 or (order.train and order.batch_size < least):
        raise ConfigError(
            f"{order.samples} {split} samples in batches of {order.batch_size} make "
            f"{order.steps} whole steps, shared by {ranks.world_size} processes x "
            f"{order.accumulate} micro-batches",
            "data.batch_size",
            f"type data.batch_size of {least} to {max(order.samples, least)}",
            name="NO-STEPS",
        )


def _optimizer(config: Config, model: nn.Module) -> Optimizer:
    # Every parameter from the start: one that is frozen has no gradient and is left alone.
    params = {"params": model.parameters()}
    optimizer = make(
        config.optimizer.args, Optimizer, key="optimizer", trust=config.trust, **params
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def _schedule(config: SchedulerConfig, steps_per_epoch: int, trust: list[str]) -> Schedule:
    arguments = {name: _in_steps(value, steps_per_epoch) for name, value in config.args.items()}
    arguments |= {
        "_target_": config.args.get("_target_"),
        "warmup": _in_steps(config.warmup, steps_per_epoch),
        "warmup_from": config.warmup_from,
        "warmup_shape": config.warmup_shape,
    }
    return make(arguments, Schedule, key="scheduler", trust=trust)


def _in_steps(value: Any, steps_per_epoch: int) -> Any:
    """Durations, which are the strings of a schedule's arguments, as optimizer steps."""
    if isinstance(value, list):
        return [_in_steps(item, steps_per_epoch) for item in value]
    if not isinstance(value, str) or Duration.match(value) is None:
        return value
    return Duration.parse(value, "scheduler", units=STEP_UNITS).steps(steps_per_epoch)


def build_plan(config: Config, steps_per_epoch: int) -> Plan:
    """Every duration in optimizer steps."""

    def steps(text: str, key: str) -> int:
        return max(1, Duration.parse(text, key).steps(steps_per_epoch))

    length = Duration.parse(config.trainer.duration, "trainer.duration")
    timed = length.unit is Unit.minutes
    return Plan(
        batch_size=config.data.batch_size,
        total=None if timed else max(1, length.steps(steps_per_epoch)),
        seconds=60 * length.value if timed else None,
        log_every=steps(config.trainer.log_every, "trainer.log_every"),
        eval_every=steps(config.eval.every, "eval.every"),
        checkpoint_every=steps(config.trainer.checkpoint_every, "trainer.checkpoint_every"),
    )
