"""What `source=` names: a picture, a video, a folder or a pattern of them, a camera, a stream."""

import glob
import os
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from PIL import Image

from cvtrain.data.images import shown
from cvtrain.data.scan import SUFFIXES
from cvtrain.errors import ConfigError, DataError

VIDEOS = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"}
    | {".wmv", ".flv", ".ogv", ".3gp", ".h264", ".264", ".h265", ".mjpeg", ".mjpg"}
)
STREAMS = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt", "http", "https")
FILES = ("http", "https")  # which wait for who reads them; the others go on


class Kind(StrEnum):
    picture = "picture"
    video = "video"
    live = "live"  # what is not read in time is lost


class Item(NamedTuple):
    """Something to open."""

    name: str  # how it is said: its path, or its address without a password
    address: Path | str
    kind: Kind
    label: str  # what its results are named by


def find(source: str, out: Path) -> list[Item]:
    """In the order of their names. What lies below `out` is left out of a folder.

    A file that exists is that file, whatever stands in its name. Raises ConfigError, DataError.
    """
    path = Path(source)
    if not source:
        fix = "type source= and a picture, a folder, a pattern as 'photos/*.jpg', a video, or 0"
        raise ConfigError("nothing to look at is named", "source=", fix)
    if source.isdigit() and not path.exists():
        return [Item(f"camera {source}", source, Kind.live, f"camera_{source}")]
    if "://" in source and not path.exists():
        return [_stream(source)]
    if path.is_dir():
        return _files(list(_below(path, out)), path, out)
    if path.exists():
        return _files([path], path, out)
    if not glob.has_magic(source):
        fix = "type source= and the path of a picture, a folder or a video"
        raise DataError("there is no such file", shown(source), fix, name="NO-DATA")
    found = [Path(name) for name in sorted(glob.glob(source, recursive=True))]
    return _files([file for file in found if _is_media(file)], path, out)


def _stream(source: str) -> Item:
    parts = urlsplit(source)
    if parts.scheme not in STREAMS:
        what = f"{parts.scheme}:// is no stream that is read"
        raise ConfigError(what, "source", f"type one of {', '.join(STREAMS)}, or a path")
    name = source.replace(f"{parts.netloc.rpartition('@')[0]}@", "", 1)  # who logs in, and how
    kind = Kind.video if parts.scheme in FILES else Kind.live
    return Item(name, source, kind, Path(parts.path).stem or parts.hostname or "stream")


def _below(folder: Path, out: Path) -> Iterator[Path]:
    """Pictures and videos of a folder and those below it, but for hidden ones and `out`."""

    def refuse(error: OSError) -> None:
        what, fix = f"cannot be read: {error.strerror}", "look at its permissions"
        raise DataError(what, shown(error.filename), fix, name="NO-DATA") from error

    for here, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(
            name for name in folders if name[0] != "." and not _same(Path(here, name), out)
        )
        paths = (Path(here, name) for name in sorted(files) if name[0] != ".")
        yield from filter(_is_media, paths)


def _files(files: list[Path], where: Path, out: Path) -> list[Item]:
    """Named by their places below `where`, if that is a folder."""
    if not files:
        fix = "type source= for another place"
        raise DataError("no pictures or videos are there", shown(where), fix, name="NO-DATA")
    if any(_same(folder, out) for folder in {file.parent for file in files}):
        what = "results would be written over what is looked at"
        raise ConfigError(what, shown(f"out={out}"), "type out=FOLDER for another one")
    root = where if where.is_dir() else None
    labels = [str(file.relative_to(root) if root else file.name) for file in files]
    pairs = zip(files, labels, strict=True)
    return [Item(str(f), f, _kind(f), str(Path(label).with_suffix(""))) for f, label in pairs]


def _is_media(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES | VIDEOS and not file.is_dir()


def _kind(file: Path) -> Kind:
    """By its suffix, else by its content."""
    suffix = file.suffix.lower()
    if suffix in SUFFIXES or suffix in VIDEOS:
        return Kind.picture if suffix in SUFFIXES else Kind.video
    try:
        with Image.open(file):
            return Kind.picture
    except Exception:  # of whatever Pillow's readers raise
        return Kind.video


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.exists() and one.samefile(other)


class Names:
    """File names for results: safe everywhere, no two alike, also where case counts for nothing."""

    def __init__(self) -> None:
        self.given: dict[str, int] = {}  # and how often it was asked for

    def __call__(self, label: str, suffix: str) -> str:
        stem = re.sub(r"[^\w.-]+", "_", label).strip("._") or "picture"
        stem = stem.encode()[:100].decode(errors="ignore")
        name = f"{stem}{suffix}"
        while (key := name.casefold()) in self.given:
            self.given[key] += 1
            name = f"{stem}-{self.given[key]}{suffix}"
        self.given[key] = 1
        return name
