"""Any network of torchvision, and any classifier of timm, by its name, with random weights.

Differs: GoogLeNet and Inception v3 come without their auxiliary heads unless `aux_logits` asks for
them. torchvision's own departures from the papers (batch norm and 3x3 kernels in GoogLeNet's 5x5
branch, AlexNet of "one weird trick") stay; our own files of those names follow the papers.
Detectors neither normalise nor resize, which the data do, but for SSD's two, which are made for
one size: those still stretch an image to 300x300 (320x320), without antialiasing. Batch norm is
live unless `frozen_norm`: that of published weights stands still, its scales and shifts are no
parameters (53,120 of ResNet-50).
"""

import difflib
import importlib
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models import detection
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.misc import FrozenBatchNorm2d

from cvtrain.errors import ConfigError
from cvtrain.models.torchvision_fpn import put_body

# init_weights is what torchvision does anyway, after a warning that the default will change.
WITHOUT_HEADS = {"aux_logits": False, "init_weights": True}
AUX_HEADS = {"googlenet": 2, "inception_v3": 1}  # with aux_logits=True
# Options of timm that would load a file or fetch one.
LOADING = ("pretrained", "checkpoint_path", "cache_dir")
# Options of torchvision's detectors that other keys stand for.
ELSEWHERE = {
    **dict.fromkeys(("weights", "weights_backbone"), "model.pretrained or init.weights"),
    **dict.fromkeys(("min_size", "max_size", "size"), "data.image_size"),
    **dict.fromkeys(("image_mean", "image_std"), "data.mean and data.std"),
    "trainable_backbone_layers": "model.freeze",
}
TWO_STAGES = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")
# The losses of torchvision's detectors, by the class of the network.
LOSSES = {
    "FasterRCNN": TWO_STAGES,
    "MaskRCNN": (*TWO_STAGES, "loss_mask"),
    "RetinaNet": ("classification", "bbox_regression"),
    "FCOS": ("classification", "bbox_regression", "bbox_ctrness"),
    "SSD": ("bbox_regression", "classification"),
}


def fixed_options(name: str, *, image_size: int) -> dict[str, Any]:
    """What the constructor must be told: its auxiliary heads, or the image size it is built for."""
    if name in ("googlenet", "inception_v3"):
        return WITHOUT_HEADS
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name.startswith("maxvit_"):
        return {"input_size": (image_size, image_size)}
    return {}


def try_size(network: nn.Module, *, image_size: int, in_channels: int = 3) -> None:
    """One forward pass on shapes alone (no data, no time); raises what the network raises."""
    shapes = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
    image = torch.empty(1, in_channels, image_size, image_size, device="meta")
    functional_call(network.eval(), shapes, (image,))
    network.train()


def unknown(library: str, name: str, valid: list[str], what: str = "classifier") -> ConfigError:
    nearest = difflib.get_close_matches(name.lower(), valid, n=3, cutoff=0.0)
    fix = f"the nearest are {', '.join(nearest)}"
    return ConfigError(f"{library} has no such {what}", f"model.name={name}", fix)


def torchvision_model(
    *, name: str, num_classes: int = 1000, image_size: int = 224, **options: Any
) -> nn.Module:
    """Float images [N, 3, image_size, image_size] (pixels) to logits [N, num_classes].

    `options` go to torchvision's constructor as they are (`dropout=0.3`). Raises ConfigError for an
    unknown name, an option that the network does not take, or images of a size that it cannot
    (multiples of 16 for vit_b_16, of 224 for maxvit_t, at least 63 for alexnet, 75 for inception).
    """
    valid = torchvision.models.list_models(module=torchvision.models)
    if name not in valid:
        raise unknown("torchvision", name, valid)
    options = fixed_options(name, image_size=image_size) | options
    try:
        network = torchvision.models.get_model(
            name, weights=None, num_classes=num_classes, **options
        )
        try_size(network, image_size=image_size)
    except TypeError as error:  # an argument that neither builder nor constructor has
        raise ConfigError(str(error), f"model.name={name}", "remove that option") from error
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        what = f"torchvision's {name} cannot take images of {image_size} px ({reason})"
        fix = "set model.input='fixed 224', which every one takes"
        raise ConfigError(what, f"model.name={name}", fix) from error
    if options.get("aux_logits"):
        network.aux_heads = AUX_HEADS[name]
    return network


class Padded(GeneralizedRCNNTransform):
    """Only pads, with zeros to the right and below: boxes stay in the given images' pixels."""

    def __init__(self, size_divisible: int) -> None:
        super().__init__(0, 0, [0.0] * 3, [1.0] * 3, size_divisible=size_divisible)

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        return image, target


def torchvision_detector(
    *,
    name: str,
    num_classes: int = 91,
    image_size: int = 800,
    body: Mapping[str, Any] | None = None,
    frozen_norm: bool = False,
    **options: Any,
) -> nn.Module:
    """Normalised images, a list of `[3, H, W]`, to losses or detections as torchvision has them.

    `num_classes` counts the background, which is 0; labels are 1 on. `body`: a ResNet of ours by
    its `name`, with its `stride_in` and `stem` (`image_size` in pixels only serves stem="auto").
    `frozen_norm`: the backbone's batch norm has neither gradient nor statistics of its own.
    `options` go to torchvision's constructor as they are (`box_score_thresh=0.01`). Its losses are
    means over what the network picks in a batch; they count as those of so many images. Raises
    ConfigError for an unknown name, or an option that the network does not take.
    """
    valid = [n for n in torchvision.models.list_models(module=detection) if "keypoint" not in n]
    if name not in valid:
        raise unknown("torchvision", name, valid, "detector of boxes")
    for option in options.keys() & ELSEWHERE.keys():
        what = "torchvision's detectors have that from other keys here"
        raise ConfigError(what, f"model.{option}", f"type {ELSEWHERE[option]}")
    own = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "num_classes": num_classes}
    try:
        network = torchvision.models.get_model(
            name, weights=None, weights_backbone=None, **own, **options
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error), f"model.name={name}", "remove that option") from error
    _check_options(type(network), name, options)
    if network.transform.fixed_size is None:
        network.transform = Padded(network.transform.size_divisible)
    put_body(network.backbone, body or {}, name, image_size=image_size)
    if frozen_norm:
        freeze_norm(network.backbone)
    network.needs_masks = isinstance(network, detection.MaskRCNN)
    network.loss_counts = partial(dict.fromkeys, LOSSES[type(network).__name__])  # images
    return network


def _check_options(kind: type, name: str, options: dict[str, Any]) -> None:
    """torchvision passes over what it does not know."""
    taken = inspect.signature(kind).parameters
    for option in options.keys() - taken.keys():
        close = difflib.get_close_matches(option, taken, n=1, cutoff=0.0)[0]
        raise ConfigError(f"{name} has no such option", f"model.{option}", f"type {close}")


def freeze_norm(part: nn.Module) -> None:
    """Every batch norm in it by one that stands still, under the same names."""
    for name, child in part.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(part, name, FrozenBatchNorm2d(child.num_features, eps=child.eps))
        else:
            freeze_norm(child)


def timm_model(
    *,
    name: str,
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: int = 224,
    **options: Any,
) -> nn.Module:
    """Float images [N, in_channels, image_size, image_size] (pixels) to logits [N, num_classes].

    `options` go to timm's create_model as they are (`drop_rate=0.3`, `img_size=32`). Raises
    ConfigError where timm is not installed, for an unknown name, an option that the network does
    not take or that would load weights, or images of a size that it cannot.
    """
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        what = "timm is not installed" if error.name == "timm" else f"timm: {error}"
        raise ConfigError(what, "model=timm", "type pip install 'cvtrain[timm]'") from error
    valid = timm.list_models()
    if name not in valid:
        raise unknown("timm", name, valid)
    for option in options:
        if option.startswith(LOADING):
            fix = "weights come by init.weights, or resume"
            raise ConfigError("timm would load a file itself", f"model.{option}", fix)
    try:
        network = timm.create_model(name, num_classes=num_classes, in_chans=in_channels, **options)
        try_size(network, image_size=image_size, in_channels=in_channels)
    except TypeError as error:
        raise ConfigError(str(error), f"model.name={name}", "remove that option") from error
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        what = f"timm's {name} cannot take images of {image_size} px ({reason})"
        fix = f"set model.input='fixed 224', or +model.img_size={image_size} if it takes that"
        raise ConfigError(what, f"model.name={name}", fix) from error
    return network
