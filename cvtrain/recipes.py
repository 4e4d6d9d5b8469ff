"""Recipes: the paper's hyperparameters for a pair, joined to what was typed."""

import re
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from cvtrain.config import AUGMENT, AUGMENT_KEY, GROUPS, config_dir, flat, options

# Their right-hand sides are paths, which Hydra's grammar would refuse for a bracket or a space.
PATH_KEYS = (
    *("data_dir", "data.root", "resume", "init.weights", "hydra.run.dir", "hydra.sweep.dir"),
    *("model.pretrained", "model.pretrained_backbone", "model.fitted", "data.proposals"),
)

# What is not typed, where the defaults are of another task.
PARTNERS = {"detection": {"model": "faster_rcnn_tiny", "data": "shapes_boxes"}}


def with_recipe(
    overrides: list[str], extra_dir: Path | None = None
) -> tuple[list[str], str, dict[str, Any]]:
    """What was typed, ready for Hydra and with its recipe; the recipe's name and what it sets."""
    overrides = [ready(text) for text in overrides]
    typed = {key: value for key, _, value in (text.partition("=") for text in overrides)}
    if typed.get("recipe", "none") == "none":
        overrides += [f"{k}={v}" for k, v in partner_of(typed, extra_dir).items()]
        typed = {key: value for key, _, value in (text.partition("=") for text in overrides)}
    recipe = typed.get("recipe") or _recipe_of_the_pair(typed, extra_dir)
    # What debug chooses stands in for the recipe's as what was typed does.
    debug = _load("debug", typed.get("debug", "none"), extra_dir)
    name, sets = _prepare_recipe(recipe, {**_choices_of(debug), **typed}, extra_dir)
    rest = [text for text in overrides if not text.startswith("recipe=")]
    task = task_of_data({**_default_choices(), **sets, **typed}, extra_dir)
    final = [*rest, f"recipe={name}", *([f"task={task}"] if task and "task" not in typed else [])]
    return final, recipe, sets


def ready(text: str) -> str:
    """A word as Hydra's grammar takes it."""
    return _quote_path(with_augment_key(text))


def partner_of(typed: dict[str, str], extra_dir: Path | None) -> dict[str, str]:
    """Beside a detector typed alone the embedded data of its task; beside such data a network."""
    for group, other in (("model", "data"), ("data", "model")):
        task = _load(group, typed.get(group, ""), extra_dir).get("task")
        if other not in typed and task in PARTNERS:
            return {other: PARTNERS[task][other]}
    return {}


def task_of_data(choices: dict[str, Any], extra_dir: Path | None) -> str | None:
    """What the chosen data are for, where that is one of the tasks."""
    task = str(_load("data", str(choices["data"]), extra_dir).get("task"))
    return task if task != choices["task"] and task in options("task", extra_dir) else None


def with_augment_key(text: str) -> str:
    """`augment=[flip]`, as typed, under the name by which Hydra knows the group."""
    key, _, value = text.partition("=")
    return f"{AUGMENT_KEY}={value}" if key == AUGMENT else text


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
    recipe = _load("recipe", name, extra_dir)
    choices = _choices_of(recipe)
    dropped = _replaced(recipe, choices, typed)
    for group in dropped:
        recipe.pop(group, None)
        choices.pop(group, None)
    if {"model", "data"} & set(dropped):
        recipe.pop("published", None)  # the paper's figure is for its own network and data
    sets = {**choices, **flat(OmegaConf.to_container(recipe))}
    sets = {k: v for k, v in sets.items() if not k.startswith(("defaults", "published"))}
    if dropped:
        recipe.defaults = [{f"override /{group}": choice} for group, choice in choices.items()]
        name = f"{name}-without-{'-'.join(group for group in dropped if group in GROUPS)}"
        store = ConfigStore.instance()
        store.store(name, recipe, group="recipe", package="_global_", provider="cvtrain")
    # As it would be typed, not as Hydra knows it.
    left = {key.partition("@")[0]: value for key, value in sets.items() if key not in typed}
    return name, left


def _load(group: str, name: str, extra_dir: Path | None) -> DictConfig:
    """A choice's file, ours before the user's own, as Hydra has it; empty where there is none."""
    folders = (folder for folder in (config_dir(), extra_dir) if folder)
    files = [folder / group / f"{name}.yaml" for folder in folders]
    found = next((file for file in files if file.exists()), None)
    loaded = OmegaConf.load(found) if found else OmegaConf.create()
    assert isinstance(loaded, DictConfig)
    return loaded


def _choices_of(config: DictConfig) -> dict[str, Any]:
    """`{group: choice}` of the groups that a recipe or a debug file overrides."""
    return {
        str(key).removeprefix("override /"): value
        for entry in config.get("defaults", [])
        for key, value in entry.items()
    }


def _replaced(recipe: DictConfig, choices: dict[str, Any], typed: dict[str, str]) -> list[str]:
    """The groups of a recipe that what was typed stands in for."""
    groups = [
        group
        for group in GROUPS
        if group in typed
        and (group in recipe or group in choices)
        # Its own model and data; what it sets of any, as one that chooses none of them does, stays.
        and not (group in ("model", "data") and choices.get(group, typed[group]) == typed[group])
    ]
    # What augments the recipe's own images need not suit others.
    return [*groups, AUGMENT_KEY] if "data" in groups else groups


def plain(text: str) -> str:
    """A word as it would be typed: a path without the quotes that `ready` gave it."""
    key, _, value = text.partition("=")
    if key.lstrip("+") not in PATH_KEYS or value[:1] != "'":
        return text
    unescaped = re.sub(r"(\\+)('|$)", lambda m: m[1][: len(m[1]) // 2] + m[2], value[1:-1])
    return f"{key}={unescaped}"


def _quote_path(text: str) -> str:
    key, _, value = text.partition("=")
    quoted = len(value) > 1 and value[0] in "'\"" and value[0] == value[-1]
    if key.lstrip("+") not in PATH_KEYS or quoted or value in ("", "null"):
        return text
    # Hydra reads a backslash as itself, except right before a quote.
    escaped = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + m[2].replace("'", "\\'"), value)
    return f"{key}='{escaped}'"
