"""The keys of `cvtrain predict`, the network that they name, and what they set of it."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from cvtrain.compose import Composed, compose_config
from cvtrain.config import Precision, TrainerConfig
from cvtrain.engine.machine import pick_precision
from cvtrain.errors import ConfigError
from cvtrain.media.results import FORMATS
from cvtrain.trained.network import Network, described, of_config
from cvtrain.trained.start import BACKGROUND, Start

log = logging.getLogger(__name__)

DRAWN = 0.5  # the score of what is drawn, where none is typed
METHODS = {"hard": "hard", "soft": "linear", "linear": "linear", "gaussian": "gaussian"}
OF_TASK = {"classification": "imagenet", "detection": "coco"}  # what published weights are of


class Asked(NamedTuple):
    """The verb's keys, read."""

    out: Path
    format: str
    top: int
    threshold: float | None
    nms: str
    draw: bool
    show: bool
    precision: str
    compile: bool


def read_keys(
    out: str,
    *,
    format: str,
    top_k: str,
    threshold: str,
    nms: str,
    draw: str,
    show: str,
    precision: str,
    compile: str,
) -> Asked:
    """Raises ConfigError for a value that is none."""
    one_of("format", format, FORMATS)
    one_of("precision", precision, ("", *Precision))
    one_of("nms", nms, ("", *METHODS))
    for key, value in (("draw", draw), ("show", show), ("compile", compile)):
        one_of(key, value, ("true", "false"))
    if not (top_k.isdecimal() and int(top_k)):
        raise ConfigError(f"top_k={top_k}", "", "type top_k= and a whole number from 1 on")
    try:
        least = float(threshold) if threshold else None
    except ValueError:
        least = -1.0
    if least is not None and not 0 <= least <= 1:
        raise ConfigError(f"threshold={threshold}", "", "type threshold= and a number from 0 to 1")
    folder = Path(out)
    if not out or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"out={out} is no folder", "", "type out=FOLDER")
    switches = (draw == "true", show == "true", precision, compile == "true")
    return Asked(folder, format, int(top_k), least, nms, *switches)


def one_of(key: str, value: str, valid: Iterable[str]) -> None:
    if value not in valid:
        ways = " or ".join(f"{key}={one}" for one in valid if one)
        raise ConfigError(f"{key}={value}", "", f"type {ways}")


def precision_of(typed: str, trainer: TrainerConfig, device: torch.device) -> Precision:
    """As typed; else that of the run, where this device is good at it."""
    wanted = Precision(typed) if typed else trainer.precision
    if wanted is Precision.fp16 and device.type == "cpu":
        if typed:
            what = "fp16 is some 250 times slower than fp32 on a CPU"
            raise ConfigError(what, "precision=fp16", "type precision=bf16")
        wanted = Precision.auto
    return pick_precision(wanted, device)


def typed_network(composed: Composed, overrides: list[str], *, device: torch.device) -> Network:
    """Of `model=` and its weights; without data, those that published weights were trained on."""
    config = composed.config
    mine = any(word.startswith(("data=", "recipe=", "debug=")) for word in overrides)
    if not config.model.pretrained or mine or config.model.task not in OF_TASK:
        start = Start.read(composed, overrides)
        return of_config(start, described(start.composed.config), device=device)
    words = [*overrides, f"data={OF_TASK[config.model.task]}", "recipe=none"]
    start = Start.read(compose_config(words, extra_dir=composed.extra_dir), words)
    source = described(start.composed.config)
    classes = start.pretrained.classes if start.pretrained else ()
    if classes:
        own = classes[1:] if classes[0] == BACKGROUND else classes
        source.info = replace(source.info, classes=own)
    return of_config(start, source, device=device)


def prepare(network: Network, asked: Asked) -> float:
    """Set what is asked of the network. Returns the least score of what is drawn.

    Raises ConfigError where it has no such thing.
    """
    model, config = network.model, network.config
    network.config.task.args.pop("val_losses", None)  # which need the truth
    if asked.nms:
        soft = getattr(model, "soft", None)
        if not isinstance(soft, dict):
            what = "this network has no soft suppression"
            raise ConfigError(what, f"nms={asked.nms}", "leave nms= out; faster_rcnn has it")
        soft["method"] = METHODS[asked.nms]
        soft["least"] = config.model.args.get("final_score", 0.001) * (asked.nms != "hard")
    score = score_of(model)
    if asked.threshold is not None:
        if config.model.task != "detection":
            what = "only a detector's objects have a least score"
            raise ConfigError(what, f"threshold={asked.threshold:g}", "leave it out, or set top_k=")
        if score and getattr(*score) > asked.threshold:
            setattr(*score, asked.threshold)
    elif score:
        text = "objects from a score of %g on; those from %g on are drawn (threshold= sets both)"
        log.info(text, getattr(*score), max(DRAWN, getattr(*score)))
    if asked.compile:
        model.compile()
    return DRAWN if asked.threshold is None else asked.threshold


def score_of(model: nn.Module) -> tuple[Any, str] | None:
    """Where a detector keeps its least score, and under which name."""
    heads = getattr(model, "roi_heads", None)  # of torchvision's
    for holder, name in ((heads, "score_thresh"), (model, "score_thresh"), (model, "score")):
        if isinstance(getattr(holder, name, None), float):
            return holder, name
    return None
