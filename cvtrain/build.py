"""From a config to its objects: data (their loaders: build_loaders.py), then the network, sized by
the data, optimizer, schedule, task. Targets are resolved in targets.py alone.
"""

import inspect
import logging
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from cvtrain.build_loaders import build_loaders
from cvtrain.config import Config, OptimizerConfig
from cvtrain.data.source import Source
from cvtrain.durations import STEP_UNITS, Duration, Unit
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.layers import Frozen, parameters_of, rates
from cvtrain.engine.plan import Parts, Plan
from cvtrain.engine.schedule import Schedule
from cvtrain.errors import ConfigError
from cvtrain.models.heads import with_heads
from cvtrain.seeding import seed_for
from cvtrain.targets import make, resolve
from cvtrain.tasks.base import Head, Task

log = logging.getLogger(__name__)


def build_parts(config: Config, *, device: torch.device, ranks: Ranks) -> Parts:
    """Everything a trainer needs. Raises what its makers raise, and ConfigError (NO-STEPS)."""
    trust = config.trust
    source: Source = make(config.data.args, Source, key="data", trust=trust)
    size = size_of(config, source)
    train, val = build_loaders(config, source, size, device=device, ranks=ranks)
    channels, model = build_model(config, source, size, device=device)
    if config.trainer.sync_batch_norm and ranks.world_size > 1:
        model = _synchronised(model, device)
    transform = source.transform(
        image_size=size,
        channels=channels,
        device=device,
        channels_last=config.trainer.channels_last,
    )
    info = source.info
    known = {"num_classes": len(info.classes), "class_counts": info.counts, "info": info}
    task = make(config.task.args, Task, key="task", trust=trust, **known)
    frozen = _frozen(config, source, model, train.steps)
    optimizer = _optimizer(config, model)
    schedule = _schedule(config, train.steps)
    count = f"{sum(p.numel() for p in model.parameters()):,}"
    log.info(f"input {channels}x{size}x{size}, {len(info.classes)} classes, {count} parameters")
    return Parts(source, train, val, transform, model, task, optimizer, schedule, frozen)


def build_model(
    config: Config, source: Source, size: int, *, device: torch.device
) -> tuple[int, nn.Module]:
    """The channels that it takes, and the network, for images of `size` pixels of the data."""
    torch.manual_seed(seed_for(config.seed, "init"))
    channels = channels_of(config, source)
    task = resolve(config.task.args.get("_target_"), Task, config.trust)
    outputs = task.outputs(source.info, config.task.args)
    model = _network(config, _count(outputs, source), size, channels, device)
    if isinstance(outputs, dict):
        model = with_heads(model, outputs, image=(channels, size, size))
    layout = torch.channels_last if config.trainer.channels_last else torch.preserve_format
    return channels, model.to(device).to(memory_format=layout)


def _synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """Batch norm over what all processes have of a batch. Raises ConfigError on the CPU."""
    if device.type != "cuda":
        what = "torch synchronises batch norm on GPUs alone"
        raise ConfigError(what, "trainer.sync_batch_norm", "type trainer.sync_batch_norm=false")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def _count(outputs: int | dict[str, Head], source: Source) -> int:
    """Of the numbers that a network gives before several heads are put in place of its own."""
    if isinstance(outputs, int):
        return outputs
    kept = (head.outputs for head in outputs.values() if head.pretrained)
    return next(kept, len(source.info.classes))


def size_of(config: Config, source: Source) -> int:
    """Of the images that the network takes, in pixels."""
    return input_size(config.model.input, config.data.image_size or source.info.image_size)


def channels_of(config: Config, source: Source) -> int:
    """Of the images that the network takes."""
    target = resolve(config.model.args.get("_target_"), nn.Module, config.trust)
    # A network that takes no number of channels was made for RGB: grey images are repeated.
    any_channels = "in_channels" in inspect.signature(target).parameters
    native = source.info.channels if any_channels else 3
    return config.model.args.get("in_channels") or native


def _network(
    config: Config, outputs: int, size: int, channels: int, device: torch.device
) -> nn.Module:
    sizes = {"num_classes": outputs, "in_channels": channels, "image_size": size}
    with device if device.type == "meta" else nullcontext():
        return make(config.model.args, nn.Module, key="model", trust=config.trust, **sizes)


def input_size(wanted: str, native: int) -> int:
    """The side of the network's images in pixels: `fixed 32`, `min 75` or `any`, of native ones."""
    word, _, number = wanted.partition(" ")
    if word == "any" and not number:
        return native
    if word in ("fixed", "min") and number.isdigit():
        return int(number) if word == "fixed" else max(int(number), native)
    raise ConfigError(f"model.input={wanted}", "", "type any, 'min 75' or 'fixed 32'")


def _optimizer(config: Config, model: nn.Module) -> Optimizer:
    # Every parameter from the start: one that is frozen has no gradient and is left alone.
    params = {"params": _groups(config.optimizer, model)}
    optimizer = make(
        config.optimizer.args, Optimizer, key="optimizer", trust=config.trust, **params
    )
    scale = 1.0
    if (meant_for := config.trainer.scale_lr) is not None:
        # Goyal et al. 2017: k times the batch, k times the rate.
        scale = config.data.batch_size / meant_for
        log.info("the rate, meant for batches of %d, is multiplied by %g", meant_for, scale)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"] * group.pop("times", 1.0) * scale
    return optimizer


def _groups(config: OptimizerConfig, model: nn.Module) -> Iterable[Any]:
    """The parameters, one group for each rate."""
    if not config.lr_scale and config.layer_decay is None:
        return model.parameters()
    times = rates(model, config.lr_scale or {}, config.layer_decay)
    return [
        {"params": [p for name, p in model.named_parameters() if times[name] == t], "times": t}
        for t in dict.fromkeys(times.values())
    ]


def _frozen(config: Config, source: Source, model: nn.Module, steps: int) -> Frozen:
    still = {name for name, p in model.named_parameters() if not p.requires_grad}
    for layer in config.model.freeze:
        still |= parameters_of(model, layer, key="model.freeze")
    until = _in_steps(config.trainer.head_first, steps)
    head = set(head_of(config, source, model)) if until else set()
    frozen = Frozen(still, head, until)
    frozen.check(model)
    if still:
        log.info("frozen: %d of %d tensors", len(still), len(list(model.parameters())))
    if until:
        layers = ", ".join(sorted({name.rpartition(".")[0] for name in head}))
        log.info("the head (%s) alone for %d steps, then everything", layers, until)
    return frozen


def head_of(config: Config, source: Source, model: nn.Module) -> dict[str, int]:
    """The names of what in a network's state depends on the classes it tells apart; of each how
    many rows a further class adds.
    """
    task = resolve(config.task.args.get("_target_"), Task, config.trust)
    outputs = task.outputs(source.info, config.task.args)
    count, device = _count(outputs, source), torch.device("meta")
    size, channels = size_of(config, source), channels_of(config, source)
    notes = logging.getLogger("cvtrain.models")
    notes.setLevel(logging.WARNING)  # what they note was said when the network was made
    try:
        fewer, more = (
            _network(config, number, size, channels, device).state_dict()
            for number in (count, count + 1)
        )
    finally:
        notes.setLevel(logging.NOTSET)
    if isinstance(outputs, dict):  # those that are not the network's own
        return dict.fromkeys(model.state_dict().keys() - fewer.keys(), 0)
    rows = {name: len(more[name]) - len(fewer[name]) for name in fewer if fewer[name].ndim}
    return {name: count for name, count in rows.items() if count}


def _schedule(config: Config, steps_per_epoch: int) -> Schedule:
    scheduler, trainer = config.scheduler, config.trainer
    head_first = _in_steps(trainer.head_first, steps_per_epoch)
    arguments = {name: _in_steps(value, steps_per_epoch) for name, value in scheduler.args.items()}
    arguments |= {
        "_target_": scheduler.args.get("_target_"),
        "warmup": _in_steps(scheduler.warmup, steps_per_epoch),
        "warmup_from": scheduler.warmup_from,
        "warmup_shape": scheduler.warmup_shape,
        "head_first": head_first,
        "after_head": trainer.after_head if head_first else 1.0,
    }
    return make(arguments, Schedule, key="scheduler", trust=config.trust)


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
