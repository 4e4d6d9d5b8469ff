"""The only place where a `_target_` becomes an object.

Targets are code: what one leads to is checked, not only its name.
"""

import importlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from cvtrain.config import ALLOWED_PACKAGES, below
from cvtrain.errors import ConfigError, nearest, refused_target
from cvtrain.models.zoo import timm_model, torchvision_detector, torchvision_model

FACTORIES: tuple[Callable[..., Any], ...] = (torchvision_model, torchvision_detector, timm_model)


def resolve(target: object, kind: type | tuple[type, ...], trust: list[str]) -> Any:
    """The class or listed factory that a `_target_` names. Raises ConfigError (TARGET).

    Only modules below an allowed package are imported, and only their own classes are taken: a
    name that leads through another module's attributes (`torch.nn.functional.torch.hub.load`), or
    to something imported from elsewhere, is refused.
    """
    name = str(target)
    path, _, attribute = name.rpartition(".")
    allowed = (*ALLOWED_PACKAGES, *trust)
    if not below(path, allowed):
        raise refused_target(name, f"it is not below {', '.join(allowed)}")
    try:
        found = getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError) as error:
        raise refused_target(name, str(error)) from error
    if isinstance(found, ModuleType) or not below(getattr(found, "__module__", ""), allowed):
        raise refused_target(name, "it is defined elsewhere")
    if found in FACTORIES or (isinstance(found, type) and issubclass(found, kind)):
        return found
    kinds = kind if isinstance(kind, tuple) else (kind,)
    raise refused_target(name, f"it is no {' or '.join(k.__name__ for k in kinds)}")


def make(
    arguments: dict[str, Any],
    kind: type | tuple[type, ...],
    *,
    key: str,
    trust: list[str],
    **given: Any,
) -> Any:
    """Call a group's target with its arguments and with those of `given` that it takes."""
    if "_target_" not in arguments:
        raise ConfigError(f"{key} has no _target_", "", f"choose a {key}: see cvtrain --help")
    target = resolve(arguments["_target_"], kind, trust)
    typed = {name: value for name, value in arguments.items() if name != "_target_"}
    taken = inspect.signature(target).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    for name in typed:
        if name not in taken and not open_ended:
            raise ConfigError(f"there is no key {key}.{name}", "", nearest(name, list(taken)))
    given = {name: value for name, value in given.items() if name in taken and name not in typed}
    try:
        return target(**given, **typed)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error), f"{key}={arguments['_target_']}") from error
