"""The run directory: taken by one process, written atomically, never left half-done."""

import fcntl
import json
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from cvtrain.errors import BusyError, ConfigError, MachineError
from cvtrain.files import write_atomic, writing

RESERVE = 8192  # bytes held back, so that a run can tell its outcome on a disk that is full


def read_status(run_dir: Path) -> dict[str, Any]:
    """What `status.json` says; nothing if there is none."""
    try:
        return json.loads((run_dir / "status.json").read_text())
    except (OSError, ValueError):
        return {}


class RunDir:
    """A directory held by this process from `take` to `release` (or its death)."""

    def __init__(self, path: Path, made: list[Path]) -> None:
        self.path = path
        self._made = made  # directories that were not there before
        self._reserve: IO[bytes] | None = None
        self._lock = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            holder = read_status(path)
            raise BusyError(
                f"held by process {holder.get('pid')} on {holder.get('host')} "
                f"since {holder.get('started')}",
                str(path),
                "wait for it, or type another hydra.run.dir",
            ) from error
        self._status = read_status(path)  # a resumed run's goes on
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        self._status |= {"pid": os.getpid(), "host": socket.gethostname(), "started": now}

    @classmethod
    def take(cls, path: Path, *, resume: bool, exact: bool) -> "RunDir":
        """Make or re-enter the directory. Raises ConfigError, BusyError, MachineError.

        A directory that already holds a run is entered only to resume it; a default name (not
        `exact`) then gets a suffix, one that was typed is refused.
        """
        number, wanted = 1, path
        while True:
            made = [folder for folder in (path, *path.parents) if not folder.exists()]
            try:
                with writing(path):
                    path.mkdir(parents=True)
            except MachineError as error:
                if not isinstance(error.__cause__, FileExistsError) or not path.is_dir():
                    raise
                made = []
            try:
                run = cls(path, made)  # locked, then looked into
                if made or resume or not any(path.iterdir()):
                    run.hold_back()
                    return run
                run.release()
            except BusyError:
                if exact or resume:
                    raise
            if exact:
                raise ConfigError(
                    "holds another run already",
                    str(path),
                    "type resume=auto to go on with it, or another hydra.run.dir",
                )
            number += 1
            path = wanted.with_name(f"{wanted.name}_{number}")

    def hold_back(self) -> None:
        """Take RESERVE bytes of the disk, in a file without a name. Raises MachineError."""
        try:
            with writing(self.path, size=RESERVE):
                self._reserve = tempfile.TemporaryFile(dir=self.path)  # noqa: SIM115 (see release)
                os.write(self._reserve.fileno(), bytes(RESERVE))
                os.fsync(self._reserve.fileno())
        except MachineError:
            self.discard()
            self.release()
            raise

    def status(self, **changes: Any) -> None:
        """Replace `status.json`: the outcome, where no exit code reaches."""
        self._status |= changes
        path, text = self.path / "status.json", json.dumps(self._status, indent=1) + "\n"
        try:
            write_atomic(path, text)
        except MachineError as error:
            if error.name != "NO-SPACE" or self._reserve is None:
                raise
            self._reserve.truncate(0)  # closing would not do: workers have it open too
            write_atomic(path, text)

    def discard(self) -> None:
        """Leave nothing of a run that ended before its first step in a directory it made."""
        for folder in self._made:
            if folder == self.path:
                shutil.rmtree(folder, ignore_errors=True)
            elif not any(folder.iterdir()):
                folder.rmdir()

    def release(self) -> None:
        if self._reserve:
            self._reserve.close()
        os.close(self._lock)
