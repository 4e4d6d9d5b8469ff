"""From what was typed to a `Config`: Hydra composes, the recipe joins, the schema checks.

Imports neither torch nor anything that does: a mistake is answered in half a second.
"""

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cvtrain import config as schema
from cvtrain.config import ALLOWED_PACKAGES, GROUPS, bad_targets, config_dir, options
from cvtrain.errors import ConfigError, nearest, refused_target

# Their right-hand sides are paths, which Hydra's grammar would refuse for a bracket or a space.
PATH_KEYS = ("data_dir", "data.root", "resume", "init.weights", "hydra.run.dir")


COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException)


@dataclass(frozen=True)
class Composed:
    """A checked config, its text (secrets left as interpolations) and where the run belongs."""

    config: schema.Config
    text: str
    run_dir: Path
    choices: dict[str, str]
    recipe_sets: dict[str, Any]  # what the recipe set and neither command line nor debug changed
    extra_dir: Path | None  # the user's own tree of configs


@contextmanager
def _hydra() -> Iterator[None]:
    """Hydra ready to compose, also inside a job of `-m`, whose own Hydra is put back at the end."""
    backup = get_gh_backup()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            yield
    finally:
        restore_gh_from_backup(backup)


def compose_config(
    overrides: list[str], *, extra_dir: Path | None = None, run_dir: Path | None = None
) -> Composed:
    """Compose and check what was typed.

    `extra_dir` is the user's own tree of configs; `run_dir` replaces `hydra.run.dir` in a sweep.
    Raises ConfigError, naming the nearest valid key or choice.
    """
    final, recipe, sets = with_recipe(overrides, extra_dir)
    if extra_dir:
        final.append(f"hydra.searchpath=['file://{extra_dir.resolve()}']")
    with _hydra():
        try:
            cfg = compose("config", final, return_hydra_config=True)
            chosen = cfg.hydra.runtime.choices
            if cfg.model.task != chosen.task and not any(o.startswith("task=") for o in final):
                final.append(f"task={cfg.model.task}")  # the model's own, unless one was typed
                cfg = compose("config", final, return_hydra_config=True)
            run_dir = run_dir or _run_dir(cfg)
            choices = {**{group: str(chosen[group]) for group in GROUPS}, "recipe": recipe}
            OmegaConf.set_struct(cfg, False)
            del cfg["hydra"]
            # A debug choice, composed last, may have taken back what the recipe set.
            held = {k: v for k, v in sets.items() if k in GROUPS or OmegaConf.select(cfg, k) == v}
            text = _text_without_secrets(cfg)
            return Composed(to_config(cfg), text, run_dir, choices, held, extra_dir)
        except COMPOSITION_ERRORS as error:
            raise explain(error, overrides) from error


def to_config(cfg: DictConfig) -> schema.Config:
    """The typed, range-checked form of a composed config."""
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    if bad := bad_targets(_flat(plain), plain.get("trust") or []):
        raise refused_target(bad[0], f"it is not below {', '.join(ALLOWED_PACKAGES)}")
    for item in fields(schema.Config):
        if isinstance(plain.get(item.name), dict) and isinstance(item.type, type):
            ours = schema.open_keys(item.type)
            if ours is not None:
                node = plain[item.name]
                rest = {key: node.pop(key) for key in list(node) if key not in ours}
                node["args"] = rest
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema.Config), plain))
    assert isinstance(config, schema.Config)
    schema.check(config)
    _check_pair(config)
    return config


def _check_pair(config: schema.Config) -> None:
    if config.model.task != config.data.task:
        fitting = ", ".join(_models_for(config.data.task))
        raise ConfigError(
            f"a {config.model.task} network cannot train on {config.data.task} data",
            "model, data",
            f"for this data type model=NAME with one of: {fitting}",
        )


def _models_for(task: str) -> list[str]:
    files = sorted((config_dir() / "model").glob("*.yaml"))
    return [file.stem for file in files if f"\ntask: {task}" in file.read_text()]


def _quote_path(text: str) -> str:
    key, _, value = text.partition("=")
    quoted = len(value) > 1 and value[0] in "'\"" and value[0] == value[-1]
    if key.lstrip("+") not in PATH_KEYS or quoted or value in ("", "null"):
        return text
    # Hydra reads a backslash as itself, except right before a quote.
    escaped = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + m[2].replace("'", "\\'"), value)
    return f"{key}='{escaped}'"


def _run_dir(cfg: DictConfig) -> Path:
    HydraConfig.instance().set_config(cfg)  # for ${hydra:...} in the directory's name
    return Path(str(cfg.hydra.run.dir))


# Recipes


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
    sets = {**choices, **_flat(OmegaConf.to_container(recipe))}
    sets = {k: v for k, v in sets.items() if not k.startswith(("defaults", "published"))}
    if dropped:
        recipe.defaults = [{f"override /{group}": choice} for group, choice in choices.items()]
        name = f"{name}-without-{'-'.join(dropped)}"
        store = ConfigStore.instance()
        store.store(name, recipe, group="recipe", package="_global_", provider="cvtrain")
    return name, {key: value for key, value in sets.items() if key not in typed}


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {
        path: leaf
        for key, value in node.items()
        for path, leaf in _flat(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


# What a run directory and a checkpoint keep


@contextmanager
def _environment_unread() -> Iterator[None]:
    def unread(*parts: str) -> str:
        return "${oc.env:" + ",".join(str(part) for part in parts) + "}"

    from omegaconf.resolvers import oc

    OmegaConf.register_new_resolver("oc.env", unread, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _text_without_secrets(cfg: DictConfig) -> str:
    """Resolved YAML, but what comes from the environment stays an interpolation."""
    with _environment_unread():
        return OmegaConf.to_yaml(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)))


def flatten(text: str) -> dict[str, Any]:
    """`{"optimizer.lr": 0.1, ...}` of a stored config's text, for comparison only."""
    return _flat(OmegaConf.to_container(OmegaConf.create(text)))


# Mistakes


def explain(error: Exception, overrides: list[str]) -> ConfigError:
    """Hydra's error as ours: the override at fault and the nearest valid key or choice."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        names = sorted(error.options or [])
        close = difflib.get_close_matches(name, names, n=1)
        fix = f"{group}={close[0]}" if close else f"one of {', '.join(names)}"
        return ConfigError(f"there is no {group} named {name}", f"{group}={name}", f"type {fix}")
    keys = _valid_keys(overrides)
    for text in overrides:
        key = text.partition("=")[0]
        if "=" not in text:
            return ConfigError(f"{text} is no override", "", "type key=value, or see --help")
        if keys and key not in keys and key[0] not in "+~" and not key.startswith("hydra."):
            return ConfigError(
                f"there is no key {key}", text, nearest(key, keys, text.partition("=")[2])
            )
        if "Ambiguous value" in str(error) and f"'{text}'" in str(error):
            fix = f"type cvtrain -m ... {text} for a sweep, or {key}=[...] for a list"
            return ConfigError(f"{text} has several values", "", fix)
    message = str(error).splitlines()[0]
    full_key = re.search(r"full_key: (\S+)", str(error))
    where = full_key[1] if full_key else ""
    if keys and "not in" in message:
        return ConfigError(f"there is no key {where}", "", nearest(where, keys))
    return ConfigError(message, where, "see cvtrain --help")


def _valid_keys(overrides: list[str]) -> list[str]:
    """Every key of the config that the typed choices alone compose to; inner ones too."""
    groups = [text.split(",")[0] for text in overrides if text.partition("=")[0] in GROUPS]
    with _hydra():
        try:
            known = _flat(OmegaConf.to_container(compose("config", groups)))
        except COMPOSITION_ERRORS:
            return []
    parts = [path.split(".") for path in known]
    inner = (".".join(part[:end]) for part in parts for end in range(len(part), 0, -1))
    return list(dict.fromkeys([*GROUPS, *inner]))
