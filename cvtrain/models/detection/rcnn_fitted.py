"""What R-CNN detects by in the paper: a linear support vector machine for each class on fc7, and a
regression of its box on pool5 (Girshick, Donahue, Darrell, Malik 2013, section 2.3, appendix C).

scripts/rcnn_fit.py fits them to a network that is trained.
"""

import pickle
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from cvtrain.errors import ConfigError
from cvtrain.models.detection.boxes import decode

MARGIN = -1.0  # scores above which a region is a detection
# The layer before which features are read, and the one that gives the last map.
LAYERS = {
    "alexnet": ("fc8", "pool5"),
    "vgg16": ("classifier.6", "features"),
    "cnn": ("fc", "stages"),
}


class Fitted(NamedTuple):
    """Of K classes; the last column is the bias."""

    machines: Tensor  # float32 [K, D + 1]
    boxes: Tensor  # float32 [K, 4, P + 1]


def load(path: Path) -> Fitted:
    """What scripts/rcnn_fit.py wrote. Raises ConfigError."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        return Fitted(stored["machines"].float(), stored["boxes"].float())
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, EOFError) as error:
        reason = getattr(error, "strerror", None) or "it is no such file"
    except (AttributeError, pickle.UnpicklingError):
        reason = "it is no such file"
    what = f"model.fitted={path} cannot be read: {reason}"
    raise ConfigError(what, "", "type model.fitted=FILE for one that scripts/rcnn_fit.py wrote")


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
    region, kind = (margins > MARGIN).nonzero().unbind(1)
    moved = refined(fitted, pooled, boxes)[region, kind]
    moved, chances = clip_boxes_to_image(moved, size), margins[region, kind].sigmoid()
    kept = batched_nms(moved, chances, kind, nms)[:most]
    return {"boxes": moved[kept], "labels": kind[kept] + 1, "scores": chances[kept]}


class Reader:
    """What the two layers of an R-CNN's network give of regions, as it classifies them."""

    def __init__(self, network: nn.Module, kind: str) -> None:
        last, mapped = (network.get_submodule(name) for name in LAYERS[kind])
        mapped = mapped[-1] if isinstance(mapped, nn.ModuleList) else mapped
        self.features: list[Tensor] = []
        self.pooled: list[Tensor] = []
        self.handles = (
            last.register_forward_pre_hook(
                lambda _, given: self.features.append(given[0].flatten(1))
            ),
            mapped.register_forward_hook(
                lambda _m, _i, out: self.pooled.append(out.flatten(1).clone())
            ),
        )

    def taken(self) -> tuple[Tensor, Tensor]:
        """float32 [R, D] and [R, P] of what was classified since it was last asked."""
        found = torch.cat(self.features).float(), torch.cat(self.pooled).float()
        self.features.clear()
        self.pooled.clear()
        return found

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()
