"""What is said of images, as plain values: what several tasks' `told` share."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.nn import functional as F

from cvtrain.errors import NonFiniteError
from cvtrain.metrics.detections import encode_masks

DIGITS = 6  # of a probability


class View(Protocol):
    """An image that something was predicted of."""

    @property
    def image(self) -> Tensor: ...  # [C, h, w], as the network got it

    @property
    def size(self) -> tuple[int, int]: ...  # of the original: height and width in pixels

    @property
    def place(self) -> tuple[float, float, float, float]: ...  # what of the original that is


class Wanted(NamedTuple):
    """How much is to be said."""

    classes: Sequence[str]  # their names
    top: int = 5  # of an image with one class, so many of the likeliest
    least: float = 0.0  # the score of an object


def ranked(shares: Tensor, wanted: Wanted) -> list[list[dict[str, Any]]]:
    """Of probabilities `[N, K]` the largest, with their classes. Raises NonFiniteError."""
    check_finite(shares)
    values, places = shares.topk(min(wanted.top, shares.shape[1]), dim=1)
    return [
        [one(wanted.classes, index, share) for index, share in zip(*row, strict=True)]
        for row in zip(places.tolist(), values.tolist(), strict=True)
    ]


def one(classes: Sequence[str], index: int, share: float) -> dict[str, Any]:
    return {"class": classes[index], "index": index, "probability": round(share, DIGITS)}


def check_finite(values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        fix = "type precision=fp32, or another run: this one's weights may not be finite"
        raise NonFiniteError("what the network says is not finite", "", fix)


def in_original(shares: Tensor, view: View) -> list[list[float]]:
    """Boxes `[n, 4]` as shares of what the network saw, in pixels of the original."""
    left, top, right, bottom = view.place
    across, down = right - left, bottom - top
    scale, corner = shares.new_tensor([across, down] * 2), shares.new_tensor([left, top] * 2)
    boxes = (shares * scale + corner).tolist()
    return [[round(side, 2) for side in box] for box in boxes]


def objects(found: dict[str, Tensor], view: View, wanted: Wanted) -> list[dict[str, Any]]:
    """Detections in pixels of the network's image (labels from 1 on), the best first.

    Masks, which are chances `[n, 1, h, w]`, become COCO's compressed run lengths.
    """
    kept = (found["scores"] >= wanted.least).nonzero()[:, 0]
    kept = kept[found["scores"][kept].argsort(descending=True, stable=True)]
    height, width = view.image.shape[-2:]
    shares = found["boxes"][kept] / found["boxes"].new_tensor([width, height] * 2)
    columns = (found["labels"][kept].tolist(), found["scores"][kept].tolist())
    said = [
        {"class": wanted.classes[label - 1], "index": label - 1, "score": round(score, DIGITS)}
        | {"box": box}
        for label, score, box in zip(*columns, in_original(shares, view), strict=True)
    ]
    for entry, row in zip(said, kept.tolist() if "masks" in found else (), strict=False):
        entry["mask"] = run_lengths(found["masks"][row], view.size)
    return said


def run_lengths(chances: Tensor, size: tuple[int, int]) -> dict[str, Any]:
    """Of one mask `[1, h, w]`, as large as the original: one at a time, for they are large."""
    sharp = F.interpolate(chances[None].float(), size, mode="bilinear")[0] > 0.5
    [code] = encode_masks(sharp)
    return {"size": list(size), "counts": code.decode("ascii")}
