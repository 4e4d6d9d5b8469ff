"""The schema of what is ours and closed, with its ranges. Below `compose.py`, a config is this."""

import math
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from cvtrain.durations import STEP_UNITS, Duration, Unit
from cvtrain.errors import ConfigError

GROUPS = ("model", "data", "task", "optimizer", "scheduler", "trainer", "eval", "recipe", "debug")
# A list of choices, each a transform that joins `data.augment`: augment=[pad_crop,flip]
AUGMENT, AUGMENT_KEY = "augment", "augment@data.augment"
MAXIMISED = ("detection",)  # tasks whose primary figure is better the higher it is
# What a `_target_` may lead below; `trust=[package]` adds the user's own.
ALLOWED_PACKAGES = (
    "cvtrain",
    "torch.nn",
    "torch.optim",
    "torchvision.models",
    "torchvision.transforms",
)


def below(name: str, parents: list[str] | tuple[str, ...]) -> bool:
    """Whether a dotted name is one of `parents` or inside one."""
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def bad_targets(flat: dict[str, Any], trust: list[str]) -> list[str]:
    """`key=value` of each `_target_` whose very name is outside; build.py checks the object too."""
    allowed = (*ALLOWED_PACKAGES, *trust)
    targets = {key: str(value) for key, value in flat.items() if key.endswith("_target_")}
    return [f"{key}={name}" for key, name in targets.items() if not below(name, allowed)]


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """`{"optimizer.lr": 0.1, ...}` of nested dicts."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {
        path: leaf
        for key, value in node.items()
        for path, leaf in flat(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def config_dir() -> Path:
    """The packaged configs of a wheel, else the checkout's."""
    packaged = Path(__file__).resolve().parent / "configs"
    return packaged if packaged.is_dir() else packaged.parents[1] / "configs"


def options(group: str, extra: Path | None = None) -> list[str]:
    """The names that can follow `group=`; `extra` is a further tree of the user's."""
    folders = [config_dir(), *([extra] if extra else [])]
    return sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})


class Precision(StrEnum):
    """`auto`: bf16 on CUDA (fp16 with a scaler where the GPU has no bf16), fp32 on the CPU."""

    auto = "auto"
    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"
    fp16 = "fp16"


class Switch(StrEnum):
    """YAML reads a bare `off` as False, so the words are checked, never a boolean."""

    auto = "auto"
    yes = "yes"
    no = "no"


class OnNonfinite(StrEnum):
    error = "error"
    skip = "skip"


class Sampler(StrEnum):
    """`balanced`: every class is drawn as often as any other, samples of small ones repeatedly."""

    shuffle = "shuffle"
    balanced = "balanced"


class Views(StrEnum):
    """`ten_crop`: the middle and the four corners of an image, and their mirror images."""

    one_crop = "one_crop"
    ten_crop = "ten_crop"


class EvalSplit(StrEnum):
    """`test` where the data have one, `all` of a folder that is not split."""

    val = "val"
    train = "train"
    test = "test"
    all = "all"


class WarmupShape(StrEnum):
    linear = "linear"
    constant = "constant"


def timespan(default: str, *, units: tuple[Unit, ...] = STEP_UNITS, low: float = 0) -> Any:
    return field(default=default, metadata={"units": units, "low": low})


def number(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    words: tuple[str, ...] = (),
) -> Any:
    """`words` may stand in its place."""
    return field(default=default, metadata={"low": low, "high": high, "words": words})


# The open groups: the keys named here are ours, `args` holds `_target_` and its arguments.


@dataclass
class ModelConfig:
    task: str = "classification"
    input: str = "any"  # any | min N | fixed N, in pixels
    pretrained: str | None = None  # imagenet, the name of published weights, or a file
    pretrained_backbone: str | None = None  # the same, of the classifier that a detector is made of
    freeze: list[str] = field(default_factory=list)  # layers, by name or pattern
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataConfig:
    task: str = "classification"
    batch_size: int = number(64, low=1)  # samples per optimizer step, over all processes
    limit: int | None = number(None, low=1)  # training samples, chosen by the seed; null: all
    sampler: Sampler = Sampler.shuffle
    image_size: int | None = number(None, low=1)  # pixels; null: the data's native size
    augment: dict[str, Any] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class TaskConfig:
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class OptimizerConfig:
    name: str | None = None  # with optimizer=torch: a class of torch.optim
    lr_scale: dict[str, float] | None = None  # by layer, times the rate
    layer_decay: float | None = number(None, low=0, high=1)  # times the rate, each layer down
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class SchedulerConfig:
    warmup: str = timespan("0st")
    warmup_from: float = number(0.0, low=0, high=1)  # times the rate, at step 0
    warmup_shape: WarmupShape = WarmupShape.linear
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainerConfig:
    duration: str = timespan("10ep", units=tuple(Unit), low=1e-9)
    head_first: str = timespan("0ep")  # the head alone; then everything
    after_head: float = number(1.0, low=0)  # times the rate from then on
    device: str = "auto"
    devices: int | str = number(1, low=1, words=("auto",))  # processes; auto: one for each GPU
    sync_batch_norm: bool = False
    scale_lr: int | None = number(None, low=1)  # samples of the batch that the rate is meant for
    precision: Precision = Precision.auto
    accumulate: int = number(1, low=1)
    clip_norm: float | None = number(None, low=0)
    ema: float | None = number(None, low=0, high=1)
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = False
    threads: int | None = number(None, low=1)
    workers: int | None = number(None, low=0)
    log_every: str = timespan("50st", low=1e-9)
    checkpoint_every: str = timespan("1ep", low=1e-9)
    early_stop: int | None = number(None, low=1)
    on_nonfinite: OnNonfinite = OnNonfinite.error
    max_skips: int | None = number(None, low=0)  # in a row
    profile: int | None = number(None, low=1)  # steps
    progress: Switch = Switch.auto


@dataclass
class EvalConfig:
    every: str = timespan("1ep", low=1e-9)
    split: EvalSplit = EvalSplit.val
    views: Views = Views.one_crop
    scales: list[int] | None = None  # pixels of the short side, one after the other
    batch_size: int | None = number(None, low=1)  # null: 256, in detection as in training
    max_batches: int | None = number(None, low=1)


@dataclass
class InitConfig:
    weights: str | None = None
    reset_head: bool = False


@dataclass
class Config:
    # First, for others interpolate its duration, and a mistake in it is to be named as its own.
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    init: InitConfig = field(default_factory=InitConfig)
    seed: int = number(0, low=0)
    data_dir: str = "data"
    resume: str | None = None  # auto, a run directory or a checkpoint
    resume_allow: list[str] = field(default_factory=list)
    trust: list[str] = field(default_factory=list)
    report: bool = True
    traceback: bool = False
    published: dict[str, Any] = field(default_factory=dict)


def open_keys(kind: type) -> set[str] | None:
    """The keys of an open group that are ours; None for a closed one."""
    names = {f.name for f in fields(kind)}
    return names - {"args"} if "args" in names else None


def check(config: Any, prefix: str = "") -> None:
    """Raise ConfigError for a value out of its range. Types are already right."""
    for item in fields(config):
        key, value = f"{prefix}{item.name}", getattr(config, item.name)
        if is_dataclass(value):
            check(value, f"{key}.")
        elif item.name == "args":
            _check_arguments(value, prefix)
        elif "units" in item.metadata:
            parsed = Duration.parse(value, key, units=item.metadata["units"])
            _check_range(key, parsed.value, item.metadata)
        else:
            _check_range(key, value, item.metadata)


def _check_range(key: str, value: Any, bounds: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value} is not finite", "", f"type a number: {key}=0.1")
    low, high = bounds.get("low"), bounds.get("high")
    words = bounds.get("words", ())
    if isinstance(value, str) and words and value not in words:
        raise ConfigError(f"{key}={value}", "", f"type a number, or {key}={words[0]}")
    if value is None or isinstance(value, bool | str) or (low is None and high is None):
        return
    if (low is not None and value < low) or (high is not None and value > high):
        floor = "more than 0" if low == 1e-9 else f"at least {low}"
        allowed = floor if high is None else f"{low} to {high}"
        raise ConfigError(f"{key}={value} is out of range", "", f"type a value of {allowed}")


# The ranges that torch's optimizers share; they themselves speak up only once torch is loaded.
ARGUMENT_RANGES = {
    "optimizer.lr": {"low": 0},
    "optimizer.momentum": {"low": 0, "high": 1},
    "optimizer.weight_decay": {"low": 0},
    "optimizer.eps": {"low": 0},
    "scheduler.gamma": {"low": 0},
}
# What a schedule takes as a length: a bare number would be steps to one reader, epochs to another.
SPANS = [["scheduler", name] for name in ("step_size", "milestones", "T_max", "total", "every")]


def _check_arguments(arguments: Any, prefix: str) -> None:
    items = arguments.items() if isinstance(arguments, dict) else enumerate(arguments)
    for name, value in items:
        key = f"{prefix}{name}"
        if isinstance(value, dict | list):
            _check_arguments(value, f"{key}.")
        elif key.split(".")[:2] in SPANS:
            Duration.parse(value, key, units=STEP_UNITS)
        elif isinstance(value, float) or key in ARGUMENT_RANGES:
            if key in ARGUMENT_RANGES and not isinstance(value, int | float):
                raise ConfigError(f"{key}={value} is not a number", "", f"type {key}=0.1")
            _check_range(key, value, ARGUMENT_RANGES.get(key, {}))
