"""Any classification network of torchvision by its name, with random weights.

Differs: GoogLeNet and Inception v3 come without their auxiliary heads unless `aux_logits` asks for
them. torchvision's own departures from the papers (batch norm and 3x3 kernels in GoogLeNet's 5x5
branch, AlexNet of "one weird trick") stay; our own files of those names follow the papers.
"""

import difflib
from typing import Any

import torch
import torchvision
from torch import nn
from torch.func import functional_call

from cvtrain.errors import ConfigError

# init_weights is what torchvision does anyway, after a warning that the default will change.
WITHOUT_HEADS = {"aux_logits": False, "init_weights": True}


def fixed_options(name: str, *, image_size: int) -> dict[str, Any]:
    """What the constructor must be told: its auxiliary heads, or the image size it is built for."""
    if name in ("googlenet", "inception_v3"):
        return WITHOUT_HEADS
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name.startswith("maxvit_"):
        return {"input_size": (image_size, image_size)}
    return {}


def try_size(network: nn.Module, *, image_size: int) -> None:
    """One forward pass on shapes alone (no data, no time); raises what the network raises."""
    shapes = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
    image = torch.empty(1, 3, image_size, image_size, device="meta")
    functional_call(network.eval(), shapes, (image,))
    network.train()


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
        nearest = difflib.get_close_matches(name.lower(), valid, n=3, cutoff=0.0)
        fix = f"the nearest are {', '.join(nearest)}"
        raise ConfigError("torchvision has no such classifier", f"model.name={name}", fix)
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
    return network
