"""A second scan opens no file that is as it was, and finds what one without a cache would."""

import json
import multiprocessing
import os
import pickle
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvtrain.data import scan as scans
from cvtrain.data import scan_cache
from cvtrain.data.columns import Files, Headers, int64
from cvtrain.data.images import Header
from cvtrain.data.scan import Scan, class_folders, scan
from cvtrain.errors import DataError

NAMES = (
    *("a/1.ppm", "a/2.ppm", "a/3.ppm", "a/deep/1.ppm", "a/deeper/1.ppm", "b/1.ppm", "b/2.ppm"),
    *("b/new\nline.ppm", "b/\ue000.ppm", "b/\U0001f415.ppm", os.fsdecode(b"b/caf\xe9 \xff.ppm")),
    os.fsdecode(b"b/\xff.ppm"),  # before U+E000 as a text, behind it as bytes
)


def write(file: Path, width: int = 4, height: int = 2) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"P6 %d %d 255\n" % (width, height) + bytes(3 * width * height))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the caches are; they are written for any number of files, of any age."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(scan_cache, "FEWEST", 1)
    monkeypatch.setattr(scan_cache, "SETTLED", -(10**10))
    return tmp_path / "cache/cvtrain/scans"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        write(tmp_path / "root" / name, width=3 + number)
    return tmp_path / "root"


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were opened since it was cleared."""
    files: list[Path] = []

    def probe(path: Path, *, max_pixels: int) -> Header:
        files.append(path)
        return real(path, max_pixels=max_pixels)

    real = scans.probe
    monkeypatch.setattr(scans, "probe", probe)
    return files


def look(root: Path, **limits: Any) -> Scan:
    return scan(root, class_folders(root), **{"max_pixels": 1000, "on_bad": "error", **limits})


def said(found: Scan) -> tuple[Any, ...]:
    """All of it, to compare."""
    headers = [(h.width, h.height, h.plain, h.size) for h in found.headers]
    bad = [(file, str(why)) for file, why in found.bad]
    return [*found.files], [*found.labels], headers, bad, found.ignored, found.fingerprint()


def uncached(root: Path, **limits: Any) -> tuple[Any, ...]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_cache, "place", lambda root: None)
        return said(look(root, **limits))


def test_nothing_is_opened_twice(root: Path, probed: list[Path], cache: Path) -> None:
    first = said(look(root))
    assert len(probed) == len(NAMES)
    (file,) = cache.iterdir()
    written = file.stat().st_ino
    probed.clear()
    assert said(look(root)) == first == uncached(root)
    assert len(probed) == len(NAMES)  # by the one without a cache
    assert file.stat().st_ino == written  # nothing is new: it is not written again


def test_few_files_leave_nothing(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_cache, "FEWEST", len(NAMES) + 1)
    look(root)
    assert not cache.exists()


def replaced(root: Path) -> None:
    """By one of the same size in bytes, but turned: 2x3 in place of 3x2."""
    write(root / "a/1.ppm", width=2, height=3)


def replaced_and_dated_back(root: Path) -> None:
    before = (root / "a/1.ppm").stat()
    replaced(root)
    os.utime(root / "a/1.ppm", ns=(before.st_atime_ns, before.st_mtime_ns))


def swapped(root: Path) -> None:
    """Two of the same size and mtime, as an archive may leave them."""
    for names in (("a/1.ppm", "x"), ("a/2.ppm", "a/1.ppm"), ("x", "a/2.ppm")):
        (root / names[0]).rename(root / names[1])


def touched(root: Path) -> None:
    os.utime(root / "b/2.ppm", (0, 0))


def became_a_link(root: Path) -> None:
    write(root.parent / "other.ppm", width=30)
    (root / "a/1.ppm").unlink()
    (root / "a/1.ppm").symlink_to(root.parent / "other.ppm")


CHANGES: dict[str, tuple[Callable[[Path], Any], set[str]]] = {
    "changed": (lambda root: write(root / "a/2.ppm", 9), {"a/2.ppm"}),
    "first": (lambda root: write(root / "a/0.ppm"), {"a/0.ppm"}),
    "between": (lambda root: write(root / "a/2b.ppm"), {"a/2b.ppm"}),
    "last": (lambda root: write(root / "b/\U0001f4ff.ppm"), {"b/\U0001f4ff.ppm"}),
    "folder": (lambda root: write(root / "a/deep/er/1.ppm"), {"a/deep/er/1.ppm"}),
    "class": (lambda root: write(root / "0/1.ppm"), {"0/1.ppm"}),
    "removed": (lambda root: (root / "a/1.ppm").unlink(), set()),
    "removed before odd ones": (lambda root: (root / "b/new\nline.ppm").unlink(), set()),
    "all of a class": (lambda root: [f.unlink() for f in (root / "b").iterdir()], set()),
    "renamed": (lambda root: (root / "a/1.ppm").rename(root / "b/0.ppm"), {"b/0.ppm"}),
    "a class renamed": (
        lambda root: (root / "a").rename(root / "c"),
        {n.replace("a/", "c/") for n in NAMES if n[0] == "a"},
    ),
    "same size": (replaced, {"a/1.ppm"}),
    "same size and mtime": (replaced_and_dated_back, {"a/1.ppm"}),
    "swapped": (swapped, {"a/1.ppm", "a/2.ppm"}),
    "touched": (touched, {"b/2.ppm"}),
    "a link": (became_a_link, {"a/1.ppm"}),
    "ignored": (lambda root: (root / "a/notes.txt").write_text(""), set()),
    "hidden": (lambda root: (root / "a/1.ppm").rename(root / "a/.1.ppm"), set()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes(root: Path, probed: list[Path], change: str) -> None:
    """What is new is opened and nothing else; then it is known, too."""
    write(root / "a/1.ppm", 3, 2)
    write(root / "a/2.ppm", 2, 3)
    for name in ("a/1.ppm", "a/2.ppm"):
        os.utime(root / name, (10**9, 10**9))
    look(root)
    apply, expected = CHANGES[change]
    apply(root)
    probed.clear()
    found = said(look(root))
    assert {str(file.relative_to(root)) for file in probed} == expected
    assert found == uncached(root)
    probed.clear()
    assert said(look(root)) == found
    assert not probed


def test_becomes_bad(root: Path, probed: list[Path]) -> None:
    """Refused at every start, and only it is looked at again, until it is mended."""
    look(root)
    whole = (root / "a/2.ppm").read_bytes()
    (root / "a/2.ppm").write_bytes(whole[:-1])
    for _ in range(2):
        probed.clear()
        with pytest.raises(DataError, match=r"a/2\.ppm"):
            look(root)
        assert probed == [root / "a/2.ppm"]
    assert said(look(root, on_bad="skip")) == uncached(root, on_bad="skip")
    (root / "a/2.ppm").write_bytes(whole)
    probed.clear()
    assert said(look(root))[3] == []
    assert probed == [root / "a/2.ppm"]


def test_good_ones_are_kept_beside_bad_ones(root: Path, probed: list[Path]) -> None:
    """At the first start already: whoever mends one does not wait for the others again."""
    (root / "a/2.ppm").write_bytes(b"")
    with pytest.raises(DataError):
        look(root)
    probed.clear()
    write(root / "a/2.ppm")
    look(root)
    assert probed == [root / "a/2.ppm"]


def test_fewer_pixels_are_allowed(root: Path) -> None:
    """As without a cache, to the word; and then more again."""
    whole = said(look(root))
    with pytest.raises(DataError) as cached:
        look(root, max_pixels=20)
    with pytest.raises(DataError) as plain:
        uncached(root, max_pixels=20)
    assert cached.value.name == plain.value.name == "IMAGE-TOO-LARGE"
    assert cached.value.line() == plain.value.line()
    assert said(look(root)) == whole


def test_what_was_just_written(
    root: Path, probed: list[Path], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """A clock may not tell the next change from the last one: such a file is opened again."""
    monkeypatch.setattr(scan_cache, "SETTLED", 2 * 10**9)
    look(root)
    assert not cache.exists()
    monkeypatch.setattr(scan_cache, "SETTLED", 10**8)
    time.sleep(0.15)
    write(root / "a/2.ppm", 9)
    os.utime(root / "a/3.ppm", (2**32, 2**32))  # of the future
    for number in range(2):
        probed.clear()
        look(root)
        recent = {root / "a/2.ppm", root / "a/3.ppm"}
        assert set(probed) == (recent if number else {root / name for name in NAMES})
    monkeypatch.setattr(scan_cache, "SETTLED", -(10**10))
    look(root)
    probed.clear()
    look(root)
    assert probed == [root / "a/3.ppm"]


# Files of the cache


def forged(file: Path, body: bytes, **changes: Any) -> None:
    """With a right checksum."""
    head = json.loads(file.read_bytes().partition(b"\n")[0])
    head |= {"crc32": zlib.crc32(body), **changes}
    file.write_bytes(json.dumps(head).encode() + b"\n" + body)


class Bomb:
    def __reduce__(self) -> Any:
        return pytest.fail, ("it was run",)


DAMAGES: dict[str, Callable[[Path, bytes, bytes], Any]] = {
    "empty": lambda file, head, body: file.write_bytes(b""),
    "cut in the head": lambda file, head, body: file.write_bytes(head[:20]),
    "cut": lambda file, head, body: file.write_bytes(head + b"\n" + body[:-1]),
    "longer": lambda file, head, body: file.write_bytes(head + b"\n" + body + b"x"),
    "a bit": lambda file, head, body: file.write_bytes(
        head + b"\n" + bytes([body[0] ^ 1]) + body[1:]
    ),
    "another version": lambda file, head, body: forged(file, body, kind="cvtrain 0"),
    "no checksum": lambda file, head, body: forged(file, body, crc32=None),
    "no number": lambda file, head, body: forged(file, body, files="11"),
    "many": lambda file, head, body: forged(file, body, files=10**15),
    "fewer than none": lambda file, head, body: forged(file, b"", files=-1, bytes=25),
    "none": lambda file, head, body: forged(file, bytes(4), files=0, bytes=0),
    "zeros": lambda file, head, body: forged(file, bytes(len(body))),
    "ones": lambda file, head, body: forged(file, b"\xff" * len(body)),
    "a list": lambda file, head, body: file.write_bytes(b"[]\n" + body),
    "deep": lambda file, head, body: file.write_bytes(b"[" * 10**6 + b"\n"),
    "a pickle": lambda file, head, body: file.write_bytes(pickle.dumps(Bomb())),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged(root: Path, probed: list[Path], cache: Path, damage: str) -> None:
    """It is as if there was none, and is made anew."""
    first = said(look(root))
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    head, _, body = whole.partition(b"\n")
    DAMAGES[damage](file, head, body)
    probed.clear()
    assert said(look(root)) == first
    assert len(probed) == len(NAMES)
    assert file.read_bytes() == whole


def test_no_place(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file where a folder should be, a full disk, a folder where the file should be, no home."""
    first = said(look(root))
    (file,) = cache.iterdir()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        write(root / "a/9.ppm")
        look(root)
        (root / "a/9.ppm").unlink()
    assert [*cache.iterdir()] == [file]  # nothing half-written beside it
    file.unlink()
    file.mkdir()
    assert said(look(root)) == first
    (root.parent / "file").write_text("")
    for place in (root.parent / "file", root.parent / ("x" * 300)):  # that cannot even be asked for
        monkeypatch.setenv("XDG_CACHE_HOME", str(place))
        assert said(look(root)) == first
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert said(look(root)) == first


@pytest.mark.parametrize("typed", ["", "relative"])
def test_in_the_home(root: Path, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    """Where no absolute folder is named, as the XDG specification has it."""
    monkeypatch.chdir(root.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", typed)
    monkeypatch.setenv("HOME", str(root.parent / "home"))
    look(root)
    assert len([*(root.parent / "home/.cache/cvtrain/scans").iterdir()]) == 1
    assert not (root.parent / "relative").exists()


@pytest.mark.parametrize("inside", ["", "a", ".cache"])
def test_never_among_the_images(root: Path, monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    before = sorted(root.rglob("*"))
    (root.parent / "link").symlink_to(root)
    for folder in (root, root.parent / "link"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / inside))
        look(root)
        look(root.parent / "link")
    assert sorted(root.rglob("*")) == before


def test_one_for_each_folder(
    root: Path, cache: Path, probed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By where it really is, however it is named."""
    look(root)
    (root.parent / "link").symlink_to(root)
    monkeypatch.chdir(root.parent)
    probed.clear()
    for path in (Path("root"), root.parent / "link", root / "../root"):
        assert [*look(path).files.names()] == [*look(root).files.names()]
    assert not probed
    assert len([*cache.iterdir()]) == 1
    write(root.parent / "other/a/1.ppm")
    look(root.parent / "other")
    assert len([*cache.iterdir()]) == 2


def test_unused_ones_go(root: Path, cache: Path) -> None:
    look(root)
    (file,) = cache.iterdir()
    for name, days in (("old", 91), ("recent", 89)):
        (cache / name).write_text("")
        os.utime(cache / name, (time.time() - days * 86_400,) * 2)
    os.utime(file, (0, 0))
    look(root)
    assert file.stat().st_mtime > time.time() - 60  # it is used
    write(root / "a/9.ppm")
    look(root)
    assert {f.name for f in cache.iterdir()} == {file.name, "recent"}


def table(root: Path, count: int) -> scan_cache.Rows:
    files, headers, stamps = Files(root), Headers(), int64()
    for number in range(count):
        files.append_below(b"a/%d.ppm" % number)
        headers.append(Header(count, number + 1, False, 100))
        stamps.append(count)
    return scan_cache.Rows(files, headers, stamps)


def replace_often(file: Path, count: int, together: Any) -> None:
    rows = table(file, count)
    together.wait()
    for _ in range(300):
        scan_cache.write(file, rows)


def test_processes_at_once(tmp_path: Path) -> None:
    """Whoever reads finds the whole of what one of them has written."""
    file, fork = tmp_path / "scans/one", multiprocessing.get_context("fork")
    scan_cache.write(file, table(tmp_path, 50))
    together = fork.Barrier(2)
    writers = [
        fork.Process(target=replace_often, args=(file, count, together)) for count in (50, 999)
    ]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        rows = scan_cache.read(file, tmp_path)
        count = len(rows.files)
        seen.add(count)
        assert (np.asarray(rows.stamps) == count).all()
        assert [h.height for h in rows.headers] == [*range(1, count + 1)]
        assert rows.files.name(count - 1) == b"a/%d.ppm" % (count - 1)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen <= {50, 999}
    assert [*file.parent.iterdir()] == [file]
