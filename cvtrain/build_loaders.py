"""The loaders of a config: its splits, augmented, in the order of its seed."""

import os
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

from cvtrain.config import Config, EvalSplit, Sampler
from cvtrain.data.arrays import Arrays
from cvtrain.data.augment import BatchTransform
from cvtrain.data.image_folder import ImageSource
from cvtrain.data.loader import ArrayLoader, FileLoader, Loader, Order
from cvtrain.data.source import Augmentations, Source
from cvtrain.engine.distributed import Ranks
from cvtrain.errors import ConfigError
from cvtrain.seeding import seed_for
from cvtrain.targets import make


def build_loaders(
    config: Config, source: Source, size: int, *, device: torch.device, ranks: Ranks
) -> tuple[Loader, Loader]:
    augmentations = _augmentations(config, source)
    training = make_loader(
        config, source.train(size, augmentations), source, size, True, device, ranks
    )
    return training, evaluation_loader(config, source, size, device=device, ranks=ranks)


def evaluation_loader(
    config: Config, source: Source, size: int, *, device: torch.device, ranks: Ranks
) -> Loader:
    """The split `eval.split`, unchanged, in `eval.views`."""
    plain = split_of(source, config.eval.split, size)
    plain = source.in_views(plain, config.eval.views, config.eval.scales)
    return make_loader(config, plain, source, size, False, device, ranks)


def split_of(source: Source, split: EvalSplit, size: int) -> Any:
    """A split as it is, not augmented. Raises ConfigError for one that the data have not."""
    if split is EvalSplit.train:
        return source.train(size, Augmentations())
    if split is EvalSplit.val:
        return source.val(size)
    if isinstance(source, ImageSource):
        return source.part(split, size)
    what = f"{source.info.name} has no split {split}"
    raise ConfigError(what, f"eval.split={split}", "type eval.split=val or eval.split=train")


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
    views = getattr(split, "views", 1)  # of each sample in evaluation
    order = Order(
        samples=len(split) if chosen is None else len(chosen),
        batch_size=config.data.batch_size if train else max(1, eval_batch_size(config) // views),
        train=train,
        seed=config.seed,
        accumulate=config.trainer.accumulate if train else 1,
        rank=ranks.rank,
        world_size=ranks.world_size,
        chosen=chosen,
        weights=_balance(split, chosen) if train and balanced else None,
        groups=getattr(split, "groups", None) if train else None,
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


def eval_batch_size(config: Config) -> int:
    """Images of an evaluation batch; those of detection are large."""
    detection = config.data.task == "detection"
    return config.eval.batch_size or (config.data.batch_size if detection else 256)


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
        fix = f"type data.batch_size of {least} to {order.samples}"
        if order.samples < least:
            fix = "take more samples, or fewer processes and micro-batches"
        raise ConfigError(
            f"{order.samples} {split} samples in batches of {order.batch_size} make "
            f"{order.steps} whole steps, shared by {ranks.world_size} processes x "
            f"{order.accumulate} micro-batches",
            "data.batch_size",
            fix,
            name="NO-STEPS",
        )
