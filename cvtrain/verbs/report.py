"""`cvtrain report`: the page of a run or of a sweep, from what lies in its directory; no data, no
weights.
"""

from pathlib import Path

from cvtrain.compose import Composed
from cvtrain.errors import ConfigError
from cvtrain.trained.runs import find

PAGE = "report.html"


def report(composed: Composed, overrides: list[str], *, run: str, sweep: str, out: str) -> None:
    """Write the page into the run, or into `out`, a file or a folder; of a sweep its leaderboard.

    Raises ConfigError, CheckpointError (NO-RUN, NO-SWEEP), MachineError.
    """
    if not run and not sweep:
        raise ConfigError("which run?", "run=", "type run=DIRECTORY, run=last, or sweep=NAME")
    if run and sweep:
        raise ConfigError("a run or a sweep", f"run={run} sweep={sweep}", "type one of the two")
    if overrides:
        fix = "type run= and out= alone" if run else "type sweep= and out= alone"
        raise ConfigError("a report shows a run as it was", " ".join(overrides), fix)
    if sweep:
        print("\n".join(leaderboard(sweep, out)))
        return
    from cvtrain.report.run import write_report

    path = find(run)
    if path.is_file() and path.parent.name == "checkpoints":
        path = path.parents[1]
    file = Path(out) if out else path / PAGE
    if file.is_dir():
        file /= PAGE
    write_report(path, file)
    print(file)


def leaderboard(sweep: str, out: str) -> list[str]:
    """The lines to print."""
    from cvtrain.report.sweep import find_sweep, write_leaderboard

    if out and Path(out).is_file():
        raise ConfigError("a leaderboard is several files", f"out={out}", "type out=FOLDER")
    return write_leaderboard(find_sweep(sweep), Path(out) if out else None)
