"""A classifier's weights into the part of a detector that was made of it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cvtrain.errors import CheckpointError, ConfigError
from cvtrain.models.resnet import ResNet
from cvtrain.models.torchvision_fpn import body_depth
from cvtrain.models.zoo import torchvision_detector, torchvision_model
from cvtrain.pretrained.fit import COUNTER
from cvtrain.pretrained.read import Pretrained

# In torchvision's detectors: the network of a name's part, and where its layers are.
TORCHVISION = {
    "resnet50_fpn": ("resnet50", "", "backbone.body."),
    "mobilenet_v3_large": ("mobilenet_v3_large", "features.", "backbone.body."),
}


class Origin(NamedTuple):
    """The classifier that a body comes from; names that begin with `theirs` begin with `ours`."""

    target: Any
    arguments: dict[str, Any]
    theirs: str
    ours: str


def origin_of(target: Any, arguments: dict[str, Any]) -> Origin:
    """A network's class says by `classifier(**arguments)`. Raises ConfigError if none does."""
    options = {name: value for name, value in arguments.items() if name != "_target_"}
    if target is torchvision_detector:
        name = str(options.get("name"))
        if depth := body_depth(options.get("body"), name):
            return Origin(ResNet, {"depth": depth}, "", "backbone.body.")
        for part, (network, theirs, ours) in TORCHVISION.items():
            if part in name and not name.startswith("ssd"):
                return Origin(torchvision_model, {"name": network}, theirs, ours)
    elif found := getattr(target, "classifier", lambda **_: None)(**options):
        return Origin(*found)
    what = f"{target.__name__} has no backbone of a classifier's layers"
    fix = "type model.pretrained=FILE for the whole network's weights"
    raise ConfigError(what, "model.pretrained_backbone", fix)


def fit_body(model: nn.Module, weights: Pretrained, origin: Origin) -> list[str]:
    """Load in place, all or nothing. Returns a line to say. Raises CheckpointError."""
    own = {n: t for n, t in model.state_dict().items() if n.startswith(origin.ours)}
    theirs = {
        f"{origin.ours}{name.removeprefix(origin.theirs)}": tensor
        for name, tensor in weights.tensors.items()
        if name.startswith(origin.theirs) and not name.endswith(COUNTER)
    }
    head = {name for name, tensor in theirs.items() if _is_head(tensor, weights, name, own)}
    wrong = [
        f"{name} {list(tensor.shape)}: the network has "
        f"{list(own[name].shape) if name in own else 'none'}"
        for name, tensor in theirs.items()
        if name not in head and (name not in own or own[name].shape != tensor.shape)
    ]
    if wrong or len(theirs) == len(head):
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        what = f"another network's weights: {wrong[0] if wrong else 'no tensor fits'}{more}"
        fix = "type the backbone that they were trained as"
        if "conv1.weight [64, 3, 3, 3]" in "".join(wrong[:1]):  # a ResNet of ours, small images
            fix += ", with model.body.stem=small"
        raise CheckpointError(what, weights.name, fix, name="CKPT-MISMATCH")
    with torch.no_grad():
        for name in theirs.keys() - head:
            own[name].copy_(theirs[name])
    model.load_state_dict(own, strict=False)
    count = len(theirs) - len(head)
    return [f"pretrained {weights.name}: {count} tensors loaded into {origin.ours.rstrip('.')}"]


def _is_head(tensor: Tensor, weights: Pretrained, name: str, own: dict[str, Tensor]) -> bool:
    """The classifier's last layer, which a detector has not."""
    return name not in own and len(tensor) == len(weights.classes or tensor)
