"""What a scan finds in a folder: odd names, links, what is ignored, what is bad, the classes."""

import logging
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvtrain.data.image_folder import ImageFolder
from cvtrain.data.scan import Scan, class_folders, scan
from cvtrain.errors import CvtrainError

LIMITS: dict[str, Any] = {"max_pixels": 10_000, "on_bad": "error"}
GIVEN: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.25] * 3}
NON_UTF8 = os.fsdecode(b"caf\xe9 \xff.png")


def draw(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    form = "GIF" if path.suffix.lower() == ".gif" else "PNG"
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(path, form)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with two images each."""
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        draw(tmp_path / "root" / name)
    return tmp_path / "root"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What is logged, a string a line of the log."""
    caplog.set_level(logging.INFO, logger="cvtrain")
    logger = logging.getLogger("cvtrain")
    before, logger.propagate = logger.propagate, True  # a run in this process may have changed it
    yield lambda: [record.getMessage() for record in caplog.records]
    logger.propagate = before


def look(root: Path, **limits: Any) -> Scan:
    return scan(root, class_folders(root), **{**LIMITS, **limits})


def names(found: Scan) -> list[str]:
    return [str(file.relative_to(found.root)) for file in found.files]


def refused(build: Callable[[], object], name: str) -> str:
    """The line of the refusal, one line that can be printed, with exit code 3."""
    with pytest.raises(CvtrainError) as error:
        build()
    assert (error.value.name, error.value.code) == (name, 3)
    line = error.value.line()
    assert line.isprintable()
    assert line.encode()  # no half characters
    return line


# Names


@pytest.mark.fault("D5")
@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("ümlaut 犬 🐕.png", "ümlaut 犬 🐕.png"),
        ("a b.png", "a b.png"),
        ("new\nline\ttab.png", r"new\nline\ttab.png"),
        ('it\'s "quoted" `x` $(x).png', 'it\'s "quoted" `x` $(x).png'),
        ("-rf.png", "-rf.png"),
        ("[a-z]*?{1,2}%s.png", "[a-z]*?{1,2}%s.png"),
        (NON_UTF8, r"caf\udce9 \udcff.png"),
        ("x" * 251 + ".png", "x" * 251 + ".png"),
        ("UPPER.PNG", "UPPER.PNG"),
        ("two.dots.png", "two.dots.png"),
    ],
)
@pytest.mark.parametrize("place", ["file", "folder", "class"])
def test_names(tmp_path: Path, name: str, printed: str, place: str) -> None:
    """Read like any other; printed on one line."""
    folder, file = {
        "file": ("a", name),
        "folder": (f"a/{name}", "1.png"),
        "class": (name, "1.png"),
    }[place]
    draw(tmp_path / folder / file, 200)
    for number in range(4):
        draw(tmp_path / folder / f"0{number}.png", 200)
        draw(tmp_path / f"other/{number}.png")
    source = ImageFolder(root=str(tmp_path), split=[0.5, 0.5], **GIVEN)
    everything = [
        (source.name_of(i, split), source.image_of(i, split))
        for split, count in (("train", len(source.train(8, _none()))), ("val", len(source.val(8))))
        for i in range(count)
    ]
    levels = {shown: int(image.amax()) for shown, image in everything}
    assert len(levels) == 9
    assert all(shown.isprintable() for shown in levels)
    mine = f"{tmp_path}/{folder}/{file}".replace(name, printed)
    assert levels[mine] == 200
    (tmp_path / folder / file).write_bytes(b"no image any more")
    assert mine in refused(lambda: look(tmp_path), "BAD-IMAGE")


def _none() -> Any:
    from cvtrain.data.source import Augmentations

    return Augmentations()


@pytest.mark.fault("D5")
def test_what_is_no_image(root: Path, said: Callable[[], list[str]]) -> None:
    """Counted by suffix, in one line; what is hidden is not looked at."""
    for name in ("a/Thumbs.db", "a/notes.txt", "b/deep/notes.TXT", "b/README", "b/1.png.part"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("no image")
    for name in ("a/._1.png", "a/.hidden.jpg", "b/.DS_Store", ".thumbnails/1.png", "b/.x/1.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("no image")
    (root / "a/odd.a\nb").write_text("")
    draw(root / "a/3.gif")
    draw(root / "notes.png")  # of no class
    found = look(root)
    assert found.classes == ["a", "b"]
    assert names(found) == ["a/1.png", "a/2.png", "a/3.gif", "b/1.png", "b/2.png"]
    lines = [line for line in said() if "ignored" in line]
    assert len(lines) == 1
    assert lines[0].isprintable()
    assert set(lines[0].partition("image: ")[2].split(", ")) == {
        *("4 hidden", "2 .txt", "1 .db", "1 without suffix", "1 .part", r"1 .a\nb"),
    }


def test_nothing_ignored_nothing_said(root: Path, said: Callable[[], list[str]]) -> None:
    look(root)
    assert not said()


# Links


@pytest.mark.fault("D6")
def test_loops(root: Path) -> None:
    """Each file once, in its own class."""
    (root / "a/up").symlink_to("..")
    (root / "a/self").symlink_to(".")
    (root / "a/deep").mkdir()
    (root / "a/deep/top").symlink_to(root.parent)
    (root / "b/other").symlink_to("../a")
    (root / "loop").symlink_to(root)  # would be a class of all the others
    (root / "again").symlink_to("a")
    found = look(root)
    assert found.classes == ["a", "b"]
    assert names(found) == ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]
    assert [*found.labels] == [0, 0, 1, 1]


@pytest.mark.fault("D6")
def test_a_loop_elsewhere(root: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    draw(store / "3.png")
    (store / "loop").symlink_to(store)
    (store / "there").symlink_to(tmp_path / "second")
    draw(tmp_path / "second/4.png")
    (tmp_path / "second/back").symlink_to(store)
    (root / "b/more").symlink_to(store)
    assert names(look(root))[2:] == ["b/1.png", "b/2.png", "b/more/3.png", "b/more/there/4.png"]


@pytest.mark.fault("D6")
def test_links(root: Path, tmp_path: Path) -> None:
    """To files and folders elsewhere they are followed; a second name of a file is left out."""
    elsewhere = draw(tmp_path / "store/3.png")
    (root / "a/3.png").symlink_to(elsewhere)
    (root / "a/4.png").symlink_to(elsewhere)
    os.link(root / "a/1.png", root / "a/5.png")
    (root / "c").symlink_to(elsewhere.parent)
    found = look(root)
    assert names(found)[:3] == ["a/1.png", "a/2.png", "a/3.png"]
    assert names(found)[-1] == "c/3.png"
    assert len(found.files) == 6


@pytest.mark.fault("D1")
def test_dangling_links(root: Path) -> None:
    (root / "a/3.png").symlink_to("nowhere.png")
    (root / "b/x").symlink_to("nowhere")  # no suffix: no image
    draw(root / "b/deep/9.png")  # looked at after them
    (root / "b/loop.png").symlink_to("loop.png")
    line = refused(lambda: look(root), "BAD-IMAGE")
    assert f"2 of 7 images are bad: {root}/a/3.png (is not there" in line
    assert f"{root}/b/loop.png (" in line


# Bad images


def spoil(root: Path, count: int, *, of: int) -> list[Path]:
    """A third class of `of` images, `count` of which are none."""
    files = [draw(root / f"c/{i:04}.png") for i in range(of)]
    for file in files[:count]:
        file.write_bytes(file.read_bytes()[:40])
    return files


@pytest.mark.fault("D1")
def test_the_first_of_many(root: Path) -> None:
    files = spoil(root, 25, of=30)
    line = refused(lambda: look(root), "BAD-IMAGE")
    assert "25 of 34 images are bad: " in line
    assert [str(file) in line for file in files] == [True] * 20 + [False] * 10
    assert " and 5 more; " in line
    assert "data.on_bad=skip" in line


@pytest.mark.fault("D1")
@pytest.mark.parametrize(("bad", "of", "fine"), [(1, 2, True), (2, 196, True), (3, 196, False)])
def test_skip_a_hundredth(root: Path, bad: int, of: int, fine: bool) -> None:
    """One file, or a hundredth of all: 2 of 200."""
    files = spoil(root, bad, of=of)
    if not fine:
        line = refused(lambda: look(root, on_bad="skip"), "BAD-IMAGE")
        assert f"{bad} of 200 images are bad" in line
        assert "more than 1%" in line
        return
    found = look(root, on_bad="skip")
    assert [path for path, _ in found.bad] == files[:bad]
    assert found.files[4:] == files[bad:]
    assert [*found.labels] == [0, 0, 1, 1] + [2] * (of - bad)


@pytest.mark.fault("D1")
def test_skip_empties_no_class(root: Path) -> None:
    spoil(root, 1, of=1)
    for i in range(200):
        draw(root / f"b/more{i}.png")
    assert "class c would be empty" in refused(lambda: look(root, on_bad="skip"), "BAD-IMAGE")


@pytest.mark.fault("D3")
def test_too_large_among_others(root: Path) -> None:
    """The name of the error is that of all the bad files, or the general one."""
    Image.new("1", (101, 100)).save(root / "a/large.png")
    line = refused(lambda: look(root), "IMAGE-TOO-LARGE")
    assert "a/large.png (has 101x100 pixels, more than data.max_pixels=10000)" in line
    (root / "b/3.png").write_bytes(b"")
    assert "2 of 6 images" in refused(lambda: look(root), "BAD-IMAGE")


# Classes


def folder(root: Path, **options: Any) -> ImageFolder:
    return ImageFolder(root=str(root), **GIVEN, **options)


def labelled(source: ImageFolder, split: str) -> dict[str, int]:
    """The label of each file of a split, by its path below the root."""
    files = source.train(8, _none()) if split == "train" else source.val(8)
    return {
        str(Path(source.name_of(i, split)).relative_to(source.root)): files[i][1]
        for i in range(len(files))
    }


@pytest.mark.fault("D4")
def test_no_class_folders(tmp_path: Path) -> None:
    draw(tmp_path / "1.png")
    line = refused(lambda: folder(tmp_path), "CLASSES")
    assert f"no class folders in {tmp_path}" in line
    assert "root/cats/1.jpg" in line


@pytest.mark.parametrize("place", ["nowhere", "file"])
def test_no_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    assert f"{tmp_path}/{place}" in refused(lambda: folder(tmp_path / place), "NO-DATA")


@pytest.mark.fault("D4")
def test_one_class(root: Path) -> None:
    for file in (root / "b").iterdir():
        file.rename(root / f"a/b{file.name}")
    (root / "b").rmdir()
    line = refused(lambda: folder(root), "CLASSES")
    assert "only one class, a" in line
    assert "data.allow_one_class=true" in line
    assert folder(root, allow_one_class=True).info.classes == ("a",)


@pytest.mark.fault("D4")
def test_empty_class_folders(root: Path) -> None:
    """Kept as classes, the labels of the others do not move."""
    (root / "aa").mkdir()
    (root / "A new one/deep").mkdir(parents=True)
    (root / "A new one/notes.txt").write_text("")
    line = refused(lambda: folder(root), "CLASSES")
    assert "2 of 4 class folders hold no image: A new one, aa" in line
    source = folder(root, allow_empty=True, split=[0.5, 0.5])
    assert source.info.classes == ("A new one", "a", "aa", "b")
    for split in ("train", "val"):
        labels = labelled(source, split)
        assert len(labels) == 2
        assert all(source.info.classes[label] == name[0] for name, label in labels.items())


@pytest.mark.fault("D4")
@pytest.mark.parametrize(
    "pair",
    [
        ("cats", "Cats"),
        ("straße", "STRASSE"),
        (unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")),
        ("dogs", "dogs "),
        (" dogs", "dogs"),
    ],
)
def test_names_that_are_alike(root: Path, pair: tuple[str, str]) -> None:
    for name in pair:
        draw(root / name / "1.png")
    if len(list(root.iterdir())) < 4:
        pytest.skip("the file system takes the two names for one")
    line = refused(lambda: folder(root), "CLASSES")
    assert " and ".join(map(ascii, sorted(pair))) in line


@pytest.fixture
def two(root: Path, tmp_path: Path) -> Path:
    """`train` and `val` with the classes a and b."""
    data = tmp_path / "data"
    data.mkdir()
    root.rename(data / "train")
    for name in ("a/7.png", "b/8.png"):
        draw(data / "val" / name)
    return data


@pytest.mark.fault("D4")
def test_classes_of_train_and_val(two: Path, said: Callable[[], list[str]]) -> None:
    draw(two / "train/aa/1.png")
    draw(two / "val/c/9.png")
    line = refused(lambda: folder(two), "CLASSES")
    assert "the classes of train and val differ, only in train: aa; only in val: c" in line
    assert "data.allow_other_classes=true" in line
    source = folder(two, allow_other_classes=True)
    assert any("only in train: aa; only in val: c" in line for line in said())
    assert source.info.classes == ("a", "aa", "b")
    assert labelled(source, "val") == {"val/a/7.png": 0, "val/b/8.png": 2}
    assert labelled(source, "train")["train/b/1.png"] == 2


@pytest.mark.fault("D4")
def test_val_without_class_folders(two: Path) -> None:
    for name in ("a/7.png", "b/8.png"):
        (two / "val" / name).rename(two / "val" / Path(name).name)
        (two / "val" / name).parent.rmdir()
    assert f"no class folders in {two}/val" in refused(lambda: folder(two), "CLASSES")


@pytest.mark.parametrize(("missing", "key"), [("train", "train_dir"), ("val", "val_dir")])
def test_one_of_train_and_val(two: Path, missing: str, key: str) -> None:
    (two / missing).rename(two / "test")
    line = refused(lambda: folder(two), "NO-DATA")
    assert f"no folder {missing} beside " in line
    assert f"data.{key}=NAME" in line
    assert len(folder(two, **{key: "test"}).val(8)) > 0


def test_fingerprint(root: Path) -> None:
    """Changed by a file that is added, renamed, moved or of another size; not by its time."""

    def fingerprint() -> str:
        return look(root).fingerprint()

    first = fingerprint()
    os.utime(root / "a/1.png", (0, 0))
    assert fingerprint() == first
    seen = {first}
    for change in (
        lambda: draw(root / "b/3.png"),
        lambda: (root / "b/3.png").rename(root / "b/4.png"),
        lambda: (root / "b/4.png").rename(root / "a/4.png"),
        lambda: Image.new("RGB", (9, 9)).save(root / "a/4.png"),
        lambda: (root / "a/4.png").rename(root / "a" / NON_UTF8),
    ):
        change()
        seen.add(fingerprint())
    assert len(seen) == 6
    (root / "a" / NON_UTF8).unlink()
    assert fingerprint() == first
