"""Any classification network of torchvision or timm by its name, with random weights.

Differs: GoogLeNet and Inception v3 come without their auxiliary heads unless `aux_logits` asks for
them. torchvision's own departures from the papers (batch norm and 3x3 kernels in GoogLeNet's 5x5
branch, AlexNet of "one weird trick") stay; our own files of those names follow the papers.
"""

import difflib
import importlib
from typing import Any

import torch
import torchvision
from torch import nn
from torch.func import functional_call

from cvtrain.errors import ConfigError

# init_weights is what torchvision does anyway, after a warning that the default will change.
WITHOUT_HEADS = {"aux_logits": False, "init_weights": True}
AUX_HEADS = {"googlenet": 2, "inception_v3": 1}  # with aux_logits=True
# Options of timm that would load a file or fetch one.
LOADING = ("pretrained", "checkpoint_path", "cache_dir")


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


def unknown(library: str, name: str, valid: list[str]) -> ConfigError:
    nearest = difflib.get_close_matches(name.lower(), valid, n=3, cutoff=0.0)
    fix = f"the nearest are {', '.join(nearest)}"
    return ConfigError(f"{library} has no such classifier", f"model.name={name}", fix)


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
