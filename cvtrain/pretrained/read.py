"""Which weights a word names, and what they were trained on.

A network's class says by `imagenet_weights(**arguments)` which published ones are its own, and by
`from_timm(tensors)` how timm's names become its names; torchvision and timm know for theirs.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torchvision
from omegaconf import OmegaConf
from torch import Tensor
from torchvision.models import ResNet50_Weights, WeightsEnum

from cvtrain.engine.checkpoint import best_of, weights_of
from cvtrain.errors import CheckpointError, ConfigError, MachineError
from cvtrain.models.resnet import SMALL_IMAGE
from cvtrain.models.zoo import (
    LOADING,
    timm_model,
    torchvision_detector,
    torchvision_model,
    unknown,
)
from cvtrain.pretrained.detectors import SCALED, by_todays_names, published_detector
from cvtrain.pretrained.files import (
    SUFFIXES,
    check,
    checked,
    corrupt,
    fetched,
    package,
    plain,
    read,
    told,
)

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of torchvision's networks
RUN_KEYS = {"model", "ema", "position", "config"}  # of a checkpoint of ours
SOME_THAT_HAVE = "resnet18, ..., resnet152, vgg11, vgg13, vgg16, vgg19, xception, torchvision, timm"
# torchvision's files are older than its names of these layers.
RENAMED = {
    r"(denselayer\d+\.(?:norm|conv))\.([12])\.": r"\1\2.",
    r"\.mlp\.linear_1\.": ".mlp.0.",
    r"\.mlp\.linear_2\.": ".mlp.3.",
}
# Trained on images normalised otherwise than torchvision does now; the network can undo that.
WANTED = {"googlenet": {"transform_input": True}, "inception_v3": {"transform_input": True}}


@dataclass(frozen=True)
class Pretrained:
    """Weights, and what is known of the images and the classes that they were trained on."""

    name: str  # how it is said
    tensors: dict[str, Tensor]  # by our network's names
    classes: tuple[str, ...] = ()  # of the head's rows; empty: not known
    size: int | None = None  # pixels
    channels: int | None = None
    mean: list[float] | None = None  # of pixels in 0..1
    std: list[float] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)  # of the network, that they want


def read_pretrained(word: str, *, target: Any, arguments: dict[str, Any]) -> Pretrained:
    """What `model.pretrained=word` names, for the network that `target` makes of `arguments`.

    `imagenet`, a published version, an https address, a file or a run directory. Raises ConfigError
    (no such weights), CheckpointError (corrupt, unsafe, missing), DataError and MachineError (a
    download).
    """
    options = {name: value for name, value in arguments.items() if name != "_target_"}
    if "://" in word:
        return _of_file(fetched(word), word, target, options)
    if _is_path(word):
        return _of_file(best_of(Path(word)), word, target, options)
    found = published(target, options)
    if found is None:
        described = ", ".join(f"model.{name}={value}" for name, value in options.items())
        what = f"{target.__name__} has no published weights"
        fix = f"type model.pretrained=FILE, or a model that has some: {SOME_THAT_HAVE}"
        raise ConfigError(what, described, fix)
    name, wanted = found
    if name.startswith("timm/"):
        return _of_timm(word, name.removeprefix("timm/"), target, options)
    weights = _version(word, name)
    return _of_torchvision(weights, fetched(weights.url), target, options, wanted)


def _is_path(word: str) -> bool:
    if Path(word).suffix in SUFFIXES:
        return True
    named = word in ("imagenet", "coco") or word.startswith("timm/")
    return not named and (os.sep in word or Path(word).is_dir())


def published(target: Any, options: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """`ResNet50_Weights.IMAGENET1K_V1` or `timm/legacy_xception`, and the arguments they want."""
    if target is torchvision_model:
        name = str(options.get("name"))
        valid = torchvision.models.list_models(module=torchvision.models)
        if name not in valid:
            raise unknown("torchvision", name, valid)
        return _said(torchvision.models.get_model_weights(name).DEFAULT), WANTED.get(name, {})
    if target is torchvision_detector:
        return published_detector(str(options.get("name")))
    if target is timm_model:
        return f"timm/{options.get('name')}", {}
    find = getattr(target, "imagenet_weights", None)
    return find(**options) if find else None


# torchvision's


def _said(weights: WeightsEnum) -> str:
    return f"{type(weights).__name__}.{weights.name}"


def _version(word: str, newest: str) -> WeightsEnum:
    """The one that is typed, of those that a network has."""
    kind, _, name = newest.partition(".")
    usual = "coco" if "COCO" in name else "imagenet"
    versions = _enum(kind).__members__
    typed = name if word == usual else word.removeprefix(f"{kind}.")
    if typed not in versions:
        names = ", ".join(name for name in versions if name != "DEFAULT")
        fix = f"type {usual}, {names}, or a file ({', '.join(SUFFIXES)})"
        raise ConfigError(f"there is no {word} in {kind}", f"model.pretrained={word}", fix)
    return versions[typed]


def _enum(kind: str) -> type[WeightsEnum]:
    """`ResNet50_Weights`, `SSD300_VGG16_Weights`."""
    return getattr(torchvision.models, kind, None) or getattr(torchvision.models.detection, kind)


def _of_torchvision(
    weights: WeightsEnum, path: Path, target: Any, options: dict[str, Any], wanted: dict[str, Any]
) -> Pretrained:
    images, tensors = weights.transforms(), plain(read(path), path)
    if target is torchvision_detector:
        try:
            tensors = by_todays_names(weights, tensors, str(options["name"]))
        except RuntimeError as error:
            raise corrupt(path, str(error), "download it anew") from error
    mean, std = getattr(images, "mean", MEAN), getattr(images, "std", STD)
    mean, std = SCALED.get(str(options.get("name")), (mean, std))
    return Pretrained(
        name=_said(weights),
        tensors=_by_our_names(tensors, target),
        classes=tuple(weights.meta.get("categories") or ()),
        size=getattr(images, "crop_size", [None])[0],  # detectors take any
        channels=len(mean),
        mean=list(mean),
        std=list(std),
        arguments=dict(wanted),
    )


def _by_our_names(tensors: dict[str, Tensor], target: Any) -> dict[str, Tensor]:
    if target is torchvision_model:
        for pattern, ours in RENAMED.items():
            tensors = {re.sub(pattern, ours, name): value for name, value in tensors.items()}
    return target.from_timm(tensors) if hasattr(target, "from_timm") else tensors


# timm's


def _of_timm(word: str, name: str, target: Any, options: dict[str, Any]) -> Pretrained:
    """By timm's own means, which also adapt what they read to the options of its network."""
    timm = package("timm")
    full = _timm_version(timm, word, name)
    ours = ("name", "num_classes", "in_channels", "image_size")
    theirs = {k: v for k, v in options.items() if k not in ours and not k.startswith(LOADING)}
    try:
        network = timm.create_model(
            full, pretrained=True, **(theirs if target is timm_model else {})
        )
    except TypeError as error:
        raise ConfigError(str(error), f"model.name={name}", "remove that option") from error
    except OSError as error:
        about = timm.models.get_pretrained_cfg(full)
        place = f"https://huggingface.co/timm/{full}" if about.hf_hub_id else about.url
        fix = "start again, or download the file elsewhere and type model.pretrained=FILE"
        what = f"timm cannot download {full}: {error}"
        raise MachineError(what, str(place), fix, name="DOWNLOAD") from error
    except Exception as error:  # of any reader
        fix = "remove it from timm's cache, or the options that its weights do not suit"
        raise corrupt(full, str(error) or type(error).__name__, fix) from error
    images = network.pretrained_cfg
    thousand = ResNet50_Weights.DEFAULT.meta["categories"]  # in the order of ImageNet's wnids
    return Pretrained(
        name=f"timm/{full}",
        tensors=_by_our_names(dict(network.state_dict()), target),
        classes=tuple(thousand if network.num_classes == len(thousand) else ()),
        size=images["input_size"][-1],
        channels=images["input_size"][0],
        mean=list(images["mean"]),
        std=list(images["std"]),
    )


def _timm_version(timm: Any, word: str, name: str) -> str:
    """`resnet18.a1_in1k`: the one that is typed, of those that a network has."""
    if name not in timm.list_models():
        raise unknown("timm", name, timm.list_models())
    versions = timm.list_models(f"{name}.*", pretrained=True)
    newest = timm.models.get_pretrained_cfg(name)
    tag = newest.tag if newest and word == "imagenet" else word.removeprefix("timm/")
    full = f"{name}.{str(tag).removeprefix(f'{name}.')}"
    if full not in versions:
        names = ", ".join(["imagenet", *(v.removeprefix(f"{name}.") for v in versions)])
        fix = f"type {names}, or a file" if versions else "type model.pretrained=FILE"
        raise ConfigError(f"timm has no {word} of {name}", f"model.pretrained={word}", fix)
    return full


# Files


def _of_file(path: Path, name: str, target: Any, options: dict[str, Any]) -> Pretrained:
    """A published file that lies elsewhere (its name tells), a run's checkpoint, or another."""
    newest, wanted = published(target, options) or ("", {})
    kind = newest.partition(".")[0]
    for weights in _enum(kind) if kind.endswith("_Weights") else ():
        if Path(weights.url).name == path.name and path.is_file():
            check(path, "download it anew, or rename it if it holds other weights")
            return _of_torchvision(weights, path, target, options, wanted)
    state = read(path)
    if not state.keys() >= RUN_KEYS:
        return Pretrained(name, _by_our_names(plain(state, path), target), **told(path))
    try:
        images, stored = state.get("input") or {}, OmegaConf.create(state["config"]).model
        had = {key: stored[key] for key in wanted if key in stored}
        if had.get("stem") == "auto" and images:  # by images that a detector does not see
            had["stem"] = "small" if int(images["size"]) <= SMALL_IMAGE else "imagenet"
        return Pretrained(
            name=name,
            tensors=checked(weights_of(state), path),
            classes=tuple(map(str, state.get("classes") or ())),
            size=int(images["size"]) if images else None,
            channels=int(images["channels"]) if images else None,
            mean=[float(value) for value in images["mean"]] if images else None,
            std=[float(value) for value in images["std"]] if images else None,
            # Names and shapes do not tell these apart: what the run had counts.
            arguments=had,
        )
    except CheckpointError:
        raise
    except Exception as error:  # of any parser; nothing of it was followed
        raise corrupt(path, f"no run that can be read ({error})", "do not load it") from error
