"""The run directory: taken by one process, written atomically, never left half-done."""

import errno
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cvtrain.errors import BusyError, ConfigError, MachineError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError while writing below `path`, as the line it deserves."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise MachineError(
                f"no space left: {error.strerror}",
                str(path),
                "free some, or type hydra.run.dir=FOLDER on another disk; then resume=auto",
                name="NO-SPACE",
            ) from error
        raise MachineError(
            f"cannot write: {error.strerror or error}",
            str(path),
            "type hydra.run.dir=FOLDER for one that is writable",
            name="NOT-WRITABLE",
        ) from error


def sync_directory(folder: Path) -> None:
    """A rename is on the disk only when its directory is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, text: str) -> None:
    """The old file or the new one, whatever happens; MachineError if neither can be."""
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            with temporary.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:  # a signal's too
            temporary.unlink(missing_ok=True)
            raise


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

    def status(self, **changes: Any) -> None:
        """Replace `status.json`: the outcome, where no exit code reaches."""
        self._status |= changes
        write_atomic(self.path / "status.json", json.dumps(self._status, indent=1) + "\n")

    def discard(self) -> None:
        """Leave nothing of a run that ended before its first step in a directory it made."""
        for folder in self._made:
            if folder == self.path:
                shutil.rmtree(folder, ignore_errors=True)
            elif not any(folder.iterdir()):
                folder.rmdir()

    def release(self) -> None:
        os.close(self._lock)
