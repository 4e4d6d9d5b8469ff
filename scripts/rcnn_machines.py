"""The fits of R-CNN: tensors in, tensors out (Girshick, Donahue, Darrell, Malik 2013, appendices B
and C). scripts/rcnn_fit.py reads what they are fitted to.

A machine learns true boxes of its class, and regions with an IoU below 0.3 with them; of these the
hard ones, in one pass over the images. A regression learns, of regions with an IoU above 0.6, the
offsets of the object's box.

Differs: the hinge is squared, so that it is smooth. Of D features on a map each regression takes
8 D^2 bytes while it is fitted (AlexNet: 0.7 GB a class).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from cvtrain.models.detection.boxes import encode
from cvtrain.models.detection.rcnn_fitted import MARGIN, affine

COST, BIAS, OBJECTS = 1e-3, 10.0, 2.0  # of a hinge; the bias counts as a weight of 1/10; of objects
RIDGE = 1000.0  # times the squares of a regression's weights
BACKGROUND, NEAR = 0.3, 0.6  # IoU below which a region is a negative, above which boxes are learnt
HARD, EASY = MARGIN, -1.2  # scores above which a negative is learnt, below which it is forgotten
ADDED = 2000  # negatives after which a machine is fitted anew
TOGETHER = 256  # pairs that are added to a regression's sums


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
