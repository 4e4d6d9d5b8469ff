"""Where each value of a config comes from: the files and words that set it, in their order.

Imports neither torch nor anything that does.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from cvtrain.compose import Composed, flatten, hydra_ready
from cvtrain.config import AUGMENT, GROUPS, config_dir, flat
from cvtrain.recipes import with_augment_key, with_recipe

# What weights may settle unless it is typed; a network has some of these.
FOLLOW_WEIGHTS = (
    *("data.image_size", "data.mean", "data.std", "model.in_channels", "model.stride_in"),
    *("model.stem", "model.frozen_norm", "model.transform_input"),
    *("model.body.stride_in", "model.body.stem"),
)
Said = tuple[str, Any, str]  # the kind, the value as it is written, and where


class Origin(NamedTuple):
    """`value` as the config has it; in `before` as it was written.

    `kind`: default (config.yaml or a group's choice), recipe, debug, follows (another choice brings
    it), command line, weights. `where`: `configs/optimizer/sgd.yaml:3`, what was typed, what is
    followed. `before`: what it replaces, the oldest first. `written`: the interpolation that the
    value came of, if it is one.
    """

    value: Any
    kind: str
    where: str
    before: tuple["Origin", ...] = ()
    written: str = ""


def origins(
    composed: Composed, overrides: list[str], followed: Mapping[str, Any] | None = None
) -> dict[str, Origin]:
    """Of the choice of each group, then of each key in the config's order; a list is one key.

    `overrides` is what was typed, `followed` what weights settled.
    """
    words, *_ = with_recipe(overrides, composed.extra_dir)
    said: dict[str, list[Said]] = {}
    for key, one in (*_of_files(words, composed.extra_dir), *_of_words(words, overrides, composed)):
        said.setdefault(key, []).append(one)
    for key, value in (followed or {}).items():
        said.setdefault(key, []).append(("weights", value, str(composed.config.model.pretrained)))
    augment = said.get(AUGMENT, [("", "[]", "")])[-1][1]
    values = {**composed.choices, AUGMENT: augment, **flatten(composed.text)}
    return {key: _origin(value, said.get(key, [])) for key, value in values.items()}


def _origin(value: Any, said: list[Said]) -> Origin:
    if not said:
        return Origin(value, "default", "")
    kind, written, where = said[-1]
    before = tuple(Origin(value, kind, where) for kind, value, where in said[:-1])
    return Origin(value, kind, where, before, written if "${" in str(written) else "")


def _of_files(words: list[str], extra_dir: Path | None) -> Iterator[tuple[str, Said]]:
    """In the order in which Hydra lays one over the other."""
    if extra_dir:
        words = [*words, f"hydra.searchpath=['file://{extra_dir.resolve()}']"]
    with hydra_ready():
        loader = GlobalHydra.instance().config_loader()
        layers = loader.compute_defaults_list("config", words, RunMode.RUN).defaults
    for layer in layers:
        if layer.config_path and not layer.config_path.startswith("hydra/"):
            group = layer.config_path.partition("/")[0]
            kind = group if group in ("recipe", "debug") else "default"
            for key, value, where in _of_file(layer.config_path, layer.package or "", extra_dir):
                yield key, (kind, value, where)


def _of_file(name: str, package: str, extra_dir: Path | None) -> Iterator[tuple[str, Any, str]]:
    """The keys that a file sets and the choices that it makes; of a recipe, those that count."""
    stem = name.partition("-without-")[0]
    folders = [config_dir(), *([extra_dir] if extra_dir else [])]
    files = [path for path in (folder / f"{stem}.yaml" for folder in folders) if path.exists()]
    if not files:  # a plug-in's
        return
    file = files[0]
    shown = f"configs/{stem}.yaml" if file.is_relative_to(config_dir()) else str(file)
    lines = dict(_lines(yaml.compose(file.read_text(encoding="utf-8"))))
    whole = counted = _plain(OmegaConf.load(file))
    if name != stem:  # less the blocks of groups for which another choice stands
        counted = _plain(ConfigStore.instance().load(f"{name}.yaml").node)
    for group, value in _chosen(whole).items():
        if group != AUGMENT or group in _chosen(counted):
            yield group, value, f"{shown}:{lines[f'defaults.{group}']}"
    counted.pop("defaults", None)
    for key, value in flat(counted).items():
        if key and not key.startswith("hydra"):
            yield f"{package}.{key}" if package else key, value, f"{shown}:{lines.get(key, 1)}"


def _plain(config: Any) -> dict[str, Any]:
    """As written: interpolations stay."""
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _chosen(config: dict[str, Any]) -> dict[str, Any]:
    """The choice of each group that a file's defaults name."""
    entries = [entry for entry in config.get("defaults", []) if isinstance(entry, dict)]
    chosen = {_group(key): value for entry in entries for key, value in entry.items()}
    return {group: value for group, value in chosen.items() if group in (*GROUPS, AUGMENT)}


def _group(text: str) -> str:
    """`augment` of `override /augment@data.augment`."""
    return text.removeprefix("override ").lstrip("/").partition("@")[0]


def _lines(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    """The line of each key; of a file's defaults that of each group."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        path = f"{prefix}{key.value}"
        yield path, key.start_mark.line + 1
        yield from _lines(value, f"{path}.")
        for entry in value.value if path == "defaults" else ():
            for group, line in _lines(entry):
                yield f"defaults.{_group(group)}", line


def _of_words(
    words: list[str], overrides: list[str], composed: Composed
) -> Iterator[tuple[str, Said]]:
    """What was typed, and what is composed besides because of it."""
    typed = {_key(with_augment_key(text)): text for text in overrides}
    model, data = (f"{group}={composed.choices[group]}" for group in ("model", "data"))
    because = {"recipe": f"{model} {data}", "task": data, "model": data, "data": model}
    for word in OverridesParser.create().parse_overrides(words):
        text = str(word.input_line)
        key = _key(text)
        if key == "recipe" and word.value() == "none" and key not in typed:
            continue  # as config.yaml has it
        where = typed.get(key, because.get(key, text))
        kind = "command line" if key in typed else "follows"
        group = word.key_or_group
        if word.is_delete() or group.startswith("hydra."):
            continue
        values = {group: word.value()} if group in (*GROUPS, AUGMENT) else flat(word.value(), group)
        for path, value in values.items():
            yield path, (kind, value, where)


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")
