"""Fits R-CNN's support vector machines and box regressions to a run, and measures both.

    cvtrain model=rcnn_tiny data=shapes_boxes
    python scripts/rcnn_fit.py outputs/rcnn_tiny_shapes_boxes/TIME
    python scripts/rcnn_fit.py outputs/rcnn_voc/TIME data.proposals=proposals data.limit=1000

They are written to `rcnn_fit.pt` in the run (`--out`): plain tensors that `load`, `scores_of`,
`refined` and `detect` apply to what `Reader` reads (Girshick, Donahue, Darrell, Malik 2013, section
2.3 and appendices B and C). Features are those of the network's last hidden layer for the machines,
fc7, and of its last map for the boxes, pool5; both are scaled to a mean norm of 20. A machine
learns true boxes of its class, and regions with an IoU below 0.3 with them; of these the hard ones,
in one pass over the images. A regression learns, of regions with an IoU above 0.6, the offsets of
the object's box.

Differs: the hinge is squared, so that it is smooth. What overlaps a crowd is a negative as others
are. The norm is that of true boxes. Of D features on a map each regression takes 8 D^2 bytes while
it is fitted (AlexNet: 0.7 GB a class).
"""

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from cvtrain.build_loaders import make_loader
from cvtrain.compose import compose_config
from cvtrain.config import EvalSplit
from cvtrain.data.batch import to_device
from cvtrain.data.loader import Loader
from cvtrain.data.source import Augmentations, Source
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.evaluate import evaluate
from cvtrain.engine.machine import pick_device
from cvtrain.errors import CheckpointError, ConfigError, CvtrainError
from cvtrain.files import whole
from cvtrain.models.detection.boxes import decode, encode
from cvtrain.models.detection.rcnn import RCNN
from cvtrain.models.detection.regions import sizes_of, tidy
from cvtrain.targets import make
from cvtrain.tasks.base import Task
from cvtrain.verbs.network import Network, of_run
from cvtrain.verbs.train import speak

NORM = 20.0  # of features, in the mean: what COST and RIDGE are made for
COST, BIAS, OBJECTS = 1e-3, 10.0, 2.0  # of a hinge; the bias counts as a weight of 1/10; of objects
RIDGE = 1000.0  # times the squares of a regression's weights
BACKGROUND, NEAR = 0.3, 0.6  # IoU below which a region is a negative, above which boxes are learnt
HARD, EASY = -1.0, -1.2  # scores above which a negative is learnt, below which it is forgotten
ADDED = 2000  # negatives after which a machine is fitted anew
TOGETHER = 256  # pairs that are added to a regression's sums
LAYERS = {
    "alexnet": ("fc8", "pool5"),
    "vgg16": ("classifier.6", "features"),
    "cnn": ("fc", "stages"),
}


class Fitted(NamedTuple):
    """Of K classes; the last column is the bias."""

    machines: Tensor  # float32 [K, D + 1]
    boxes: Tensor  # float32 [K, 4, P + 1]


# Fitting: tensors in, tensors out


class Ridge:
    """Sums of pairs of features [n, D] and targets [n, T], of which there may be any number."""

    def __init__(self, features: int, targets: int = 4) -> None:
        self.count = 0
        self.x, self.y = (torch.zeros(n, dtype=torch.float64) for n in (features, targets))
        self.xx = torch.zeros(features, features, dtype=torch.float64)
        self.xy = torch.zeros(features, targets, dtype=torch.float64)
        self.waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Many at once, for each time costs as much as D^2 additions."""
        self.waiting.append((features.double().cpu(), targets.double().cpu()))
        if sum(len(y) for _, y in self.waiting) >= TOGETHER:
            self.sum_up()

    def sum_up(self) -> None:
        if self.waiting:
            x, y = (torch.cat(column) for column in zip(*self.waiting, strict=True))
            self.waiting = []
            self.count += len(x)
            self.x += x.sum(0)
            self.y += y.sum(0)
            self.xx += x.T @ x
            self.xy += x.T @ y

    def solve(self, ridge: float = RIDGE) -> Tensor:
        """float64 [T, D + 1]: weights and bias of the least squares plus `ridge` times those of
        the weights; zeros of no pairs.
        """
        self.sum_up()
        count = max(self.count, 1)
        mean_x, mean_y = self.x / count, self.y / count
        xx = self.xx - count * torch.outer(mean_x, mean_x)
        xy = self.xy - count * torch.outer(mean_x, mean_y)
        xx.diagonal().add_(ridge)
        weights = torch.cholesky_solve(xy, torch.linalg.cholesky(xx)).T
        return torch.cat([weights, (mean_y - weights @ mean_x)[:, None]], dim=1)


def fit_machine(
    positives: Tensor, negatives: Tensor, *, start: Tensor | None = None, cost: float = COST
) -> Tensor:
    """float64 [D + 1], weights and bias of a linear support vector machine between features
    [n, D] and [m, D]: the least of half the weights' squares (and half that of bias / 10) plus
    `cost` times the squared hinge of each negative and twice that of each positive.
    """
    x = torch.cat([positives, negatives]).double()
    signs = x.new_ones(len(x))
    signs[len(positives) :] = -1
    costs = torch.where(signs > 0, OBJECTS * cost, cost)
    x = F.pad(x, (0, 1), value=BIAS)  # so the bias is 10 times its weight
    weights = x.new_zeros(x.shape[1]) if start is None else start.double() / _units(start)
    weights.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=500,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        hinge = F.relu(1 - signs * (x @ weights)).square()
        value = weights.square().sum() / 2 + (costs * hinge).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach() * _units(weights)


def _units(weights: Tensor) -> Tensor:
    """1 for weights, 10 for the bias behind them."""
    return F.pad(torch.ones(len(weights) - 1, dtype=torch.float64), (0, 1), value=BIAS)


class Machine:
    """One class's, and the negatives that it has to learn: those that are hard for it so far."""

    def __init__(self, positives: Tensor) -> None:
        self.positives, self.negatives = positives, positives[:0]
        self.weights = torch.zeros(positives.shape[1] + 1, dtype=torch.float64)
        self.added, self.seen = 0, False

    def see(self, negatives: Tensor) -> None:
        """Of an image; those of the first one are all hard."""
        hard = negatives[affine(self.weights[None], negatives).squeeze(1) > HARD]
        self.negatives = torch.cat([self.negatives, hard])
        self.added += len(hard)
        if self.added > ADDED or (len(hard) and not self.seen):
            self.fit()

    def fit(self) -> None:
        """To what is there; what turns out to be easy is forgotten. Nothing without positives."""
        self.added, self.seen = 0, True
        if not len(self.positives):
            self.weights[-1] = HARD  # never an object
            return
        self.weights = fit_machine(self.positives, self.negatives, start=self.weights)
        hard = affine(self.weights[None], self.negatives).squeeze(1) >= EASY
        self.negatives = self.negatives[hard]


class Regions(NamedTuple):
    """Of one image with objects [n, 4] of `labels` [n] from 1."""

    features: Tensor  # [R, D]
    pooled: Tensor  # [R, P]
    boxes: Tensor  # [R, 4]
    objects: Tensor
    labels: Tensor


def learn(
    images: Iterable[Regions], positives: Sequence[Tensor], pooled: int
) -> tuple[Tensor, Tensor]:
    """In one pass: machines [K, D + 1] of the classes whose true boxes are `positives` [n, D],
    and regressions [K, 4, P + 1].
    """
    machines = [Machine(found) for found in positives]
    ridges = [Ridge(pooled) for _ in positives]
    for image in images:
        iou = box_iou(image.boxes, image.objects)  # [R, n]
        for label, (machine, ridge) in enumerate(zip(machines, ridges, strict=True), 1):
            own = F.pad(iou[:, image.labels == label], (0, 1)).amax(1)
            machine.see(image.features[own < BACKGROUND])
            if len(image.labels):
                best, nearest = iou.max(1)
                near = (best > NEAR) & (image.labels[nearest] == label)
                wanted = encode(image.objects[nearest[near]], image.boxes[near])
                ridge.add(image.pooled[near], wanted)
    for machine in machines:
        machine.fit()
    return (
        torch.stack([machine.weights for machine in machines]),
        torch.stack([ridge.solve() for ridge in ridges]),
    )


# Applying


def affine(weights: Tensor, features: Tensor) -> Tensor:
    """[R, ...] of features [R, D] and weights [..., D + 1] with the bias last."""
    features = features.to(weights.dtype)
    return torch.einsum("rd,...d->r...", features, weights[..., :-1]) + weights[..., -1]


def scores_of(fitted: Fitted, features: Tensor) -> Tensor:
    """[R, K]: above 0 an object of the class, above -1 within the margin."""
    return affine(fitted.machines.to(features.device), features)


def refined(fitted: Fitted, pooled: Tensor, boxes: Tensor) -> Tensor:
    """[R, K, 4]: `boxes` [R, 4] as the regression of each class moves them, once."""
    offsets = affine(fitted.boxes.to(pooled.device), pooled)
    return decode(offsets, boxes[:, None].expand_as(offsets))


def detect(
    fitted: Fitted,
    features: Tensor,
    pooled: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    *,
    nms: float = 0.3,
    most: int = 100,
) -> dict[str, Tensor]:
    """Detections of one image of (height, width); a score is the logistic function of a margin."""
    margins = scores_of(fitted, features)
    region, kind = (margins > HARD).nonzero().unbind(1)
    moved = refined(fitted, pooled, boxes)[region, kind]
    moved, chances = clip_boxes_to_image(moved, size), margins[region, kind].sigmoid()
    kept = batched_nms(moved, chances, kind, nms)[:most]
    return {"boxes": moved[kept], "labels": kind[kept] + 1, "scores": chances[kept]}


def load(path: Path) -> Fitted:
    """What this script wrote."""
    stored = torch.load(path, map_location="cpu", weights_only=True)
    return Fitted(stored["machines"], stored["boxes"])


# Networks and runs


class Reader:
    """What an RCNN's two layers make of regions. Raises ConfigError for another network."""

    def __init__(self, model: nn.Module, kind: str) -> None:
        if not isinstance(model, RCNN) or kind not in LAYERS:
            what = f"{type(model).__name__} is no R-CNN"
            raise ConfigError(what, "", "type the run of model=rcnn or model=rcnn_tiny")
        self.model = model
        last, mapped = (model.network.get_submodule(name) for name in LAYERS[kind])
        mapped = mapped[-1] if isinstance(mapped, nn.ModuleList) else mapped
        self.features: list[Tensor] = []
        self.pooled: list[Tensor] = []
        last.register_forward_pre_hook(lambda _, given: self.features.append(given[0].flatten(1)))
        mapped.register_forward_hook(lambda _m, _i, out: self.pooled.append(out.flatten(1).clone()))

    @torch.no_grad()
    def read(self, image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [R, D] and [R, P] of `boxes` [R, 4], in pixels of `image` [3, H, W]."""
        self.features.clear()
        self.pooled.clear()
        self.model.classify(self.model.look([image]), [boxes])
        return torch.cat(self.features).float(), torch.cat(self.pooled).float()


class Judged(nn.Module):
    """An RCNN whose regions machines and regressions judge, in evaluation."""

    needs_proposals = True

    def __init__(self, model: RCNN, reader: Reader, fitted: Fitted) -> None:
        super().__init__()
        self.model, self.reader, self.fitted = model, reader, fitted

    def forward(
        self, images: list[Tensor], targets: Any, proposals: list[Tensor]
    ) -> list[dict[str, Tensor]]:
        return [self.one(*each) for each in zip(images, proposals, sizes_of(images), strict=True)]

    def one(self, image: Tensor, proposals: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        boxes = tidy(proposals, size)
        if not len(boxes):
            none = torch.zeros(0, device=image.device)
            return {"boxes": none.view(0, 4), "labels": none.long(), "scores": none}
        read, most = self.reader.read(image, boxes), self.model.detections
        return detect(self.fitted, *read, boxes, size, nms=self.model.nms, most=most)


def batches(loader: Loader, transform: Any, device: torch.device) -> Iterator[Any]:
    for micro_batches in loader.epoch(0):
        for batch in micro_batches:
            yield transform(to_device(batch, device))


def fit(reader: Reader, passes: Any, classes: int) -> Fitted:
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


def measured(
    model: nn.Module, network: Network, loader: Loader, transform: Any
) -> dict[str, float]:
    config, device = network.config, next(network.model.parameters()).device
    outputs = len(network.source.info.classes) + 1
    task = make(config.task.args, Task, key="task", trust=config.trust, num_classes=outputs)
    evaluator = evaluate(
        model,
        loader,
        task=task,
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
    reader = Reader(network.model, str(config.model.args.get("network", {}).get("name")))
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
        judged = Judged(reader.model, reader, fitted)
        print(f"{out}: machines {list(fitted.machines.shape)}, boxes {list(fitted.boxes.shape)}")
        for name, model in (("softmax", network.model), ("svm + boxes", judged)):
            found = measured(model, network, val, transform)
            print(f"{name:<12}", *(f"{k} {v:.2f}" for k, v in found.items() if "mAP" in k))
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
