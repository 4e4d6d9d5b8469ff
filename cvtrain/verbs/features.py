"""`cvtrain features`: what a layer makes of images, into a `.npz`.

A forward hook, not torchvision's feature extractor: that one has to trace the network, and refuses
those whose forward has a branch or a loop that hangs on the input.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cvtrain import targets
from cvtrain.build_loaders import make_loader, split_of
from cvtrain.compose import Composed
from cvtrain.config import Config, Precision
from cvtrain.data.batch import to_device
from cvtrain.data.crops import CenterCrop
from cvtrain.data.image_folder import ImageFiles
from cvtrain.data.images import BadImage, probe, shown
from cvtrain.data.loader import Loader
from cvtrain.data.scan import SUFFIXES, Scan
from cvtrain.data.source import Source
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.logs import speak
from cvtrain.engine.machine import pick_device, settings
from cvtrain.errors import ConfigError, DataError
from cvtrain.files import whole
from cvtrain.trained.inputs import grey
from cvtrain.trained.network import Network, described, find_layer, of_config, of_run
from cvtrain.trained.start import Start

log = logging.getLogger(__name__)

POOLS = ("avg", "none")
MAX_PIXELS = 100_000_000  # of one image, where the config's data set no limit
LISTED = 20  # bad files that an error names


@dataclass
class Images:
    """What the features are taken of, as batches that `transform` makes ready for the network."""

    loader: Loader
    transform: Any
    labels: list[int] | None  # None: those of the batches
    names: Any  # from a sample's number to its name
    classes: tuple[str, ...]


def features(
    composed: Composed,
    overrides: list[str],
    *,
    run: str,
    layer: str,
    source: str,
    pool: str,
    out: str,
) -> None:
    """Write `features` [N, ...] fp32, `labels` [N] (-1: unknown), `names` [N] and `classes`.

    Raises ConfigError, DataError, CheckpointError, MachineError.
    """
    speak(logging.INFO)
    target = Path(out)
    _check(pool, target)
    device = pick_device(composed.config.trainer.device, Ranks.from_environment())
    if run:
        network, data = of_run(run, composed, overrides, device=device), None
    else:
        start = Start.read(composed, overrides)
        config = start.composed.config
        data = _data_of(config) if source == "data" else described(config)
        network = of_config(start, data, device=device)
    hooked = _hooked(network, layer)
    network.config.trainer.precision = Precision.fp32
    with settings(network.config.trainer):
        if source == "data":
            images = _of_data(network, data or _data_of(network.config), device)
        else:
            images = _of_files(network, Path(source), device)
        found, labels, ids = extract(network.model, hooked, images, device=device, pool=pool)
    names = np.array([images.names(number) for number in ids.tolist()])
    if images.labels is not None:
        labels = np.array(images.labels, dtype=np.int64)[ids]
    with whole(target, key="out") as temporary, temporary.open("wb") as file:
        np.savez(file, features=found, labels=labels, names=names, classes=np.array(images.classes))
    print(f"{out}: features {list(found.shape)} of {layer}, {len(images.classes)} classes")


def _hooked(network: Network, layer: str) -> nn.Module:
    if network.config.model.task == "detection":
        what = "a detector has no features of a whole image"
        raise ConfigError(what, "", "type the run or the model of a classifier")
    return find_layer(network.model, layer)


def _check(pool: str, target: Path) -> None:
    """What can be refused before anything is read."""
    if pool not in POOLS:
        raise ConfigError(f"pool={pool}", "", f"type pool={' or pool='.join(POOLS)}")
    if target.suffix != ".npz":
        raise ConfigError(f"out={target} is no .npz", "", f"type out={target}.npz")
    if not target.parent.is_dir():
        raise ConfigError(f"no folder {target.parent}", f"out={target}", "make it first")


@torch.no_grad()
def extract(
    model: nn.Module, layer: nn.Module, images: Images, *, device: torch.device, pool: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels and numbers of the samples; of the layer's last call in a forward pass."""
    outputs: list[Tensor] = []
    # Pooled or copied at once: what follows may write into it, as ReLU(inplace=True) does.
    handle = layer.register_forward_hook(
        lambda _m, _i, output: outputs.append(pooled(output, pool))
    )
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    try:
        for (batch,) in images.loader.epoch(0):
            outputs.clear()
            model(images.transform(to_device(batch, device)).images)
            if not outputs:
                raise ConfigError("the layer takes no part in evaluation", "layer")
            kept.append((outputs[-1].float().cpu(), batch.labels.cpu(), batch.ids.cpu()))
    finally:
        handle.remove()
        images.loader.close()
    found, labels, ids = (torch.cat(column).numpy() for column in zip(*kept, strict=True))
    return found, labels, ids


def pooled(output: Any, pool: str) -> Tensor:
    """`[N, C, H, W]` to its mean over places `[N, C]`, `[N, tokens, C]` to that over tokens."""
    first = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(first, Tensor):
        raise ConfigError(f"the layer gives a {type(output).__name__}", "layer", "type another one")
    places = {4: (2, 3), 3: (1,)}.get(first.ndim)
    return first.mean(places) if pool == "avg" and places else first.clone()


# The images


def _data_of(config: Config) -> Source:
    source: Source = targets.make(config.data.args, Source, key="data", trust=config.trust)
    return source


def _of_data(network: Network, source: Source, device: torch.device) -> Images:
    """The split `eval.split` of a data set, not augmented."""
    config, size, split = network.config, network.size, network.config.eval.split
    if source.info.channels > network.channels:
        raise ConfigError(
            f"the network takes {network.channels} channel, the data have {source.info.channels}",
            "data",
            "type data= for other images",
        )
    samples = split_of(source, split, size)
    loader = make_loader(config, samples, source, size, False, device, Ranks())
    return Images(
        loader,
        _transform(network, source, device),
        None,
        lambda number: source.name_of(number, str(split)),
        source.info.classes,
    )


def _of_files(network: Network, path: Path, device: torch.device) -> Images:
    """An image, or all below a folder: labelled by its folders where there are any."""
    config, arguments = network.config, network.config.data.args
    files = _image_files(path) if path.is_dir() else [path]
    found = _scan(files, path, arguments)
    # The first folder below the given one; of an image right in it, none.
    folders = ["/".join(file.relative_to(path).parts[:-1][:1]) for file in found.files]
    own, known = sorted(set(folders) - {""}), network.source.info.classes
    classes = known if set(own) <= set(known) else tuple(own)
    labels = [classes.index(name) if name in classes else -1 for name in folders]
    crop = CenterCrop(fraction=arguments.get("crop_fraction", 1.0))
    samples = ImageFiles(found, size=network.size, crop=crop)
    loader = make_loader(config, samples, network.source, network.size, False, device, Ranks())
    normalise = _transform(network, network.source, device)

    def transform(batch: Any) -> Any:
        if network.source.info.channels == 1:  # a network of grey images
            batch = batch._replace(images=torch.stack([grey(image) for image in batch.images]))
        return normalise(batch)

    return Images(loader, transform, labels, lambda i: shown(found.files[i]), classes)


def _transform(network: Network, source: Source, device: torch.device) -> Any:
    return source.transform(
        image_size=network.size,
        channels=network.channels,
        device=device,
        channels_last=network.config.trainer.channels_last,
    )


def _image_files(folder: Path) -> list[Path]:
    """Those below a folder whose suffix is an image's, but hidden ones. Raises DataError."""
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    if not files:
        raise DataError("no images in the folder", shown(folder), "type source=", name="NO-DATA")
    return files


def _scan(files: list[Path], root: Path, arguments: dict[str, Any]) -> Scan:
    """The files with their headers. Raises DataError (BAD-IMAGE) with the path and the reason."""
    found = Scan(root, [], labels=[0] * len(files))
    for file in files:
        try:
            header = probe(file, max_pixels=arguments.get("max_pixels", MAX_PIXELS))
        except BadImage as reason:
            found.bad.append((file, reason))
        else:
            found.files.append(file)
            found.headers.append(header)
    lines = [f"{shown(file)} ({reason})" for file, reason in found.bad]
    if lines and (arguments.get("on_bad") != "skip" or not found.files):
        more = f" and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
        raise DataError(
            f"{len(lines)} of {len(files)} images are bad: {', '.join(lines[:LISTED])}{more}",
            shown(root),
            "mend or remove them",
            name=found.bad[0][1].name,
        )
    for line in lines:
        log.warning("warning: left out: %s", line)
    return found
