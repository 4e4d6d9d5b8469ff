"""The page of a run: what became of it, what it was, how it went, what it gets wrong."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from cvtrain.errors import CheckpointError
from cvtrain.report.config import configuration, environment
from cvtrain.report.curves import curves
from cvtrain.report.page import Part, Section, Text, write_page
from cvtrain.report.record import Record
from cvtrain.report.result import classes, pictures, result

Read = TypeVar("Read")

SECTIONS: dict[str, Callable[[Record], Sequence[Part]]] = {
    "Result": result,
    "Curves": curves,
    "Classes": classes,
    "Pictures": pictures,
    "Configuration": configuration,
    "Environment": environment,
}


def write_report(run: Path, out: Path) -> None:
    """Write the page of the run directory `run` into the file `out`.

    Raises CheckpointError (NO-RUN) where there is no run, MachineError where it cannot be written.
    """
    record = Record.read(run)
    if not record.is_run:
        what = "holds no run" if run.exists() else "is not there"
        fix = "type the path of a run directory, or run=last"
        raise CheckpointError(what, str(run), fix, name="NO-RUN")
    model, data = record.choices
    sections = [Section(title, tried(make, record)) for title, make in SECTIONS.items()]
    write_page(out, title=f"{model} on {data}", subtitle=subtitle(record), sections=sections)


def tried(make: Callable[[Read], Sequence[Part]], read: Read) -> Sequence[Part]:
    """A file that somebody changed costs its section, not the page."""
    try:
        return make(read)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return [Text(f"cannot be shown: {type(error).__name__}: {error}", "warning")]


def subtitle(record: Record) -> str:
    """When, what and where."""
    start = record.starts[-1] if record.starts else {}
    words = [record.state, *([f"started {start['started']}"] if "started" in start else [])]
    recipe = record.summary.get("recipe")
    words += [f"recipe {recipe}"] if recipe not in (None, "none") else []
    words += [f"seed {record.config['seed']}"] if "seed" in record.config else []
    return " · ".join(words) + f"\n{record.path.resolve()}"
