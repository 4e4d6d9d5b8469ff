"""Paths and headers in columns: what went in comes out, in a tenth of the memory."""

import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cvtrain.data.columns import Files, Headers, int64, taken
from cvtrain.data.image_folder import ImageFolder
from cvtrain.data.images import Header
from cvtrain.data.scan import Scan, class_folders, look, scan

NAMES = (
    *("b/2.ppm", "b/10.ppm", "b/deep/1.ppm", "b/deeper/1.ppm", "b/deep/er/1.ppm"),
    *("a/new\nline.ppm", os.fsdecode(b"a/caf\xe9 \xff.ppm"), "a/\ue000.ppm", "a/\U0001f415.ppm"),
    *("a/ümlaut.PPM", os.fsdecode(b"a\xff/1.ppm")),
)


def write(root: Path, names: tuple[str, ...] = NAMES) -> Path:
    """Images whose sizes no version of a library changes, each of another width."""
    for number, name in enumerate(names):
        file, width = root / name, 3 + number
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"P6 %d 2 255\n" % width + bytes(6 * width))
    return root


@pytest.mark.parametrize("root", ["/data/photos", "photos", ".", "/", "..", "photos/../b"])
def test_files(root: str) -> None:
    """Exactly the paths that were added, those elsewhere too; names as pathlib has them."""
    paths = [Path(root) / name for name in NAMES]
    paths += [Path(root) / "../x.png", Path("elsewhere/x.png"), Path("/abs/x.png"), Path("x.png")]
    paths += [Path(f"{root}2/x.png"), *([Path(root)] if root != "/" else [])]
    files = Files(Path(root))
    for path in paths:
        files.append(path)
    assert [*files] == paths
    assert [*map(str, files)] == [*map(str, paths)]
    assert [*files.names()] == [
        str(p.relative_to(root) if p.is_relative_to(root) else p) for p in paths
    ]


def test_as_a_list() -> None:
    files, headers = Files(Path("r")), Headers()
    for number in range(5):
        files.append(Path(f"r/{number}"))
        headers.append(Header(number + 1, 7, number % 2 == 0, 10**12 + number))
    assert (len(files), len(headers)) == (5, 5)
    assert files[1:3] == [Path("r/1"), Path("r/2")]
    assert (files[-1], files[np.int64(2)]) == (Path("r/4"), Path("r/2"))
    assert (headers[-1].size, headers[3]) == (10**12 + 4, Header(4, 7, False))
    assert headers[0].plain is True
    for column in (files, headers):
        with pytest.raises(IndexError):
            column[5]
        with pytest.raises(IndexError):
            column[-6]
    chosen = np.array([4, 0, 4])
    assert [*files.part(chosen)] == [files[4], files[0], files[4]]
    assert [h.size for h in headers.part(chosen)] == [10**12 + 4, 10**12, 10**12 + 4]
    assert not len(files.part(np.zeros(0, np.int64)))
    again = pickle.loads(pickle.dumps((files, headers)))  # as a worker that is not forked gets it
    assert ([*again[0]], [*again[1]]) == ([*files], [*headers])


def test_part_of_a_scan(tmp_path: Path) -> None:
    """Labels of any kind; nothing is shared that grows."""
    found = scan(write(tmp_path), class_folders(tmp_path), max_pixels=1000, on_bad="error")
    part = found.part(np.array([2, 0]))
    assert [*part.labels] == [found.labels[2], found.labels[0]]
    assert part.files[:] == [found.files[2], found.files[0]]
    assert [h.width for h in part.headers] == [found.headers[i].width for i in (2, 0)]
    look(part, tmp_path / "b/2.ppm", 7, max_pixels=1000)
    assert (len(part.files), len(found.files)) == (3, 11)
    found.labels = [(number, "x") for number in range(11)]
    assert found.part(np.array([5, 1])).labels == [(5, "x"), (1, "x")]


def test_fingerprints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the lists of objects before there were columns: a run resumes on the same data."""
    root, elsewhere = write(tmp_path / "root"), write(tmp_path / "elsewhere", ("x.ppm",))
    (root / "b/link.ppm").symlink_to(elsewhere / "x.ppm")
    monkeypatch.chdir(tmp_path)
    for path in (root, Path("root")):
        found = scan(path, class_folders(path), max_pixels=1000, on_bad="error")
        assert found.fingerprint() == "b84b9228612db377"
    monkeypatch.chdir(root)
    found = scan(Path(), class_folders(Path()), max_pixels=1000, on_bad="error")
    assert found.fingerprint() == "b84b9228612db377"
    given = {"mean": [0.5] * 3, "std": [0.5] * 3, "allow_empty": True}
    source = ImageFolder(root=str(root), split=[0.6, 0.2, 0.2], **given)
    assert {name: part.fingerprint() for name, part in source._splits.items()} == {
        "train": "e11350800722df66",
        "val": "36ce29f24039b3b2",
        "test": "9ecc7e7bd1bb68a9",
    }
    source = ImageFolder(root=str(root), split=[0.5, 0.5], **given)
    assert (source.info.fingerprint, source.info.counts) == ("3b906d58a6437014", (2, 0, 3))


def test_fingerprints_of_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose files may be elsewhere and whose labels may be more than a number."""
    write(tmp_path / "root")
    write(tmp_path / "elsewhere", ("x.ppm",))
    root = tmp_path / "root"
    found = Scan(root, [])
    for number, name in enumerate(("b/2.ppm", "../elsewhere/x.ppm", "b/deep/1.ppm")):
        look(found, root / name, number, max_pixels=1000)
    assert found.fingerprint() == "270e7897ad4d613c"
    monkeypatch.chdir(tmp_path)
    found = Scan(Path("root"), [])
    for number, name in enumerate(("root/b/2.ppm", "elsewhere/x.ppm")):
        look(found, Path(name), number, max_pixels=1000)
    found.labels = [(1, -1), (0, (1.5, 2.0, 3.0, 4.0))]
    assert found.fingerprint() == "b42822dc7d4f3fb5"


def test_memory() -> None:
    """A path, a header and a label: 26 bytes of name, 29 of numbers, and what grows ahead."""
    tracemalloc.start()
    try:
        found = Scan(Path("/data"), [])
        for number in range(20_000):
            found.files.append_below(b"class_001/image_%06d.jpg" % number)
            found.headers.append(Header(500, 375, True, 60_000))
            found.labels.append(1)
        assert tracemalloc.get_traced_memory()[0] / 20_000 < 70
    finally:
        tracemalloc.stop()


def test_taken() -> None:
    column = int64()
    column.extend([5, -(2**62), 7])
    part = taken(column, np.array([1, 1, 0]))
    assert (part.typecode, [*part]) == ("q", [-(2**62), -(2**62), 5])
    part.append(3)  # a column of its own
    assert (len(column), len(part)) == (3, 4)
