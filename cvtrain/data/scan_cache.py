"""Headers that an earlier scan of a folder has read, so that no start opens a file twice.

What there is in a folder is never taken from here: every start lists it and asks for the status of
each file. A header is good for a file of the same name, size, mtime and ctime. The last is the
system's own, which no program can set: whatever is done to a file changes it, so that there is
nothing to turn off. Bad files are not kept, nor those that have just been written or are dated in
the future.

A folder's cache is in `$XDG_CACHE_HOME/cvtrain/scans/` or `~/.cache/cvtrain/scans/`, a line of JSON
before the bytes of the columns. It can be deleted at any time, and is when it was not used for
UNUSED days.
"""

import hashlib
import json
import logging
import os
import sys
import tempfile
import time
import zlib
from bisect import bisect_left
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import PIL

import cvtrain
from cvtrain.data.columns import Files, Headers, int64, taken
from cvtrain.data.images import Header

log = logging.getLogger(__name__)

# Who has read the headers, by which rules, and how the columns are written down.
KIND = f"cvtrain {cvtrain.__version__} scan 1, Pillow {PIL.__version__}, {sys.byteorder} endian"
FEWEST = 2500  # files that are worth a cache: more than are drawn on first use
SETTLED = 2 * 10**9  # ns since the last change: file systems tell times apart by 2 s at worst
UNUSED = 90  # days

TOO_NEW = -1  # the stamp, as no hash is, of a file that may change again without a trace


class Rows(NamedTuple):
    """Of N files, in the order of a scan."""

    files: Files
    headers: Headers
    stamps: Any  # int64 [N]

    def columns(self) -> list[Any]:
        """As they are written, of the types TYPES."""
        files, headers = self.files, self.headers
        sides = [headers.width, headers.height]
        return [self.stamps, headers.size, *sides, files.ends, headers.plain, files.buffer]


TYPES: tuple[Literal["q", "I", "b", "B"], ...] = ("q", "q", "I", "I", "I", "b", "B")


class ScanCache:
    """Asked for every file of a scan, told the stamp of every good one, saved at the end."""

    def __init__(self, root: Path) -> None:
        self._settled = time.time_ns() - SETTLED  # before anything is looked at
        self._file = place(root)
        self._stamps = int64()
        self._old = Rows(Files(root), Headers(), int64())
        self._next = self._hits = 0
        try:
            if self._file and self._file.is_file():
                self._old = read(self._file, root)
                os.utime(self._file)  # so it is in use
        except Exception as error:  # over broken bytes, what happens to come up
            log.debug("%s is not read: %r", self._file, error)

    def stamp(self, status: os.stat_result | None) -> int:
        """Another one after any change of a file."""
        if status is None:
            return TOO_NEW
        times = status.st_mtime_ns, status.st_ctime_ns
        # One number in place of three; hashes of numbers are the same in all processes.
        return TOO_NEW if max(times) > self._settled else hash((status.st_size, *times))

    def find(self, name: bytes, stamp: int) -> Header | None:
        """Of the file `name` below the folder, if it is as it was."""
        row = self._row(name)
        if row is None or stamp != self._old.stamps[row]:
            return None
        self._hits += 1
        return self._old.headers.at(row)

    def _row(self, name: bytes) -> int | None:
        """Mostly the next one, as files are asked for in the order in which they were found."""
        files = self._old.files
        if self._next == len(files) or files.name(self._next) != name:
            rows, text = self._folders.get(name.rpartition(b"/")[0]), os.fsdecode(name)
            if rows is None:
                return None
            before = bisect_left(rows, text, key=lambda row: os.fsdecode(files.name(row)))
            self._next = rows.start + before
            if before == len(rows) or files.name(self._next) != name:
                return None
        self._next += 1
        return self._next - 1

    @cached_property
    def _folders(self) -> dict[bytes, range]:
        """The rows of each folder: one behind the other, sorted by their names."""
        folders: dict[bytes, range] = {}
        for row in range(len(self._old.files)):
            folder = self._old.files.name(row).rpartition(b"/")[0]
            folders[folder] = range(folders.get(folder, range(row, row)).start, row + 1)
        return folders

    def note(self, stamp: int) -> None:
        """Of the file that was added to the scan."""
        self._stamps.append(stamp)

    def save(self, files: Files, headers: Headers) -> None:
        """What the scan has found, unless it is what was read. Does without where it cannot."""
        kept = np.flatnonzero(np.asarray(self._stamps) != TOO_NEW)
        same = len(kept) == self._hits == len(self._old.files)
        if self._file is None or len(kept) < FEWEST or same:
            return
        rows = Rows(files, headers, self._stamps)
        if len(kept) < len(files):
            rows = Rows(files.part(kept), headers.part(kept), taken(self._stamps, kept))
        try:
            write(self._file, rows)
            drop_unused(self._file.parent)
        except OSError as error:
            log.debug("%s is not written: %s", self._file, error)


def place(root: Path) -> Path | None:
    """The file for a folder; None where there is no home, or it would be among the images."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        base = named if named.is_absolute() else Path.home() / ".cache"
        folder, root = (base / "cvtrain" / "scans").resolve(), root.resolve()
    except (OSError, RuntimeError):
        return None
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:32]
    return None if folder.is_relative_to(root) else folder / digest


def read(file: Path, root: Path) -> Rows:
    """Raises whatever a damaged file leads to."""
    with file.open("rb") as opened:
        said, body = json.loads(opened.readline()), opened.read()
    count, length = said["files"], said["bytes"]
    sizes = [*[8 * count] * 2, *[4 * count] * 2, 4 * (count + 1), count, length]
    whole = min(sizes) >= 0 and sum(sizes) == len(body) and said["crc32"] == zlib.crc32(body)
    if said["kind"] != KIND or not whole:
        raise ValueError("of another kind, or damaged")
    ends = np.cumsum(sizes).tolist()
    columns = [
        memoryview(body)[end - size : end].cast(kind)
        for end, size, kind in zip(ends, sizes, TYPES, strict=True)
    ]
    rows = Rows(Files(root), Headers(), columns[0])
    rows.headers.size, rows.headers.width, rows.headers.height = columns[1:4]
    rows.files.ends, rows.headers.plain, rows.files.buffer = columns[4:]
    return rows


def write(file: Path, rows: Rows) -> None:
    """At once in the place of the old one, however many processes do. Raises OSError."""
    crc32, columns = 0, rows.columns()
    for column in columns:
        crc32 = zlib.crc32(column, crc32)
    said = {"kind": KIND, "files": len(rows.files), "bytes": len(columns[-1]), "crc32": crc32}
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent)
    try:
        with open(handle, "wb") as out:
            out.write(json.dumps(said).encode() + b"\n")
            for column in columns:
                out.write(column)
        os.replace(temporary, file)
    finally:
        Path(temporary).unlink(missing_ok=True)


def drop_unused(folder: Path) -> None:
    """Caches of folders that nobody reads any more, and what a killed process has left."""
    for file in folder.iterdir():
        if file.stat().st_mtime < time.time() - UNUSED * 86_400:
            file.unlink(missing_ok=True)
