"""Pictures of a run: drawn by its task, written whole, shown in TensorBoard."""

import logging
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from cvtrain.data.source import Source
from cvtrain.engine.logs import Logs
from cvtrain.engine.plan import Parts
from cvtrain.files import whole
from cvtrain.tasks.base import Evaluator, Picture, Showing

log = logging.getLogger(__name__)

SAMPLES = 32


def write_png(path: Path, picture: Picture) -> None:
    with whole(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


def draw(make: Callable[[], dict[str, Picture]], logs: Logs, *, step: int) -> list[str]:
    """Write what `make` draws into the run directory and to TensorBoard. Returns the files' names.

    A run does not end for a picture: whatever fails is a warning.
    """
    if not logs.active:
        return []
    files = []
    try:
        for name, picture in make().items():
            write_png(logs.run_dir / f"{name}.png", picture)
            files.append(f"{name}.png")
            logs.picture(f"pictures/{name}", picture, step=step)
    except Exception as error:
        log.warning("warning: pictures left out: %s: %s", type(error).__name__, error)
    return files


def draw_samples(parts: Parts, logs: Logs) -> None:
    """What the network is about to see."""
    draw(
        lambda: parts.task.pictures(parts.transform(parts.train.peek(SAMPLES)), parts.source),
        logs,
        step=0,
    )


def draw_evaluation(
    evaluator: Evaluator | None, source: Source, logs: Logs, *, split: str, step: int
) -> list[str]:
    """What an evaluation has to show. Returns the names of all of the run's pictures."""
    drawn = [name for name in ["samples.png"] if (logs.run_dir / name).exists()]
    if isinstance(evaluator, Showing):
        drawn += draw(lambda: evaluator.pictures(source, split), logs, step=step)
    return drawn
