"""The source as training makes it; of data that training refuses, everything it would refuse."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cvtrain.data.source import Source
from cvtrain.errors import DataError

# By an error's name, what lets the next mistake come to light.
LENIENT: dict[str, tuple[tuple[str, Any], ...]] = {
    "BAD-IMAGE": (("on_bad", "skip"),),
    "IMAGE-TOO-LARGE": (("on_bad", "skip"),),
    "COCO": (("on_bad_boxes", "drop"),),
    "VOC": (("on_bad_boxes", "drop"),),
    "CLASSES": (("allow_empty", True), ("allow_other_classes", True), ("allow_one_class", True)),
}


@dataclass
class Attempt:
    """`source` is None where even leniently there is none."""

    source: Source | None = None
    errors: list[DataError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what the source has said
    warned: bool = False  # of something that it has left out, or refused


def attempt(make: Callable[[dict[str, Any]], Source], arguments: dict[str, Any]) -> Attempt:
    """Make the source; after an error again, more leniently, until there is one or no way left.

    Raises what is no DataError. Proposals, which may take hours, are left out.
    """
    arguments = {name: None if name == "proposals" else v for name, v in arguments.items()}
    done = Attempt()
    while True:
        with _heard(done, quietly=bool(done.errors)):
            try:
                done.source = make(arguments)
                return done
            except DataError as error:
                done.warned = True
                if error.what not in [known.what for known in done.errors]:
                    done.errors.append(error)
                looser = LENIENT.get(error.name, ())
        keys = [(k, v) for k, v in looser if k in arguments and arguments[k] != v]
        if not keys:
            return done
        arguments[keys[0][0]] = keys[0][1]


class _Notes(logging.Handler):
    def __init__(self, done: Attempt, most: int) -> None:
        super().__init__()
        self.done, self.most = done, most

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno <= self.most:
            self.done.notes.append(record.getMessage().removeprefix("warning: "))
            self.done.warned |= record.levelno >= logging.WARNING


@contextmanager
def _heard(done: Attempt, *, quietly: bool) -> Iterator[None]:
    """What sources say, from the last attempt; leniently made, their warnings are not to be heard:
    each was an error before.
    """
    done.notes.clear()
    handler = _Notes(done, logging.INFO if quietly else logging.CRITICAL)
    data = logging.getLogger("cvtrain.data")
    before, data.propagate = data.propagate, not quietly
    data.addHandler(handler)
    try:
        yield
    finally:
        data.removeHandler(handler)
        data.propagate = before
