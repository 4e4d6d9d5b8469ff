"""Fits R-CNN's support vector machines and box regressions to a run, and measures both.

    cvtrain model=rcnn_tiny data=shapes_boxes
    python scripts/rcnn_fit.py outputs/rcnn_tiny_shapes_boxes/TIME
    python scripts/rcnn_fit.py outputs/rcnn_voc/TIME data.proposals=proposals data.limit=1000

They are written to `rcnn_fit.pt` in the run (`--out`): plain tensors, by which `cvtrain eval` and
`cvtrain predict` detect where model.fitted=FILE names them (Girshick, Donahue, Darrell, Malik 2013,
section 2.3 and appendices B and C). Features are those of the network's last hidden layer for the
machines, fc7, and of its last map for the boxes, pool5; both are scaled to a mean norm of 20. How
they are fitted: rcnn_machines.py.

Differs: what overlaps a crowd is a negative as others are. The norm is that of true boxes.
"""

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rcnn_machines import Regions, learn
from torch import Tensor, nn

from cvtrain.build_loaders import make_loader
from cvtrain.compose import compose_config
from cvtrain.config import EvalSplit
from cvtrain.data.batch import to_device
from cvtrain.data.loader import Loader
from cvtrain.data.source import Augmentations, Source
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.evaluate import evaluate
from cvtrain.engine.logs import speak
from cvtrain.engine.machine import pick_device
from cvtrain.errors import CheckpointError, ConfigError, CvtrainError
from cvtrain.files import whole
from cvtrain.models.detection.rcnn import RCNN
from cvtrain.models.detection.rcnn_fitted import Fitted, Reader
from cvtrain.models.detection.regions import tidy
from cvtrain.targets import make
from cvtrain.trained.network import Network, make_task, of_run

NORM = 20.0  # of features, in the mean: what COST and RIDGE are made for


class Regioned:
    """An RCNN that tells what its two layers make of regions. Raises ConfigError for another."""

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, RCNN):
            what = f"{type(model).__name__} is no R-CNN"
            raise ConfigError(what, "", "type the run of model=rcnn or model=rcnn_tiny")
        self.model, self.reader = model, Reader(model.network, model.kind)

    @torch.no_grad()
    def read(self, image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [R, D] and [R, P] of `boxes` [R, 4], in pixels of `image` [3, H, W]."""
        self.model.classify(self.model.look([image]), [boxes])
        return self.reader.taken()


def batches(loader: Loader, transform: Any, device: torch.device) -> Iterator[Any]:
    for micro_batches in loader.epoch(0):
        for batch in micro_batches:
            yield transform(to_device(batch, device))


def fit(reader: Regioned, passes: Any, classes: int) -> Fitted:
    """`passes()` gives the training batches, each time from the first. Two passes."""
    true: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in passes():
        for image, target in zip(batch.images, batch.targets, strict=True):
            if len(target["boxes"]):
                features, pooled = reader.read(image, target["boxes"])
                true.append((features.cpu(), pooled.norm(dim=1).cpu(), target["labels"].cpu()))
                width = pooled.shape[1]
    if not true:
        raise ConfigError("no training image has an object", "data", "type data= for others")
    features, norms, labels = (torch.cat(column) for column in zip(*true, strict=True))
    scale = NORM / features.norm(dim=1).mean(), NORM / norms.mean()

    def regions() -> Iterator[Regions]:
        for batch in passes():
            each = zip(batch.images, batch.targets, batch.proposals, strict=True)
            for image, target, proposals in each:
                found = tidy(proposals, (image.shape[-2], image.shape[-1]))
                boxes = torch.cat([found, target["boxes"]])
                if len(boxes):
                    seen, pooled = (part.cpu() for part in reader.read(image, boxes))
                    objects, own = target["boxes"].cpu(), target["labels"].cpu()
                    yield Regions(seen * scale[0], pooled * scale[1], boxes.cpu(), objects, own)

    positives = [features[labels == label] * scale[0] for label in range(1, classes + 1)]
    machines, boxes = learn(regions(), positives, width)
    machines[:, :-1] *= scale[0]  # of features as they are
    boxes[..., :-1] *= scale[1]
    return Fitted(machines.float(), boxes.float())


def measured(network: Network, loader: Loader, transform: Any) -> dict[str, float]:
    device = next(network.model.parameters()).device
    evaluator = evaluate(
        network.model,
        loader,
        task=make_task(network),
        transform=transform,
        device=device,
        autocast=contextlib.nullcontext(),
        ranks=Ranks(),
    )
    assert evaluator is not None
    return evaluator.compute()


def fit_run(run: Path, overrides: list[str], out: Path) -> None:
    """Raises ConfigError, DataError, CheckpointError, MachineError."""
    composed = compose_config([])
    device = pick_device(composed.config.trainer.device, Ranks())
    network = of_run(str(run), composed, overrides, device=device)
    config, size = network.config, network.size
    reader = Regioned(network.model)
    source: Source = make(config.data.args, Source, key="data", trust=config.trust)
    if source.info.classes != network.source.info.classes:
        what = "the data are of other classes than the run"
        raise CheckpointError(what, str(run), "type the data of the run", name="CKPT-MISMATCH")
    transform = source.transform(
        image_size=size, channels=3, device=device, channels_last=config.trainer.channels_last
    )
    val = make_loader(config, source.val(size), source, size, False, device, Ranks())
    config.eval.split = EvalSplit.train  # data.limit is of this one
    plain = source.train(size, Augmentations())
    train = make_loader(config, plain, source, size, False, device, Ranks())
    try:
        fitted = fit(reader, lambda: batches(train, transform, device), len(source.info.classes))
        with whole(out, key="--out") as temporary:
            torch.save(fitted._asdict(), temporary)
        reader.reader.close()
        print(f"{out}: machines {list(fitted.machines.shape)}, boxes {list(fitted.boxes.shape)}")
        for name in ("softmax", "svm + boxes"):
            found = measured(network, val, transform)
            print(f"{name:<12}", *(f"{k} {v:.2f}" for k, v in found.items() if "mAP" in k))
            reader.model.detect_by(fitted)
    finally:
        train.close()
        val.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="the directory of a run of model=rcnn")
    parser.add_argument("overrides", nargs="*", help="of data, as data.proposals=FOLDER")
    parser.add_argument("--out", type=Path, help="rcnn_fit.pt in the run")
    arguments = parser.parse_args()
    speak(logging.INFO)
    try:
        fit_run(arguments.run, arguments.overrides, arguments.out or arguments.run / "rcnn_fit.pt")
    except CvtrainError as error:
        print(error.line(), file=sys.stderr)
        sys.exit(error.code)


if __name__ == "__main__":
    main()
