"""What a run leaves beside its checkpoints: before its first step, and after its last."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from cvtrain.engine.environment import write_environment
from cvtrain.files import write_atomic
from cvtrain.origins import origins
from cvtrain.trained.start import Start

log = logging.getLogger(__name__)


def write_start(
    run: Path, start: Start, overrides: list[str], device: torch.device, bad: Sequence[str]
) -> None:
    """The config, where its values come from, the environment, files that were left out."""
    write_atomic(run / "config.yaml", start.composed.text)
    with or_warned("origins.json"):
        write_atomic(run / "origins.json", origins_text(start, overrides))
    write_environment(run, device)
    if bad:
        lines = (" ".join(line.split("\n")) for line in bad)
        write_atomic(run / "bad_images.txt", "\n".join(lines) + "\n")


def origins_text(start: Start, overrides: list[str]) -> str:
    """JSON: of each key what set it, the last of which counts; a line for each key."""
    lines = []
    for key, last in origins(start.composed, overrides, start.followed).items():
        found = [
            {"value": one.value, "kind": one.kind, "where": one.where}
            for one in (*last.before, last)
        ]
        lines.append(f"{json.dumps(key)}: {json.dumps(found, default=str)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write_end(run: Path) -> list[str]:
    """The page of the run. Returns what the terminal is told of it."""
    page = run / "report.html"
    with or_warned(page.name):
        from cvtrain.report.run import write_report  # with Bokeh: only here

        write_report(run, page)
        return [f"  page     {page}"]
    return []


@contextmanager
def or_warned(name: str) -> Iterator[None]:
    """A run does not end for what is only to be looked at."""
    try:
        yield
    except Exception as error:
        log.warning("warning: %s left out: %s: %s", name, type(error).__name__, error)
