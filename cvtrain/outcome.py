"""How the processes that `trainer.devices` starts end: each leaves its error in a folder of theirs.

The first one's is everybody's: it is what the run's status says and what the user reads.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from cvtrain import errors
from cvtrain.errors import CvtrainError, Stopped

FOLDER = "CVTRAIN_RANKS"  # in the environment of such a process
PATIENCE = 1.0  # seconds in which one that ended in an error has said so


def write_error(folder: Path, rank: int, error: CvtrainError) -> None:
    told = {"kind": type(error).__name__, "code": error.code, "time": time.time()}
    parts = {"what": error.what, "where": error.where, "fix": error.fix, "name": error.name}
    temporary = folder / f"{rank}.tmp"
    temporary.write_text(json.dumps(told | parts))
    temporary.rename(folder / f"rank_{rank}.json")


def read_errors(folder: Path) -> dict[int, CvtrainError]:
    """By rank, the first first; of those that left word."""
    told = {int(file.stem[5:]): json.loads(file.read_text()) for file in folder.glob("rank_*.json")}
    return {rank: made_of(told[rank]) for rank in sorted(told, key=lambda rank: told[rank]["time"])}


def made_of(told: dict[str, Any]) -> CvtrainError:
    if told["kind"] == "Stopped":
        return Stopped(told["what"], told["where"], told["fix"], signum=told["code"] - 128)
    kind = getattr(errors, told["kind"])
    return kind(told["what"], told["where"], told["fix"], name=told["name"])


def causes(said: dict[int, CvtrainError]) -> list[CvtrainError]:
    """Those that are not about another process's end."""
    return [error for error in said.values() if error.name not in ("RANK-DIED", "STOPPED")]


def of_another() -> CvtrainError | None:
    """Why another process ended, if it has left word; it may be about to."""
    folder, deadline = os.environ.get(FOLDER), time.monotonic() + PATIENCE
    while folder and time.monotonic() < deadline:
        if found := causes(read_errors(Path(folder))):
            return found[0]
        time.sleep(0.02)
    return None
