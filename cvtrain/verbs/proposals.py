"""`cvtrain proposals`: what a detector's RPN proposes, into files that `data.proposals=RUN` reads.

Of each image of training as many as the RPN gives in training (`model.rpn.post_nms`, its first
number: 2000 in the paper), of validation as many as in evaluation (its second: 300).
"""

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from cvtrain import targets
from cvtrain.build import size_of
from cvtrain.build_loaders import make_loader
from cvtrain.compose import Composed
from cvtrain.config import Precision
from cvtrain.data.batch import DetectionBatch, to_device
from cvtrain.data.detection import DetectionFiles, DetectionSource
from cvtrain.data.loader import Loader
from cvtrain.data.proposal_files import names_of, read_npz, sizes_of, write_npz
from cvtrain.data.proposals import IN_RUN, IOUS, recalls
from cvtrain.data.source import Augmentations
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.logs import speak
from cvtrain.engine.machine import pick_device, settings
from cvtrain.errors import ConfigError
from cvtrain.files import writing
from cvtrain.trained.network import of_run
from cvtrain.trained.runs import find


def proposals(composed: Composed, overrides: list[str], *, run: str, out: str) -> None:
    """Write `train.npz` and `val.npz`: of all images, whatever `data.limit` is; see write_npz.

    Raises ConfigError, DataError, CheckpointError, MachineError.
    """
    speak(logging.INFO)
    if not run:
        raise ConfigError("no run is named", "", "type run=DIR of a detector with an RPN")
    folder = Path(out) if out else _folder_of(find(run))
    device = pick_device(composed.config.trainer.device, Ranks())
    network = of_run(run, composed, overrides, device=device)
    config, rpn = network.config, getattr(network.model, "rpn", None)
    if not isinstance(rpn, nn.Module):
        what = f"{type(network.model).__name__} has no RPN, whose proposals these would be"
        fix = "type the run of one that has: model=faster_rcnn, or torchvision's"
        raise ConfigError(what, f"run={run}", fix)
    config.trainer.precision, config.data.limit = Precision.fp32, None
    config.data.args.pop("proposals", None)  # those of others, which it does not look at
    source = targets.make(config.data.args, DetectionSource, key="data", trust=config.trust)
    size = size_of(config, source)
    transform = source.transform(image_size=size, channels=3, device=device, channels_last=False)
    with writing(folder, key="out"):
        folder.mkdir(parents=True, exist_ok=True)
    splits = {"train": source.train(size, Augmentations()), "val": source.val(size)}
    with settings(config.trainer):
        for name, samples in splits.items():
            rpn.train(name == "train")  # how many it gives; nothing else hangs on it
            loader = make_loader(config, samples, source, size, False, device, Ranks())
            with tqdm(total=len(samples), desc=name, disable=not sys.stderr.isatty()) as bar:
                boxes = propose(network.model, loader, transform, device=device, bar=bar)
            print(written(folder / f"{name}.npz", samples, boxes))


def _folder_of(run: Path) -> Path:
    """The one in the run directory, also of a checkpoint in it. Raises ConfigError for others."""
    if run.is_file() and run.parent.name != "checkpoints":
        raise ConfigError(f"{run} is in no run directory", "", "type out=FOLDER for the proposals")
    return (run.parents[1] if run.is_file() else run) / IN_RUN


@torch.no_grad()
def propose(
    model: nn.Module, loader: Loader, transform: Any, *, device: torch.device, bar: Any
) -> list[NDArray[np.float32]]:
    """Of each image, in their order, `[P, 4]` in pixels of its file, best first."""
    found: list[NDArray[np.float32]] = []
    try:
        for (batch,) in loader.epoch(0):
            batch = transform(to_device(batch, device))
            for each in zip(proposed(model, batch), batch.images, batch.truths, strict=True):
                found.append(in_file(*each))
            bar.update(len(batch.images))
    finally:
        loader.close()
    return found


def proposed(model: Any, batch: DetectionBatch) -> list[Tensor]:
    """Of each image, in pixels of what the network is given."""
    if hasattr(model, "look"):
        boxes, _ = model.rpn(model.look(batch.images), [image.shape[-2:] for image in batch.images])
    else:  # torchvision's, which wants the true boxes in training
        seen, _ = model.transform(batch.images)
        boxes, _ = model.rpn(seen, model.backbone(seen.tensors), batch.targets)
    return boxes


def in_file(boxes: Tensor, image: Tensor, truth: dict[str, Any]) -> NDArray[np.float32]:
    """In pixels of the file; without those that have no width or height."""
    (height, width), (high, wide) = truth["size"].tolist(), image.shape[-2:]
    boxes = boxes.cpu() * torch.tensor([width / wide, height / high] * 2)
    boxes = boxes.minimum(torch.tensor([width, height] * 2))  # which rounding may have passed
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)].numpy()


def written(file: Path, samples: DetectionFiles, boxes: list[NDArray[np.float32]]) -> str:
    """Write them; what they are worth, of the file as it can be read. Raises MachineError."""
    found = samples.found
    write_npz(file, names_of(found), sizes_of(found), boxes, typed="out")
    met, images, count = recalls(read_npz(file, found), samples.objects)
    shares = " and ".join(f"{met[at]:.1%} at IoU {at}" for at in IOUS)
    return f"{file}: {count:,.1f} boxes an image, recall {shares} (of {images} images)"
