"""`cvtrain check`: a data set, looked at before one trains on it."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cvtrain.build import channels_of, size_of
from cvtrain.build_loaders import build_loaders
from cvtrain.checks import page
from cvtrain.checks.attempts import Attempt, attempt
from cvtrain.checks.findings import (
    Places,
    duplicates,
    of_boxes,
    of_classes,
    of_duplicates,
    of_files,
    of_pixels,
    sort,
)
from cvtrain.checks.listing import listed
from cvtrain.checks.look import look_at, threads_of_machine
from cvtrain.checks.parts import Found, Part, parts_of
from cvtrain.checks.pictures import of_odd, of_pairs, of_some
from cvtrain.checks.result import Result
from cvtrain.checks.statistics import figures
from cvtrain.checks.table import table
from cvtrain.compose import Composed
from cvtrain.config import Config
from cvtrain.data.arrays import ArraySource
from cvtrain.data.images import shown
from cvtrain.data.source import Source
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.logs import speak
from cvtrain.engine.pictures import SAMPLES
from cvtrain.errors import ConfigError, CvtrainError, DataError
from cvtrain.files import writing
from cvtrain.targets import make, resolve
from cvtrain.tasks.base import Task

log = logging.getLogger(__name__)

MAX_PIXELS = 100_000_000  # of one image, where the data set has no such limit


def check(composed: Composed, overrides: list[str], *, out: str) -> None:
    """Look at the data and tell in `out`; nothing of theirs is written to.

    Raises DataError (CHECK) at the end where training would fail on them.
    """
    speak(logging.INFO)
    config, folder = composed.config, Path(out)
    _check_place(config, folder)
    with writing(folder, key="out"):
        folder.mkdir(parents=True, exist_ok=True)
    result = examine(config, composed.choices["data"])
    files = result.write(folder)
    page.write(result, folder / "check.html")
    print(table(result))
    print(f"  {shown(folder)}/: check.html {' '.join(files)}")
    if result.errors:
        names = ", ".join(dict.fromkeys(error[1:].partition("]")[0] for error in result.errors))
        fix = "mend what the table lists"
        raise DataError(
            f"training would fail: {names}", shown(folder / "check.html"), fix, name="CHECK"
        )


def examine(config: Config, title: str) -> Result:
    """Raises ConfigError and what else is not the data's fault."""
    arguments = config.data.args
    done, parts, found = _read(config)
    limit = arguments.get("max_pixels") or MAX_PIXELS
    facts = look_at(parts, max_pixels=limit, threads=threads_of_machine())
    groups, pairs = duplicates(facts)
    places = Places(parts, facts)
    mean, std = (list(arguments.get(key) or []) for key in ("mean", "std"))
    found += [*of_files(parts, facts), *of_duplicates(groups, pairs, places)]
    found += [*of_classes(parts), *of_boxes(parts), *of_pixels(facts, mean, std)]
    errors = [_line(error) for error in done.errors]
    if facts.bad and done.source is not None:  # what only shows when its pixels are read
        first = min(facts.bad)
        where = f"{shown(places.name(first))}: {facts.bad[first]}"
        errors.append(f"[BAD-IMAGE] images that cannot be read: {len(facts.bad):,}, as {where}")
    samples, refused = _samples(config, done)
    sheets = {
        "check_samples.png": samples,
        "check_images.png": of_some(places, facts) if samples is None else None,
        "check_duplicates.png": of_pairs(groups, pairs, places, facts),
        "check_odd.png": of_odd(places, facts),
    }
    return Result(
        title,
        str(arguments.get("root", "")),
        parts,
        facts,
        figures(parts, facts, mean, std),
        errors + refused,
        sort(found),
        done.notes,
        {name: picture for name, picture in sheets.items() if picture is not None},
    )


def _read(config: Config) -> tuple[Attempt, list[Part], list[Found]]:
    """Splits of the source; where there is none, or it leaves something out, what can be told
    without one.
    """
    arguments = config.data.args
    done = attempt(lambda given: _make(config, given), arguments)
    parts: list[Part] = []
    found: list[Found] = []
    errors: list[DataError] = []
    if done.source is None or done.warned:
        kind = resolve(arguments["_target_"], Source, config.trust)
        parts, found, errors = listed(kind, arguments)
    if done.source is not None:
        parts, errors = parts_of(done.source)
    known = [error.what for error in done.errors]
    done.errors += [error for error in errors if error.what not in known]
    return done, parts, found


def _check_place(config: Config, folder: Path) -> None:
    """Pictures among a folder's images would be trained on. Raises ConfigError."""
    kind = resolve(config.data.args.get("_target_"), Source, config.trust)
    if "root" not in config.data.args or issubclass(kind, ArraySource):
        return
    root = Path(str(config.data.args["root"]))
    if folder.resolve().is_relative_to(root.resolve()):
        raise ConfigError(
            "the report would lie among the data",
            f"out={shown(folder)}",
            "type out=FOLDER elsewhere",
        )


def _make(config: Config, arguments: dict[str, Any]) -> Source:
    source: Source = make(arguments, Source, key="data", trust=config.trust)
    return source


def _line(error: CvtrainError) -> str:
    return f"[{error.name}] {' '.join(str(error).splitlines())}"


def _samples(config: Config, done: Attempt) -> tuple[NDArray[np.uint8] | None, list[str]]:
    """The contact sheet of a training batch, and why training would not get to its first step."""
    if done.source is None:
        return None, []
    try:
        return _sheet(config, done.source), []
    except DataError as error:
        known = error.name == "BAD-IMAGE" or error.what in [e.what for e in done.errors]
        refused = [] if known else [_line(error)]
    except ConfigError as error:
        if error.name != "NO-STEPS":
            raise
        refused = [_line(error)]
    try:
        single = replace(config, data=replace(config.data, batch_size=1))
        return _sheet(single, done.source), refused
    except (ConfigError, DataError):
        return None, refused


def _sheet(config: Config, source: Source) -> NDArray[np.uint8] | None:
    """Raises what training would raise."""
    size, device = size_of(config, source), torch.device("cpu")
    loaded = replace(config, trainer=replace(config.trainer, workers=0))
    training, validation = build_loaders(loaded, source, size, device=device, ranks=Ranks())
    transform = source.transform(
        image_size=size, channels=channels_of(config, source), device=device, channels_last=False
    )
    info = source.info
    known = {"num_classes": len(info.classes), "class_counts": info.counts, "info": info}
    task = make(config.task.args, Task, key="task", trust=config.trust, **known)
    try:
        return task.pictures(transform(training.peek(SAMPLES)), source).get("samples")
    finally:
        training.close()
        validation.close()
