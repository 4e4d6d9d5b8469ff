"""`cvtrain export`: a network as a file for other programs, with what is needed to use it.

The file is run where it is to be run, onnxruntime for one, and held against the network on
pictures of three sizes. One that says something else is kept under a name that says so.
"""

import difflib
import json
import logging
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cvtrain import targets
from cvtrain.compose import Composed
from cvtrain.data.arrays import ArraySource
from cvtrain.data.source import Source
from cvtrain.engine.logs import speak
from cvtrain.errors import ConfigError, CvtrainError
from cvtrain.exports import FORMATS, folder, format_module, quietly
from cvtrain.exports.check import Difference, check
from cvtrain.exports.pictures import drawn, files_below
from cvtrain.exports.subject import Subject, classifier, detector
from cvtrain.trained.inputs import Inputs, Seen
from cvtrain.trained.network import Network, build
from cvtrain.verbs.export_origin import (
    CPU,
    Origin,
    classes_of,
    of_model,
    of_the_run,
    place,
    write_companions,
)

log = logging.getLogger(__name__)

PICTURES = 3
PROPOSALS = {"proposals": "grid", "proposals_count": 50}  # for networks that take some
Picture = Path | np.ndarray  # uint8 [H, W, 3]
Batches = list[tuple[Tensor, ...]]  # what a network is called with


def export(composed: Composed, overrides: list[str], *, run: str, format: str, out: str) -> None:
    """Write the folder. Raises ConfigError (no such format, or the network cannot be expressed in
    it), CheckpointError, MachineError; after all is written, CvtrainError (DIFFERS).
    """
    speak(logging.INFO)
    form = _format(format)
    target = Path(out) if out else place(run, composed)
    apart = target.with_name(f"{target.name}{folder.DIFFERS}")
    folder.check_free(target)
    folder.check_free(apart)
    network, origin = of_the_run(run, composed, overrides) if run else of_model(composed, overrides)
    if getattr(network.model, "needs_proposals", False):
        network.config.data.args |= PROPOSALS
    if form.NOTE:
        log.warning("warning: %s", form.NOTE)
    pictures, file = _pictures(network), f"{folder.MODEL}{form.SUFFIX}"
    with folder.drafting(target) as draft:
        made = make_file(form, draft / file, network, origin, pictures)
        write_companions(draft, network, origin, made.subject, format, made.checked)
        folder.put(draft, apart if made.wrong else target)
    _report(made, apart if made.wrong else target, file)


class Made(NamedTuple):
    """A file that is written and looked at."""

    subject: Subject
    checked: list[Difference]
    size: int  # bytes

    @property
    def wrong(self) -> list[Difference]:
        return [line for line in self.checked if line.wrong]


def make_file(
    form: ModuleType, path: Path, network: Network, origin: Origin, pictures: list[Picture]
) -> Made:
    """For images of any size if the network takes them, and the format can say so."""
    batches = of_any_size(network, pictures)
    if batches:
        made = _made(form, path, subject_of(network, origin, pictures, any_size=True), batches)
        if not made.wrong or made.subject.detects:
            return made
        log.info("images of %d px only: %s", network.size, made.wrong[0])
    fixed = subject_of(network, origin, pictures, any_size=False)
    return _made(form, path, fixed, of_one_size(network, pictures))


def _made(form: ModuleType, path: Path, subject: Subject, batches: Batches) -> Made:
    """Raises ConfigError for a network that has no such form, MachineError."""
    with quietly():
        try:
            packed: bytes = form.packed(subject)
        except (MemoryError, CvtrainError):
            raise
        except Exception as error:  # of every kind: what an exporter cannot follow
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = (lines or [type(error).__name__])[0][:200]
            name = form.__name__.rpartition(".")[2]
            what = f"the network cannot be expressed in {name} ({reason})"
            raise ConfigError(what, f"format={name}", f"type {_others(name)}") from error
        path.write_bytes(packed)
        return Made(subject, check(form.opened(path, subject), subject, batches), len(packed))


def _others(format: str) -> str:
    return " or ".join(f"format={name}" for name in FORMATS if name != format)


def _report(made: Made, target: Path, file: str) -> None:
    """Raises CvtrainError (DIFFERS)."""
    shapes = " and ".join(f"{name} {shape}" for name, shape in made.subject.shapes.items())
    print(f"{target}: {file}, {made.size:,} bytes, takes {shapes}")
    for line in made.checked:
        print(line)
    if made.wrong:
        what = f"{file} does not say what the network says: {made.wrong[0]}"
        raise CvtrainError(
            what, str(target), "kept to be looked at; type another format=", name="DIFFERS"
        )
    if made.subject.detects and not any(line.pairs for line in made.checked):
        log.warning("warning: the network finds nothing in these pictures: no box was compared")


def _format(name: str) -> ModuleType:
    if name not in FORMATS:
        close = difflib.get_close_matches(name.lower(), FORMATS, n=1, cutoff=0.0)
        fix = f"type format={(close or FORMATS)[0]}; there are {', '.join(FORMATS)}"
        raise ConfigError(f"there is no format {name}", f"format={name}", fix)
    return format_module(name)


def subject_of(
    network: Network, origin: Origin, pictures: list[Picture], *, any_size: bool
) -> Subject:
    more: dict[str, Any] = {"about": about(network, origin)}
    more["fresh"] = lambda: build(network.config, network.source, device=CPU).model
    if network.config.model.task == "detection":
        soft = getattr(network.model, "soft", {}).get("method", "hard")
        if soft != "hard":
            what = "Soft-NMS goes on until nothing is left, which no exported graph can"
            raise ConfigError(what, f"model.nms_method={soft}", "export one of nms_method=hard")
        return detector(network.model, _batch(network, pictures[:1]), **more)
    box = network.config.data.task == "localization"
    # Two at least: a size of 1 would be taken for one that never changes.
    example = _batch(network, pictures[:2])
    return classifier(network.model, example[0], box=box, any_size=any_size, **more)


def about(network: Network, origin: Origin) -> dict[str, str]:
    """What a file can carry by itself."""
    settings = Inputs(network, CPU).settings()
    held = {"classes": classes_of(network), "preprocessing": settings}
    return {key: json.dumps(value) for key, value in held.items()} | {"config": origin.text}


# Pictures


def of_any_size(network: Network, pictures: list[Picture]) -> Batches:
    """Calls on three sizes; none if the network takes but one."""
    size = network.size
    if network.config.model.task == "detection":
        sizes = (size, size * 3 // 4, size * 5 // 4)
        *squares, last = (_batch(network, [p], n) for p, n in zip(pictures, sizes, strict=True))
        narrow = last[0][..., : last[0].shape[-1] * 3 // 4].contiguous()
        fewer = (proposals[::3] for proposals in last[1:])
        return [*squares, (narrow, *fewer)]
    if network.config.model.input.startswith("fixed"):
        return []
    [tall] = _batch(network, pictures[1:], size * 3 // 2)
    others = [_batch(network, pictures, size * 5 // 4), (tall[..., :size].contiguous(),)]
    return [_batch(network, pictures[:1]), *others] if _runs(network, others) else []


def of_one_size(network: Network, pictures: list[Picture]) -> Batches:
    return [_batch(network, part) for part in (pictures[:1], pictures, pictures[1:])]


@torch.no_grad()
def _runs(network: Network, batches: Batches) -> bool:
    try:
        for batch in batches:
            network.model(*batch)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        log.info("images of %d px only: %s", network.size, str(error).partition("\n")[0][:100])
        return False
    return True


def _batch(network: Network, pictures: list[Picture], size: int = 0) -> tuple[Tensor, ...]:
    inputs = Inputs(replace(network, size=size or network.size), CPU)
    batch = inputs.batch([_seen(inputs, picture) for picture in pictures])
    if not inputs.detects:
        return (batch.images.contiguous(),)
    return (batch.images[0].contiguous(), *(batch.proposals or [])[:1])


def _seen(inputs: Inputs, picture: Picture) -> Seen:
    return inputs.read(picture) if isinstance(picture, Path) else inputs.of(picture)


def _pictures(network: Network) -> list[Picture]:
    """Of the network's own data, where they are there without fetching or drawing them."""
    inputs = Inputs(network, CPU)
    try:
        found = _of_data(network)
        for picture in found:
            _seen(inputs, picture)
    except (CvtrainError, IndexError):
        found = []  # they are elsewhere, or broken
    if len(found) == PICTURES:
        return found
    side = min(max(network.size, 64), 512)
    return [drawn(number, side) for number in range(PICTURES)]


def _of_data(network: Network) -> list[Picture]:
    """Paths or uint8 `[H, W, 3]`. Raises DataError, IndexError."""
    arguments, trust = network.config.data.args, network.config.trust
    kind, root = targets.resolve(arguments.get("_target_"), Source, trust), arguments.get("root")
    if issubclass(kind, ArraySource):
        source = targets.make({**arguments, "url": None}, Source, key="data", trust=trust)
        images = [source.image_of(number, "val") for number in range(PICTURES)]
        return [image.expand(3, -1, -1).permute(1, 2, 0).numpy() for image in images]
    return [*files_below(Path(root), PICTURES)] if root and Path(root).is_dir() else []
