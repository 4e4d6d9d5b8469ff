"""What is known of a sweep, in its folder: `sweep.json`, and of each job `jobs/NAME.json`.

A job's file is its own process's alone, and replaced whole: any number of them can be written at
once, and whoever is killed leaves the last thing that was true.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cvtrain.errors import BusyError, ConfigError
from cvtrain.files import write_atomic, writing

STOP = "stop"  # a file that tells the jobs which have not begun not to


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder of a sweep, made and held by this process. Raises BusyError, MachineError.

    One that was made in vain, for Hydra refused what was typed, goes again.
    """
    new = not folder.exists()
    with writing(folder, key="hydra.sweep.dir"):
        (folder / "jobs").mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            what = "another process runs this sweep"
            raise BusyError(what, str(folder), "wait for it, or type sweep=NAME") from error
        (folder / STOP).unlink(missing_ok=True)
        yield
    except ConfigError:
        if new and not any((folder / "jobs").iterdir()):
            shutil.rmtree(folder)
        raise
    finally:
        os.close(lock)


def read(file: Path) -> dict[str, Any]:
    """Nothing where it is missing or was cut off."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def write(file: Path, content: dict[str, Any]) -> None:
    write_atomic(file, json.dumps(content, indent=1) + "\n")


def write_sweep(folder: Path, *, command: str, fixed: list[str]) -> None:
    """What was typed; the time is that of the first."""
    file, now = folder / "sweep.json", time.strftime("%Y-%m-%d %H:%M:%S")
    started = read(file).get("started", now)
    write(file, {"name": folder.name, "command": command, "fixed": fixed, "started": started})


def write_job(folder: Path, name: str, **changes: Any) -> None:
    file = folder / "jobs" / f"{name}.json"
    write(file, {"run": name, "error": None, "exit_code": None} | read(file) | changes)


def finished(run_dir: Path) -> tuple[bool, float | None]:
    """Whether a run came to its end, and its figure."""
    if read(run_dir / "status.json").get("state") != "done":
        return False, None
    summary = read(run_dir / "summary.json")
    return bool(summary), summary.get(f"val/{summary.get('primary')}")


def failures(folder: Path, since: float) -> list[dict[str, Any]]:
    """The jobs that failed since then (seconds since the epoch), by name."""
    jobs = [read(file) for file in sorted((folder / "jobs").glob("*.json"))]
    return [job for job in jobs if job.get("state") == "failed" and job.get("ended", 0) >= since]
