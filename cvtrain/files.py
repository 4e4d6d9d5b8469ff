"""Writing files: whole or not at all, and what went wrong in a line that says what to type."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cvtrain.errors import MachineError


@contextmanager
def writing(path: Path, *, size: int = 0, key: str = "hydra.run.dir") -> Iterator[None]:
    """An OSError while writing to `path`, as MachineError; `size` bytes, if known.

    `key` is the one that leads to another place.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            needed = f"{size:,} bytes needed, " if size else ""
            again = "; then resume=auto" if key == "hydra.run.dir" else ""
            raise MachineError(
                f"{error.strerror}: {needed}{free_bytes(path):,} bytes free",
                str(path),
                f"free some, or type {key}=FOLDER on another disk{again}",
                name="NO-SPACE",
            ) from error
        raise MachineError(
            f"cannot write: {error.strerror or error}",
            str(path),
            f"type {key}=FOLDER for one that is writable",
            name="NOT-WRITABLE",
        ) from error


def free_bytes(path: Path) -> int:
    """On the disk that `path` is or would be on."""
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free


def sync_directory(folder: Path) -> None:
    """A rename is on the disk only when its directory is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole(path: Path, *, size: int = 0, key: str = "hydra.run.dir") -> Iterator[Path]:
    """A temporary file to write, which then takes the place of `path` at once."""
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path, size=size, key=key):
        try:
            yield temporary
            os.replace(temporary, path)
        finally:  # after a signal too
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """The old file or the new one, whatever happens; MachineError if neither can be."""
    with whole(path, size=len(text)) as temporary, temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
