"""A file from the net: whole, of the pinned sha256, downloaded once for all processes; or an error.

Bytes go to `NAME.part`, which a later start goes on from; `NAME.lock` is held meanwhile.
"""

import fcntl
import hashlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

from cvtrain.errors import CvtrainError, DataError, MachineError
from cvtrain.files import sync_directory, writing

TIMEOUT = 30.0  # seconds, to connect and for each read
WAITS = (0.5, 1.0, 2.0)  # seconds before each new try, when a connection ended early
CHUNK = 1 << 18  # bytes

log = logging.getLogger(__name__)


def fetch(url: str, path: Path, *, sha256: str, key: str = "data_dir") -> None:
    """Download `url` to `path`, unless it is there. Raises DataError, MachineError.

    `sha256` is all of it or its first digits; `key` is the setting that leads to another folder. A
    file that is there is not read again: see `verify`.
    """
    if path.exists():
        return
    with writing(path.parent, key=key):
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            if path.exists():  # by the process that was waited for
                return
            part = part_of(path)
            download(url, path, key=key)
            got = sha256_of(part)
            if not got.startswith(sha256):
                part.unlink()
                raise DataError(
                    f"{url} has sha256 {got[:12]}, not the expected {sha256[:12]}",
                    "what came is removed",
                    f"start again, or put the right file at {path.absolute()}",
                    name="DOWNLOAD",
                )
            os.replace(part, path)
            sync_directory(path.parent)


def fetch_all(base: str, files: dict[str, str], folder: Path) -> None:
    """Fetch each name of `files` (to its sha256) that `folder` lacks from `base`/name.

    Raises DataError, MachineError; if one cannot be had, the error names all that are missing.
    """
    for name, sha256 in files.items():
        try:
            fetch(f"{base.rstrip('/')}/{name}", folder / name, sha256=sha256)
        except CvtrainError as error:
            if error.name != "DOWNLOAD":
                raise
            missing = ", ".join(name for name in files if not (folder / name).exists())
            raise type(error)(
                error.what,
                error.where,
                f"start again, or put {missing} into {folder.absolute()}, "
                "or type data_dir=FOLDER for one that holds the data",
                name=error.name,
            ) from error


def verify(path: Path, sha256: str) -> None:
    """Read a file that is there again. Raises DataError if it is not the pinned one.

    `sha256` is all of it or its first digits.
    """
    try:
        got = sha256_of(path)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", str(path), name="DOWNLOAD") from error
    if not got.startswith(sha256):
        raise DataError(
            f"has sha256 {got[:12]}, not the expected {sha256[:12]}",
            str(path.absolute()),
            "remove it, and it is downloaded anew",
            name="DOWNLOAD",
        )


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock of one that dies is free. No file stays behind."""
    lock = path.with_name(f"{path.name}.lock")
    while True:
        with lock.open("a+") as file:
            wait_for(file, path.name)
            try:
                ours = os.path.samestat(os.fstat(file.fileno()), lock.stat())
            except FileNotFoundError:
                ours = False
            if not ours:  # removed by its holder while we waited: the next one counts
                continue
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)  # still locked, so no other can hold this name
            return


def wait_for(file: IO[str], name: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        log.info("waiting for process %s that downloads %s", file.read() or "(starting)", name)
        fcntl.flock(file, fcntl.LOCK_EX)


def download(url: str, path: Path, *, key: str = "data_dir") -> None:
    """All of `url` into the part of `path`; goes on a few times where a connection ended early."""
    for wait in (*WAITS, 0.0):
        try:
            return transfer(url, part_of(path), key=key)
        except (HTTPException, OSError) as error:
            # No address, refused, no certificate, not found: the same again in a second.
            final = isinstance(error, URLError | InvalidURL) and getattr(error, "code", 0) < 500
            if final or not wait:
                raise failed(url, path, error) from error
            log.info("%s: %s; trying again in %g s", path.name, reason(error), wait)
            time.sleep(wait)


def transfer(url: str, part: Path, *, key: str) -> None:
    """One request: what is missing of `part` is appended, or all of it where that cannot be."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "cvtrain"} | ({"Range": f"bytes={have}-"} if have else {})
    if urlsplit(url).scheme not in ("http", "https"):
        raise URLError("not an http(s) address")
    try:
        # An opener per request takes the proxies that the environment names now.
        opener = build_opener(NeverDowngrade)
        with opener.open(Request(url, headers=headers), timeout=TIMEOUT) as response:
            span = response.headers.get("Content-Range", "")
            if response.status == 206 and not span.startswith(f"bytes {have}-"):
                raise HTTPError(url, 416, f"sent {span or 'no range'}", response.headers, None)
            receive(response, part, have if response.status == 206 else 0, key=key)
    except HTTPError as error:
        if error.code != 416 or not have:
            raise
        part.unlink()  # longer than the file, or of another one
        transfer(url, part, key=key)


def receive(response: HTTPResponse, part: Path, have: int, *, key: str) -> None:
    """Append the body after the first `have` bytes of `part`, and have it on the disk."""
    total = None if response.length is None else have + response.length
    terminal, name = sys.stderr.isatty(), part.name.removesuffix(".part")
    if not terminal:
        size = "size unknown" if total is None else tqdm.format_sizeof(total, "B")
        rest = f", from {tqdm.format_sizeof(have, 'B')} on" if have else ""
        log.info("downloading %s (%s%s) to %s", name, size, rest, part.parent)
    with (
        tqdm(
            total=total, initial=have, desc=name, unit="B", unit_scale=True, disable=not terminal
        ) as bar,
        writing(part, key=key),
        part.open("ab" if have else "wb") as file,
    ):
        for chunk in chunks(response):
            file.write(chunk)
            bar.update(len(chunk))
            have += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    if total is not None and have < total:
        raise EndedEarly(f"the connection ended after {have} of {total} bytes")


class EndedEarly(HTTPException):
    """The connection ended before the file did."""


def chunks(response: HTTPResponse) -> Iterator[bytes]:
    """The body; what fails here is the network, what fails around it is the disk."""
    try:
        while chunk := response.read1(CHUNK):
            yield chunk
    except (HTTPException, OSError) as error:
        raise EndedEarly(f"the connection ended early ({reason(error)})") from error


class NeverDowngrade(HTTPRedirectHandler):
    """Follows a redirect to https always, to http only from http, to nothing else."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme not in {"https", req.type}:
            raise URLError(f"it redirects from {req.type} to {newurl}, which is refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"HTTP {error.code} {error.msg}"
    if isinstance(error, URLError):
        return str(error.reason)
    return str(error) or type(error).__name__


def failed(url: str, path: Path, error: Exception) -> MachineError:
    part = part_of(path)
    kept = part.exists() and part.stat().st_size > 0
    return MachineError(
        f"cannot download {url}: {reason(error)}",
        f"{part.name} is kept, the next start goes on from it" if kept else "",
        f"start again, or put the file at {path.absolute()}",
        name="DOWNLOAD",
    )
