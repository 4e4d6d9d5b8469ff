"""What is in an image folder `root/<class>/...`, looked at once before anything is built.

The images that a table lists are looked at in the same way.

Nothing below `root` is ever changed. What cannot be trained on is found here, with its path and
its reason, not in the middle of an epoch.
"""

import hashlib
import logging
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvtrain.data.columns import Files, Headers, int32, taken
from cvtrain.data.images import BadImage, probe, shown
from cvtrain.data.scan_cache import ScanCache
from cvtrain.errors import DataError

log = logging.getLogger(__name__)

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
MOST_BAD = 0.01  # with on_bad=skip: a larger share is a broken data set, not a few broken files
LISTED = 20  # bad files that an error names


@dataclass
class Scan:
    """The images of one split, in the order of their classes and names."""

    root: Path
    classes: list[str]
    labels: Any = field(default_factory=int32)  # the class of each; of a table a list of more
    headers: Headers = field(default_factory=Headers)
    bad: list[tuple[Path, BadImage]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)  # files that are no images, by suffix
    files: Files = field(init=False)

    def __post_init__(self) -> None:
        self.files = Files(self.root)

    def part(self, chosen: NDArray[np.int64]) -> "Scan":
        """Some of the images, by their numbers."""
        many = isinstance(self.labels, list)
        labels = [self.labels[i] for i in chosen] if many else taken(self.labels, chosen)
        headers = self.headers.part(chosen)
        part = Scan(self.root, self.classes, labels, headers, self.bad, self.ignored)
        part.files = self.files.part(chosen)
        return part

    def fingerprint(self) -> str:
        """Of every file's place and size, in bytes and pixels."""
        digest = hashlib.sha256()
        columns = zip(self.files.names(), self.labels, self.headers, strict=True)
        for name, label, header in columns:
            line = f"{label}/{name}/{header.size}/{header.width}x{header.height}\n"
            digest.update(line.encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]


def class_folders(root: Path) -> list[str]:
    """The names of the class folders, sorted; hidden ones are none. Raises DataError (CLASSES)."""
    try:
        found = [f for f in root.iterdir() if f.is_dir() and f.name[0] != "."]
        folders = sorted(f.name for f in found if not _leads_back(f, root))
    except OSError as error:
        raise DataError(
            f"no folder of images: {error.strerror}",
            shown(root.absolute()),
            "type data.root=FOLDER, one that holds a folder for each class",
            name="NO-DATA",
        ) from error
    if not folders:
        raise _classes(
            f"no class folders in {shown(root.absolute())}",
            "put each class's images into a folder of its own: root/cats/1.jpg, root/dogs/2.jpg",
        )
    if names := alike(folders):
        raise _classes(
            f"classes that differ by case, space or Unicode form alone: {names}",
            "rename or merge the folders",
            root,
        )
    return folders


def alike(names: Iterable[str]) -> str:
    """The first of them that a reader takes for the same, shown so that they are told apart."""
    forms = defaultdict(list)
    for name in names:
        forms[unicodedata.normalize("NFC", name).strip().casefold()].append(name)
    twice = [same for same in forms.values() if len(same) > 1]
    return " and ".join(map(ascii, twice[0])) if twice else ""


def scan(root: Path, classes: list[str], *, max_pixels: int, on_bad: str) -> Scan:
    """Look at every file of the classes. Raises DataError: BAD-IMAGE, IMAGE-TOO-LARGE."""
    found, cache = Scan(root, classes), ScanCache(root)
    for label, folder in enumerate(classes):
        for name, status in _files(root, folder, found.ignored):
            encoded, stamp = os.fsencode(name), cache.stamp(status)
            header = cache.find(encoded, stamp)
            if header is not None and header.width * header.height <= max_pixels:
                found.files.append_below(encoded)
                found.labels.append(label)
                found.headers.append(header)
            elif not look(found, root / name, label, max_pixels=max_pixels):
                continue
            cache.note(stamp)
    cache.save(found.files, found.headers)  # before bad ones are refused: the others stay good
    if found.ignored:
        kinds = ", ".join(f"{count} {shown(s)}" for s, count in found.ignored.most_common(LISTED))
        log.info("%s: ignored what is no image: %s", shown(root), kinds)
    left = {classes[label] for label in set(found.labels)}
    judge(found, on_bad, emptied={f.relative_to(root).parts[0] for f, _ in found.bad} - left)
    return found


def look(found: Scan, file: Path, label: Any, *, max_pixels: int) -> bool:
    """Add a file to what was found, or to the bad ones; whether it is a good one."""
    try:
        header = probe(file, max_pixels=max_pixels)
    except BadImage as reason:
        found.bad.append((file, reason))
        return False
    found.files.append(file)
    found.labels.append(label)
    found.headers.append(header)
    return True


def _files(
    root: Path, folder: str, ignored: Counter[str]
) -> Iterator[tuple[str, os.stat_result | None]]:
    """Image files of a class: paths below `root`, each real file once, links followed but no loop.

    With its status, or None where there is none, as of a link to nothing.
    """
    seen: set[int] = set()
    waiting = [folder] if (root / folder).exists() else []
    while waiting:
        here = waiting.pop()
        try:
            if not _first(_status(f"{root}/{here}"), seen):
                continue
            names, folders = _listed(root, here)
            for name in names:
                suffix = os.path.splitext(name)[1].lower()
                if name.startswith("."):
                    ignored["hidden"] += 1
                elif name in folders:
                    path = root / here / name
                    waiting += [] if _leads_back(path, root) else [f"{here}/{name}"]
                elif suffix not in SUFFIXES:
                    ignored[Path(name).suffix.lower() or "without suffix"] += 1
                elif _first(status := _status(f"{root}/{here}/{name}"), seen):
                    yield f"{here}/{name}", status
        except OSError as error:
            raise _unreadable(root / here, error) from error


def _listed(root: Path, here: str) -> tuple[list[str], set[str]]:
    """What is in a folder, sorted; and which of it are folders, or links to such."""
    names, folders = [], set()
    with os.scandir(root / here) as entries:
        for entry in entries:
            names.append(entry.name)
            if entry.name.startswith("."):
                continue
            if (root / here / entry.name).is_dir() if entry.is_symlink() else entry.is_dir():
                folders.add(entry.name)
    return sorted(names), folders


def _leads_back(folder: Path, root: Path) -> bool:
    """Whether it is a link to what is below or above `root`, whose images would count twice."""
    if not folder.is_symlink():
        return False
    there, here = folder.resolve(), root.resolve()
    return there.is_relative_to(here) or here.is_relative_to(there)


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:  # a link to nothing: the scan says so
        return None


def _first(status: os.stat_result | None, seen: set[int]) -> bool:
    """Whether it is not `seen` by another name; it is from now on."""
    if status is None:
        return True
    real, before = status.st_dev << 64 | status.st_ino, len(seen)
    seen.add(real)  # a number takes less than a pair
    return len(seen) > before


def judge(found: Scan, on_bad: str, *, emptied: set[str]) -> None:
    """Refuse the bad ones, or leave them out. Raises DataError: BAD-IMAGE, IMAGE-TOO-LARGE.

    `emptied` are the classes of which no image would be left.
    """
    if not found.bad:
        return
    total = len(found.files) + len(found.bad)
    count = f"{len(found.bad)} of {total} images are bad"
    if on_bad == "skip" and len(found.bad) <= max(1, MOST_BAD * total) and not emptied:
        log.warning("warning: %s and left out; bad_images.txt names them", count)
        return
    fix = "mend or remove them, or type data.on_bad=skip to leave them out"
    if on_bad == "skip":
        fix = (
            f"class {shown(sorted(emptied)[0])} would be empty"
            if emptied
            else f"more than {MOST_BAD:.0%} is too much to leave out"
        ) + ": mend the data set"
    first = ", ".join(f"{shown(file)} ({reason})" for file, reason in found.bad[:LISTED])
    more = f" and {len(found.bad) - LISTED} more" if len(found.bad) > LISTED else ""
    too_large = all(reason.name == "IMAGE-TOO-LARGE" for _, reason in found.bad)
    name = "IMAGE-TOO-LARGE" if too_large else "BAD-IMAGE"
    raise DataError(f"{count}: {first}{more}", shown(found.root), fix, name=name)


def _unreadable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot be read: {error.strerror}",
        shown(folder),
        "look at its permissions",
        name="BAD-IMAGE",
    )


def _classes(what: str, fix: str, root: Path | None = None) -> DataError:
    return DataError(what, shown(root) if root else "", fix, name="CLASSES")


def check_classes(found: Scan, *, allow_one_class: bool, allow_empty: bool) -> None:
    """Refuse a training split that cannot teach what it should. Raises DataError (CLASSES)."""
    if len(found.classes) == 1 and not allow_one_class:
        raise _classes(
            f"only one class, {shown(found.classes[0])}: any network is right at once",
            "add a second folder, or type data.allow_one_class=true",
            found.root,
        )
    filled = set(found.labels)
    empty = [name for i, name in enumerate(found.classes) if i not in filled]
    if empty and not allow_empty:
        names = ", ".join(shown(name) for name in empty[:LISTED])
        raise _classes(
            f"{len(empty)} of {len(found.classes)} class folders hold no image: {names}",
            "fill or remove them, or type data.allow_empty=true to keep them as classes",
            found.root,
        )


def check_same_classes(train: Path, val: Path, classes: list[str], *, allow: bool) -> None:
    """Splits are matched by name. Raises DataError (CLASSES) for a name that only one has."""
    there = class_folders(val)
    only_train = [name for name in classes if name not in set(there)]
    only_val = [name for name in there if name not in set(classes)]
    if not only_train and not only_val:
        return
    parts = [
        f"only in {folder.name}: {', '.join(shown(name) for name in names[:LISTED])}"
        for folder, names in ((train, only_train), (val, only_val))
        if names
    ]
    text = "; ".join(parts)
    if allow:
        log.warning("warning: classes differ, %s; what only %s has is left out", text, val.name)
        return
    raise _classes(
        f"the classes of {train.name} and {val.name} differ, {text}",
        "rename the folders, or type data.allow_other_classes=true",
        train.parent,
    )
