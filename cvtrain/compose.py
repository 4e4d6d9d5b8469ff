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
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cvtrain import config as schema
from cvtrain.config import (
    ALLOWED_PACKAGES,
    AUGMENT,
    AUGMENT_KEY,
    GROUPS,
    bad_targets,
    config_dir,
    flat,
    options,
)
from cvtrain.errors import ConfigError, nearest, refused_target
from cvtrain.recipes import with_recipe

# What else a network of the one task can learn.
SERVES = (("classification", "heads"), ("classification", "localization"))
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
    gpus: tuple[int, ...] = ()  # those of a job of a sweep, where several run at once; else any


@contextmanager
def hydra_ready() -> Iterator[None]:
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
    _check_choices(overrides, extra_dir)
    final, recipe, sets = with_recipe(overrides, extra_dir)
    if extra_dir:
        final.append(f"hydra.searchpath=['file://{extra_dir.resolve()}']")
    with hydra_ready():
        try:
            cfg = compose("config", final, return_hydra_config=True)
            chosen = cfg.hydra.runtime.choices
            run_dir = run_dir or _run_dir(cfg)
            choices = {**{group: str(chosen[group]) for group in GROUPS}, "recipe": recipe}
            OmegaConf.set_struct(cfg, False)
            del cfg["hydra"]
            # A debug choice, composed last, may have taken back what the recipe set.
            groups = (*GROUPS, AUGMENT)
            held = {k: v for k, v in sets.items() if k in groups or OmegaConf.select(cfg, k) == v}
            text = _text_without_secrets(cfg)
            config = to_config(cfg)
            _check_pair(config, choices["task"], extra_dir)
            return Composed(config, text, run_dir, choices, held, extra_dir)
        except COMPOSITION_ERRORS as error:
            raise explain(error, overrides) from error


def to_config(cfg: DictConfig) -> schema.Config:
    """The typed, range-checked form of a composed config."""
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    if bad := bad_targets(flat(plain), plain.get("trust") or []):
        raise refused_target(bad[0], f"it is not below {', '.join(ALLOWED_PACKAGES)}")
    for item in fields(schema.Config):
        if isinstance(plain.get(item.name), dict) and isinstance(item.type, type):
            ours = schema.open_keys(item.type)
            if ours is not None:
                node = plain[item.name]
                rest = {key: node.pop(key) for key in list(node) if key not in ours}
                node["args"] = rest
    plain["data"]["augment"] = plain["data"].get("augment") or {}  # null: none of it
    for key in ("trust", "resume_allow"):
        if isinstance(plain.get(key), str):
            raise ConfigError(f"{key}={plain[key]} is no list", "", f"type {key}=[{plain[key]}]")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema.Config), plain))
    assert isinstance(config, schema.Config)
    schema.check(config)
    return config


def _check_choices(overrides: list[str], extra_dir: Path | None) -> None:
    for group, _, name in (text.partition("=") for text in overrides):
        if group in (AUGMENT, AUGMENT_KEY):
            _check_augment(name, options(AUGMENT, extra_dir))
        if group in GROUPS and name.strip("'\"") not in (names := options(group, extra_dir)):
            several = "," in name and set(name.split(",")) <= set(names)
            raise _several_values(group, name) if several else _no_choice(group, name, names)


def _check_augment(typed: str, names: list[str]) -> None:
    """`[flip,mixup]`: a list of choices, of which `none` is one."""
    chosen = [name.strip() for name in typed.strip("[]").split(",") if name.strip()]
    for name in chosen:
        if name not in names:
            raise _no_choice(AUGMENT, name, names)
    if not chosen or not typed.startswith("["):
        listed = ",".join(chosen) or "none"
        raise ConfigError(f"augment={typed} is no list", "", f"type augment=[{listed}]")


def _check_pair(config: schema.Config, chosen: str, extra_dir: Path | None) -> None:
    task = config.data.task
    if chosen != task and chosen in options("task"):  # a task of the user's own may suit any data
        raise ConfigError(f"task={chosen} cannot train on {task} data", "", f"type task={task}")
    if config.model.task == task or (config.model.task, task) in SERVES:
        return
    lists = {"model": task, "data": config.model.task}  # what either could be, for the other
    fitting = {g: ", ".join(_choices_for(g, its, extra_dir)) for g, its in lists.items()}
    ways = [f"{group}=NAME with one of {names}" for group, names in fitting.items() if names]
    raise ConfigError(
        f"a {config.model.task} network cannot train on {task} data",
        "model, data",
        f"type {', or '.join(ways)}" if ways else "no network here can: add a YAML",
    )


def _choices_for(group: str, task: str, extra_dir: Path | None) -> list[str]:
    folders = [config_dir(), *([extra_dir] if extra_dir else [])]
    files = [file for folder in folders for file in sorted((folder / group).glob("*.yaml"))]
    return [f.stem for f in files if f"\ntask: {task}\n" in f"\n{f.read_text()}\n"]


def _run_dir(cfg: DictConfig) -> Path:
    HydraConfig.instance().set_config(cfg)  # for ${hydra:...} in the directory's name
    return Path(str(cfg.hydra.run.dir))


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
    return flat(OmegaConf.to_container(OmegaConf.create(text)))


# Mistakes


def _no_choice(group: str, name: str, names: list[str]) -> ConfigError:
    close = difflib.get_close_matches(name, names, n=1)
    fix = f"type {group}={close[0]}" if close else f"type {group}= and one of {', '.join(names)}"
    return ConfigError(f"there is no {group} named {name}", f"{group}={name}", fix)


def _several_values(key: str, value: str) -> ConfigError:
    fix = f"type cvtrain -m ... {key}={value} for a sweep"
    if key not in GROUPS:
        fix += f", or {key}=[{value}] for a list"
    return ConfigError(f"{key}={value} has several values", "", fix)


def explain(error: Exception, overrides: list[str]) -> ConfigError:
    """Hydra's error as ours: the override at fault and the nearest valid key or choice."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return _no_choice(group, name, sorted(error.options or []))
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
            return _several_values(key, text.partition("=")[2])
    message = str(error).splitlines()[0]
    full_key = re.search(r"full_key: (\S+)", str(error))
    where = full_key[1] if full_key else ""
    if where and "is not a ListConfig" in message:
        value = next((o.partition("=")[2] for o in overrides if o.startswith(f"{where}=")), "")
        return ConfigError(f"{where}={value} is no list", "", f"type {where}=[{value}]")
    if keys and "not in" in message:
        return ConfigError(f"there is no key {where}", "", nearest(where, keys))
    return ConfigError(message, where, "see cvtrain --help")


def _valid_keys(overrides: list[str]) -> list[str]:
    """Every key of the config that the typed choices alone compose to; inner ones too."""
    groups = [text.split(",")[0] for text in overrides if text.partition("=")[0] in GROUPS]
    groups = with_recipe(groups)[0]  # with the task of the data
    with hydra_ready():
        try:
            known = flat(OmegaConf.to_container(compose("config", groups)))
        except COMPOSITION_ERRORS:
            return []
    parts = [path.split(".") for path in known]
    inner = (".".join(part[:end]) for part in parts for end in range(len(part), 0, -1))
    return list(dict.fromkeys([*GROUPS, AUGMENT, AUGMENT_KEY, *inner]))
