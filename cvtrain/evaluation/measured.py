"""A run on the data that it is measured on: by the code that evaluates while it is trained."""

import logging
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn import functional as F

from cvtrain.build import size_of
from cvtrain.build_loaders import evaluation_loader
from cvtrain.compose import Composed, compose_config, to_config
from cvtrain.config import Config, DataConfig, EvalSplit
from cvtrain.data.image_folder import ImageFolder, ImageSource
from cvtrain.data.loader import Loader
from cvtrain.data.source import Source
from cvtrain.engine.checkpoint import best_of
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.evaluate import evaluate
from cvtrain.engine.machine import mixed_precision, pick_precision
from cvtrain.errors import ConfigError, CvtrainError
from cvtrain.targets import make
from cvtrain.tasks.base import Evaluator, Task
from cvtrain.trained.classes import joined
from cvtrain.trained.inputs import Inputs, grey
from cvtrain.trained.network import Network, make_task, of_run
from cvtrain.trained.runs import find
from cvtrain.trained.start import typed

log = logging.getLogger(__name__)

# How a network's images are made, which goes with it to other data.
PREPARED = ("mean", "std", "crop_fraction", "long_side", "square")
# Keys of what is trained on, and of what serves in its place where only that is there.
IN_PLACE = {
    "train_dir": "val_dir",
    "train_json": "val_json",
    "train_csv": "val_csv",
    "train_sets": "val_sets",
}


@dataclass
class Measured:
    """A run with its network, and with the data opened."""

    run: str
    path: Path  # of the checkpoint
    network: Network  # its source is that of the data, with the classes in the network's order
    stored: Config
    state: dict[str, Any]  # of the checkpoint, without its tensors
    task: Task
    loader: Loader
    transform: Any
    whole_data: bool  # with what was trained on, by which data are known
    ranks: Ranks

    @property
    def config(self) -> Config:
        """Of this evaluation."""
        return self.network.config

    @property
    def source(self) -> Source:
        return self.network.source

    @property
    def is_own(self) -> bool:
        """Whether these are the data that it was trained on."""
        return self.whole_data and self.source.info.fingerprint == self.state["fingerprint"]

    @property
    def split(self) -> str:
        return str(self.config.eval.split)

    def evaluate(
        self, task: Task, device: torch.device, model: nn.Module | None = None
    ) -> Evaluator:
        """Of the network, or of another model in its place."""
        autocast, _ = mixed_precision(self.config.trainer.precision, device)
        evaluator = evaluate(
            self.network.model if model is None else model,
            self.loader,
            task=task,
            transform=self.transform,
            device=device,
            autocast=autocast,
            ranks=self.ranks,
            max_batches=self.config.eval.max_batches,
        )
        assert evaluator is not None  # nothing stops it
        return evaluator


def opened(
    run: str, composed: Composed, overrides: list[str], device: torch.device, ranks: Ranks
) -> Measured:
    """Raises CheckpointError, ConfigError, DataError."""
    others = any(word.startswith("data=") for word in overrides)
    of_data = [word for word in overrides if word.startswith(("data=", "data.", "data_dir="))]
    own = [word for word in overrides if not (others and word in of_data)]
    network = of_run(run, composed, own, device=device)  # refuses what is not to be followed
    path = best_of(find(run))
    state = network.about
    stored = OmegaConf.create(state["config"])
    assert isinstance(stored, DictConfig)
    stored.trust = composed.config.trust
    config = network.config
    if others:
        config = replace(config, data=_data_config(network, composed, of_data))
    source, whole = _source(config)
    config = _settled(config, source, state, typed(overrides), device, ranks)
    loader, transform, source, size = _readied(network, config, source, device, ranks, others)
    network = replace(network, config=config, source=source, size=size)
    if config.trainer.compile and config.trainer.ema is None:  # as while it was trained
        network.model.compile()
    task, as_stored = make_task(network), to_config(stored)
    return Measured(run, path, network, as_stored, state, task, loader, transform, whole, ranks)


def _readied(
    network: Network,
    config: Config,
    source: Source,
    device: torch.device,
    ranks: Ranks,
    others: bool,
) -> tuple[Loader, Any, Source, int]:
    """Batches, what makes them ready for the network, the data with the network's classes, the
    size of its images.
    """
    channels, size = source.info.channels, network.size if others else size_of(config, source)
    allow = bool(config.data.args.get("allow_other_classes"))
    source.info, join = joined(source.info, network.source.info, allow=allow)
    inputs = Inputs(network, device) if others and isinstance(source, ImageSource) else None
    side = inputs.side if inputs else size
    loader = evaluation_loader(config, source, side, device=device, ranks=ranks)
    normalise = source.transform(
        image_size=size,
        channels=network.channels,
        device=device,
        channels_last=config.trainer.channels_last,
    )
    frame = inputs.frame if inputs else 0

    def transform(batch: Any) -> Any:
        return normalise(_as_known(join(batch), channels > network.channels, frame))

    return loader, transform, source, size


def _as_known(batch: Any, to_grey: bool, frame: int) -> Any:
    """Images in grey for a network that knows no colours, in the frame that its own have."""
    if to_grey:
        images = batch.images
        flat = torch.stack([grey(image) for image in images.flatten(0, -4)])
        batch = batch._replace(images=flat.unflatten(0, images.shape[:-3]))
    if frame:
        around = (frame // 2, frame - frame // 2) * 2
        batch = batch._replace(images=F.pad(batch.images, around))
    return batch


def _data_config(network: Network, composed: Composed, words: list[str]) -> DataConfig:
    """Other data, made ready as those that the network was trained on."""
    own = network.config
    trusted = [f"trust=[{','.join(own.trust)}]"] * bool(own.trust)
    names = [*words, *trusted, "recipe=none", f"model.task={own.model.task}"]
    data = compose_config(names, extra_dir=composed.extra_dir).config.data
    if data.task != own.data.task:
        what = f"a run of {own.data.task} cannot be measured on data of {data.task}"
        raise ConfigError(what, " ".join(words), "type data= for others")
    for key in PREPARED:
        if key in data.args and key in own.data.args and f"data.{key}" not in typed(words):
            data.args[key] = own.data.args[key]
    return replace(data, batch_size=own.data.batch_size)


def _source(config: Config) -> tuple[Source, bool]:
    """The data, and whether they are whole: if need be, what was trained on is left out."""

    def read(arguments: dict[str, Any]) -> Source:
        source: Source = make(arguments, Source, key="data", trust=config.trust)
        return source

    arguments = config.data.args
    try:
        return read(arguments), True
    except CvtrainError as error:
        if error.name not in ("NO-DATA", "DOWNLOAD", "CLASSES", "NOT-WRITABLE"):
            raise
        alone = _alone(arguments, config.eval.split)
        with suppress(CvtrainError):
            if alone != arguments:
                source = read(alone)
                log.info("the training split is not there: %s alone", config.eval.split)
                return source, False
        if error.name == "CLASSES":
            raise
        fix = "type data_dir=FOLDER or data.root=FOLDER for where they are, or data=NAME for others"
        raise type(error)(error.what, error.where, fix, name=error.name) from error


def _alone(arguments: dict[str, Any], split: EvalSplit) -> dict[str, Any]:
    """The arguments where the split to evaluate is all that there is."""
    if split is EvalSplit.test and "val_dir" in arguments:
        return {**arguments, "train_dir": "test", "val_dir": "test"}
    if split is not EvalSplit.val:
        return arguments
    names = {key: of for key, of in IN_PLACE.items() if key in arguments and of in arguments}
    return arguments | {key: arguments[of] for key, of in names.items()}


def _settled(
    config: Config,
    source: Source,
    state: dict[str, Any],
    words: set[str],
    device: torch.device,
    ranks: Ranks,
) -> Config:
    """With the run's own number of threads, on which the order of sums hangs, unless typed.

    Of a folder that is not split and was not trained on, everything is evaluated.
    """
    trainer, split = config.trainer, config.eval.split
    unsplit = isinstance(source, ImageFolder) and not source.is_split
    other = source.info.fingerprint != state["fingerprint"]
    if unsplit and other and words & {"data", "data.root"} and "eval.split" not in words:
        log.info("the folder is not split: all of it is evaluated (eval.split=val: a share of it)")
        split = EvalSplit.all
    threads = trainer.threads
    if "trainer.threads" not in words:
        cores = len(os.sched_getaffinity(0)) // ranks.world_size
        threads = min(state["threads"], max(1, cores))
    precision = pick_precision(trainer.precision, device)
    return replace(
        config,
        eval=replace(config.eval, split=split),
        trainer=replace(trainer, threads=threads, precision=precision),
    )
