"""`cvtrain report`: the page of a run, from what lies in its directory; no data, no weights."""

from pathlib import Path

from cvtrain.compose import Composed
from cvtrain.errors import ConfigError
from cvtrain.report.run import write_report
from cvtrain.trained.runs import find

PAGE = "report.html"


def report(composed: Composed, overrides: list[str], *, run: str, out: str) -> None:
    """Write the page into the run, or into `out`, a file or a folder."""
    if not run:
        raise ConfigError("which run?", "run=", "type run=DIRECTORY, or run=last")
    if overrides:
        fix = "type run= and out= alone"
        raise ConfigError("a report shows a run as it was", " ".join(overrides), fix)
    path = find(run)
    if path.is_file() and path.parent.name == "checkpoints":
        path = path.parents[1]
    file = Path(out) if out else path / PAGE
    if file.is_dir():
        file /= PAGE
    write_report(path, file)
    print(file)
