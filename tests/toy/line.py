"""Regression: y = 3a - 2b + 1 and a little noise. No image, no label, no class anywhere."""

import hashlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.data.batch import DataInfo
from cvtrain.data.source import Source
from cvtrain.tasks.base import Metric, Task


class PointBatch(NamedTuple):
    points: Tensor  # floats [N, 2]
    values: Tensor  # floats [N]


class Jitter:
    """Training adds noise to the points, from the table of uniforms."""

    draws, mixes = 2, ()

    def __init__(self, width: float) -> None:
        self.width = width

    def __call__(self, batch: PointBatch, uniforms: Tensor) -> PointBatch:
        return batch._replace(points=batch.points + self.width * (uniforms - 0.5))


class Points:
    """A split in memory."""

    def __init__(self, points: Tensor, values: Tensor, augment: Jitter) -> None:
        self.points, self.values, self.augment = points, values, augment

    def __len__(self) -> int:
        return len(self.values)

    def to(self, device: torch.device) -> "Points":
        return Points(self.points.to(device), self.values.to(device), self.augment)

    def batch(self, index: Tensor) -> PointBatch:
        return PointBatch(self.points[index], self.values[index])


class Line(Source):
    def __init__(self, *, samples: int, noise: float, jitter: float) -> None:
        self.samples, self.noise, self.jitter = samples, noise, jitter
        values = self._split(0).values
        digest = hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]
        self.info = DataInfo(name="line", classes=(), channels=2, image_size=1, fingerprint=digest)

    def _split(self, seed: int) -> Points:
        generator = torch.Generator().manual_seed(seed)
        points = torch.rand(self.samples, 2, generator=generator)
        noise = self.noise * torch.randn(self.samples, generator=generator)
        return Points(points, points @ torch.tensor([3.0, -2.0]) + 1 + noise, Jitter(self.jitter))

    def train(self, size: int, augmentations: Any) -> Points:
        return self._split(0)

    def val(self, size: int) -> Points:
        return self._split(1)

    def transform(self, **_: Any) -> Any:
        return lambda batch: batch


class Linear(nn.Module):
    def __init__(self, *, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, hidden), nn.Linear(hidden, 1)

    def forward(self, points: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(points))).squeeze(1)


class Regression(Task):
    primary = Metric("r2", higher_is_better=True)

    def __init__(self, *, kind: str) -> None:
        self.loss = {"squared": F.mse_loss, "absolute": F.l1_loss}[kind]

    def losses(self, model: nn.Module, batch: PointBatch) -> dict[str, tuple[Tensor, Tensor]]:
        count = torch.tensor(float(len(batch.values)))
        return {"fit": (self.loss(model(batch.points), batch.values, reduction="sum"), count)}

    def counts(self, model: nn.Module, batch: PointBatch) -> dict[str, Tensor]:
        return {"fit": torch.tensor(float(len(batch.values)))}

    def predict(self, model: nn.Module, batch: PointBatch) -> Tensor:
        return model(batch.points).float()

    def evaluator(self) -> "Squares":
        return Squares()


class Squares:
    """Mean squared error and the share of the variance that is explained."""

    def __init__(self) -> None:
        self.totals = {
            name: torch.zeros((), dtype=torch.float64) for name in ("n", "y", "yy", "se")
        }

    def update(self, predictions: Tensor, batch: PointBatch) -> None:
        y = batch.values.double()
        self.totals["n"] += len(y)
        self.totals["y"] += y.sum()
        self.totals["yy"] += y.square().sum()
        self.totals["se"] += (predictions.double() - y).square().sum()

    def compute(self) -> dict[str, float]:
        total = {name: value.item() for name, value in self.totals.items()}
        spread = total["yy"] - total["y"] ** 2 / total["n"]
        return {"mse": total["se"] / total["n"], "r2": 1 - total["se"] / spread}
