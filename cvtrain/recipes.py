"""Recipes: the paper's hyperparameters for a pair, joined to what was typed."""

import re
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from cvtrain.config import GROUPS, config_dir, flat, options

# Their right-hand sides are paths, which Hydra's grammar would refuse for a bracket or a space.
PATH_KEYS = ("data_dir", "data.root", "resume", "init.weights", "hydra.run.dir")


def with_recipe(
    overrides: list[str], extra_dir: Path | None = None
) -> tuple[list[str], str, dict[str, Any]]:
    """What was typed, ready for Hydra and with its recipe; the recipe's name and what it sets."""
    overrides = [_quote_path(text) for text in overrides]
    typed = {key: value for key, _, value in (text.partition("=") for text in overrides)}
    recipe = typed.get("recipe") or _recipe_of_the_pair(typed, extra_dir)
    name, sets = _prepare_recipe(recipe, typed, extra_dir)
    rest = [text for text in overrides if not text.startswith("recipe=")]
    return [*rest, f"recipe={name}"], recipe, sets


def _recipe_of_the_pair(typed: dict[str, str], extra_dir: Path | None) -> str:
    chosen = {**_default_choices(), **typed}
    name = f"{chosen['model']}_{chosen['data']}"
    return name if name in options("recipe", extra_dir) else "none"


def _default_choices() -> dict[str, str]:
    defaults = OmegaConf.load(config_dir() / "config.yaml").defaults
    return {
        str(k): v for entry in defaults if isinstance(entry, DictConfig) for k, v in entry.items()
    }


def _prepare_recipe(
    name: str, typed: dict[str, str], extra_dir: Path | None
) -> tuple[str, dict[str, Any]]:
    """The name to compose with and what the recipe sets, less what a typed group replaces.

    A group chosen on the command line drops the recipe's block for it: `optimizer=adam` is plain
    Adam, not Adam with the learning rate meant for SGD. The recipe's own model and data stay.
    """
    if name == "none" or name not in options("recipe", extra_dir):
        return name, {}  # a wrong name is refused by the composition
    folder = next(
        f for f in (extra_dir, config_dir()) if f and (f / f"recipe/{name}.yaml").exists()
    )
    recipe = OmegaConf.load(folder / f"recipe/{name}.yaml")
    assert isinstance(recipe, DictConfig)
    choices = {
        str(key).removeprefix("override /"): value
        for entry in recipe.get("defaults", [])
        for key, value in entry.items()
    }
    dropped = [
        group
        for group in GROUPS
        if group in typed
        and (group in recipe or group in choices)
        and not (group in ("model", "data") and choices.get(group) == typed[group])
    ]
    for group in dropped:
        recipe.pop(group, None)
        choices.pop(group, None)
    if {"model", "data"} & set(dropped):
        recipe.pop("published", None)  # the paper's figure is for its own network and data
    sets = {**choices, **flat(OmegaConf.to_container(recipe))}
    sets = {k: v for k, v in sets.items() if not k.startswith(("defaults", "published"))}
    if dropped:
        recipe.defaults = [{f"override /{group}": choice} for group, choice in choices.items()]
        name = f"{name}-without-{'-'.join(dropped)}"
        store = ConfigStore.instance()
        store.store(name, recipe, group="recipe", package="_global_", provider="cvtrain")
    return name, {key: value for key, value in sets.items() if key not in typed}


def _quote_path(text: str) -> str:
    key, _, value = text.partition("=")
    quoted = len(value) > 1 and value[0] in "'\"" and value[0] == value[-1]
    if key.lstrip("+") not in PATH_KEYS or quoted or value in ("", "null"):
        return text
    # Hydra reads a backslash as itself, except right before a quote.
    escaped = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + m[2].replace("'", "\\'"), value)
    return f"{key}='{escaped}'"
