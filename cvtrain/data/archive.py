"""Unpacks .tar, .tar.gz, .tgz and .zip: files and directories only, all of them or nothing.

An archive is not trusted: neither the names in it, nor the sizes that it promises.
"""

import errno
import gzip
import logging
import os
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from cvtrain.errors import DataError
from cvtrain.files import writing

CHUNK = 1 << 18  # bytes
MAX_HEADER = 1 << 16  # bytes of headers that one member of a tar may have
MAX_PADDING = 1 << 24  # bytes after the last one
MAX_DEPTH = 64  # directories in a name
BROKEN = (  # what the standard library raises on one
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error),
    *(EOFError, OSError, ValueError, LookupError, RuntimeError),
)

Stream = IO[bytes] | gzip.GzipFile

log = logging.getLogger(__name__)


class Member(NamedTuple):
    name: str
    mode: int  # permissions as told; never applied
    chunks: Iterator[bytes] | None  # None for a directory


def extract(
    archive: Path, folder: Path, *, max_bytes: int = 8 * 2**30, max_members: int = 2_000_000
) -> None:
    """Unpack into the new directory `folder`. Raises DataError, MachineError.

    If another process has made `folder` meanwhile, that one stays.
    """
    log.info("unpacking %s into %s", archive.name, folder)
    with writing(folder, key="data_dir"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent)
    with temporary, writing(folder, key="data_dir"):
        content = Path(temporary.name) / "content"  # its own, as the temporary one is private
        content.mkdir()
        left = max_bytes
        for number, member in enumerate(members(archive, content)):
            if number == max_members:
                raise refused(archive, member.name, f"is one more than {max_members} members")
            left -= unpack(member, archive, content, left)
        try:
            os.rename(content, folder)
        except OSError:
            if not folder.is_dir():
                raise


def members(archive: Path, content: Path) -> Iterator[Member]:
    with reading(archive), archive.open("rb") as file:
        if archive.name.endswith(".zip"):
            yield from zip_members(archive, file)
        elif archive.name.endswith(".tar"):
            yield from tar_members(archive, file, content)
        elif archive.name.endswith((".tar.gz", ".tgz")):
            with gzip.open(file) as stream:
                yield from tar_members(archive, stream, content)
        else:
            raise ValueError("not a .tar, .tar.gz, .tgz or .zip")


@contextmanager
def reading(archive: Path) -> Iterator[None]:
    """A broken archive, as the line it deserves."""
    try:
        yield
    except BROKEN as error:
        why = str(error) or type(error).__name__
        raise DataError(
            f"cannot be unpacked: {why}",
            str(archive.absolute()),
            "remove it and fetch it anew; nothing was unpacked",
            name="ARCHIVE",
        ) from error


def refused(archive: Path, name: str, why: str) -> DataError:
    return DataError(
        f"{name[:200]!r} {why}",
        str(archive.absolute()),
        "fetch the archive from where it is published; nothing was unpacked",
        name="ARCHIVE",
    )


def unpack(member: Member, archive: Path, content: Path, left: int) -> int:
    """Bytes written for one member, `left` at most; its name is held inside `content`."""
    parts = PurePosixPath(member.name).parts
    if member.name.startswith("/") or ".." in parts or len(parts) > MAX_DEPTH:
        raise refused(archive, member.name, "leads out of the folder or too deep")
    if member.chunks is not None and member.mode & (stat.S_ISUID | stat.S_ISGID):
        raise refused(archive, member.name, "would run as another user (setuid or setgid)")
    target, written = content.joinpath(*parts), 0
    try:
        if member.chunks is None:
            target.mkdir(parents=True, exist_ok=True)
            return 0
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            for chunk in member.chunks:
                written += len(chunk)
                if written > left:
                    raise refused(archive, member.name, "is more than the bytes allowed")
                file.write(chunk)
    except (FileExistsError, NotADirectoryError) as error:
        raise refused(archive, member.name, "is there twice") from error
    except (ValueError, OSError) as error:  # a zero byte, half a character; too long
        if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
            raise
        raise refused(archive, member.name, "is no name for a file") from error
    return written


def zip_members(archive: Path, file: IO[bytes]) -> Iterator[Member]:
    with zipfile.ZipFile(file) as packed:
        for info in packed.infolist():
            mode = info.external_attr >> 16  # as Unix has it, or zero
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise refused(archive, info.filename, "is neither a file nor a directory")
            # The others are decompressed without a bound on memory.
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise refused(archive, info.filename, "is neither stored nor deflated")
            chunks = None if info.is_dir() else zip_chunks(archive, packed, info)
            yield Member(info.filename, mode, chunks)


def zip_chunks(archive: Path, packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    with reading(archive), packed.open(info) as file:
        yield from read(file, info.file_size)  # which never gives more; the checksum is compared


def tar_members(archive: Path, stream: Stream, content: Path) -> Iterator[Member]:
    headers = Headers(stream)
    with tarfile.open(fileobj=headers, mode="r:", tarinfo=Header) as tar:  # type: ignore[call-overload]
        while (member := tar.next()) is not None:
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise refused(archive, member.name, "is neither a file nor a directory")
            try:
                if hasattr(tarfile, "data_filter"):  # a second opinion, from Python 3.11.4 on
                    tarfile.data_filter(member, str(content))
            except (tarfile.TarError, ValueError) as error:
                raise refused(archive, member.name, f"is refused by tarfile: {error}") from error
            chunks = None if member.isdir() else tar_chunks(archive, stream, member.size)
            yield Member(member.name, member.mode, chunks)
            tar.members.clear()  # else it keeps them all
            headers.left = MAX_HEADER
    if len(stream.read(MAX_PADDING)) == MAX_PADDING:  # read to the end, where gzip's checksum is
        raise tarfile.ReadError("goes on and on after its end")


def tar_chunks(archive: Path, stream: Stream, size: int) -> Iterator[bytes]:
    with reading(archive):
        yield from read(stream, size)


def read(file: Stream, size: int) -> Iterator[bytes]:
    """`size` bytes from where `file` is. Raises EOFError if there are fewer."""
    while size:
        chunk = file.read(min(CHUNK, size))
        if not chunk:
            raise EOFError(f"ends {size} bytes too early")
        size -= len(chunk)
        yield chunk


class Header(tarfile.TarInfo):
    """A broken or missing header is an error, where tarfile takes it for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Header":
        if len(buf) == tarfile.BLOCKSIZE and not any(buf):
            return super().frombuf(buf, encoding, errors)  # raises: this is the end
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


class Headers:
    """What tarfile reads headers from: no more of them for a member than can be meant."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.left = stream, MAX_HEADER
        self.tell, self.seek = stream.tell, stream.seek

    def read(self, size: int) -> bytes:
        self.left -= size
        if self.left < 0:
            raise tarfile.ReadError(f"a member has more than {MAX_HEADER} bytes of headers")
        return self.stream.read(size)
