"""Files of weights: fetched into torch's cache, verified, and read without running anything."""

import importlib
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch
from torch import Tensor

from cvtrain.data.download import fetch, verify
from cvtrain.engine.checkpoint import read_checkpoint
from cvtrain.errors import CheckpointError, ConfigError, DataError

SUFFIXES = (".pt", ".pth", ".safetensors")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def fetched(url: str) -> Path:
    """The file in torch's cache, downloaded if need be, of the sha256 that its name ends in.

    Raises ConfigError, CheckpointError (what is in the cache is another file), and as `fetch`.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise ConfigError(f"{url} is refused", "model.pretrained", "type an https:// address")
    name = Path(unquote(parts.path)).name
    digits = digits_of(name)
    if not digits:
        what = (
            f"{name or url} does not end in 8 or more hex digits of its sha256, as a-0123abcd.pth"
        )
        fix = "download it, and type model.pretrained=FILE"
        raise ConfigError(what, "model.pretrained", fix)
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.exists():
        check(path, "remove it, and it is downloaded anew")
    else:
        fetch(url, path, sha256=digits, key="TORCH_HOME")
    return path


def digits_of(name: str) -> str:
    """The first hex digits of the sha256 that a published file's name carries, if any."""
    found = re.search(r"-([0-9a-f]{8,64})\.(?:pt|pth|safetensors)$", name.lower())
    return found[1] if found else ""


def check(path: Path, fix: str) -> None:
    """Read a published file. Raises CheckpointError if it is not the one that its name says."""
    try:
        verify(path, digits_of(path.name))
    except DataError as error:
        raise CheckpointError(error.what, error.where, fix, name="CKPT-CORRUPT") from error


def read(path: Path) -> dict[str, Any]:
    """What is in a file, on the CPU. Raises CheckpointError, ConfigError (no safetensors)."""
    if path.suffix != ".safetensors" or not path.is_file():
        return read_checkpoint(path)
    library, reader = package("safetensors"), package("safetensors.torch")
    try:
        return reader.load_file(path)
    except (library.SafetensorError, OSError, ValueError, KeyError) as error:
        raise corrupt(path, str(error), "type another file, or download it anew") from error


def told(path: Path) -> dict[str, Any]:
    """What a .safetensors says of itself as `cvtrain export` writes it; empty of any other file."""
    if path.suffix != ".safetensors":
        return {}
    with package("safetensors").safe_open(path, "pt") as file:
        text = file.metadata() or {}
    try:
        classes, images = json.loads(text["classes"]), json.loads(text["preprocessing"])
        numbers = {name: [float(value) for value in images[name]] for name in ("mean", "std")}
        sizes = {"channels": int(images["channels"])}
        if "size" in images:
            sizes["size"] = int(images["size"])
        return {"classes": tuple(map(str, classes)), **numbers, **sizes}
    except (KeyError, TypeError, ValueError, AttributeError):  # of another program
        return {}


def package(name: str) -> Any:
    """A module of an extra. Raises ConfigError where it is not installed."""
    extra = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        what = f"{extra} is not installed" if error.name == extra else f"{extra}: {error}"
        fix = f"type pip install 'cvtrain[{extra}]'"
        raise ConfigError(what, "model.pretrained", fix) from error


def plain(state: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The state dict in another's file, without the prefix that a wrapper puts before all names."""
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(state.get(key), dict):
            state = state[key]
            break
    for prefix in ("module.", "_orig_mod."):
        if all(str(name).startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return checked(state, path)


def checked(state: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Nothing but tensors that a parameter can be filled from. Raises CheckpointError."""
    bad = [n for n, value in state.items() if not (isinstance(n, str) and is_plain(value))]
    if bad or not state:
        what = f"{bad[0]} is a {type(state[bad[0]]).__name__}" if bad else "it holds nothing"
        fix = "tensors stand by their names, or below model, state_dict or model_state_dict"
        raise corrupt(path, f"{what}, where a tensor is expected", fix)
    return dict(state)


def is_plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.nbytes <= value.untyped_storage().nbytes()  # not one value, said to be many
    )


def corrupt(path: Path | str, why: str, fix: str) -> CheckpointError:
    first = why.partition("\n")[0]
    return CheckpointError(f"corrupt: {first}", str(path), fix, name="CKPT-CORRUPT")
