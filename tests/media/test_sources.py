"""What a source names, and what its results are called."""

from pathlib import Path

import pytest
from PIL import Image

from cvtrain.errors import ConfigError, CvtrainError, DataError
from cvtrain.media.sources import Kind, Names, find

NASTY = ["a (1).jpg", "b=c,d.jpg", "new\nline.jpg", "[x] *.jpg", "'quote\".jpg", "ä 空.jpg"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures at two levels, a video by its name, and what is neither."""
    root = tmp_path / "photos"
    (root / "deep").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for name in (*NASTY, "deep/a (1).jpg", ".hidden/z.jpg", ".z.jpg", "UPPER.JPG"):
        Image.new("RGB", (8, 6)).save(root / name, format="JPEG")
    (root / "clip.mp4").write_bytes(b"")
    (root / "notes.txt").write_text("no picture")
    return root


def test_a_folder(folder: Path, tmp_path: Path) -> None:
    found = find(str(folder), tmp_path / "out")
    names = {str(Path(item.name).relative_to(folder)) for item in found}
    assert names == {*NASTY, "deep/a (1).jpg", "UPPER.JPG", "clip.mp4"}
    assert [i.label for i in found if i.kind is Kind.video] == ["clip"]
    assert next(i.label for i in found if "deep" in i.name) == "deep/a (1)"
    assert find(str(folder), tmp_path / "out") == found  # the same order again


def test_what_was_written_is_not_looked_at(folder: Path) -> None:
    out = folder / "deep"
    assert not [item for item in find(str(folder), out) if "deep" in item.name]


@pytest.mark.parametrize("name", NASTY)
def test_a_file_is_itself_whatever_its_name(folder: Path, name: str, tmp_path: Path) -> None:
    [item] = find(str(folder / name), tmp_path / "out")
    assert (item.address, item.kind) == (folder / name, Kind.picture)


def test_a_pattern(folder: Path, tmp_path: Path) -> None:
    found = find(f"{folder}/**/a*.jpg", tmp_path / "out")
    assert [Path(item.name).name for item in found] == ["a (1).jpg"] * 2
    assert len(find(f"{folder}/*", tmp_path / "out")) == len(NASTY) + 2  # no folder, no text


@pytest.mark.parametrize(
    ("typed", "name", "kind"),
    [
        ("0", "camera 0", Kind.live),
        ("rtsp://who:secret@cam.lan:554/live", "rtsp://cam.lan:554/live", Kind.live),
        ("https://example.org/a/clip.mp4", "https://example.org/a/clip.mp4", Kind.video),
    ],
)
def test_cameras_and_streams(typed: str, name: str, kind: Kind, tmp_path: Path) -> None:
    [item] = find(typed, tmp_path)
    assert (item.name, item.kind, item.address) == (name, kind, typed)


def test_without_a_suffix_the_content_decides(folder: Path, tmp_path: Path) -> None:
    (folder / "a (1).jpg").rename(tmp_path / "picture")
    [item] = find(str(tmp_path / "picture"), tmp_path / "out")
    assert item.kind is Kind.picture
    [item] = find(str(folder / "notes.txt"), tmp_path / "out")
    assert item.kind is Kind.video  # which says that it is none


@pytest.mark.parametrize(
    ("typed", "error", "kind"),
    [
        ("", "CONFIG", ConfigError),
        ("ftp://example.org/a.mp4", "CONFIG", ConfigError),
        ("missing.jpg", "NO-DATA", DataError),
        ("missing/*.jpg", "NO-DATA", DataError),
        ("empty", "NO-DATA", DataError),
    ],
)
def test_nothing_there(
    typed: str,
    error: str,
    kind: type[CvtrainError],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(kind) as caught:
        find(typed, tmp_path / "out")
    assert caught.value.name == error
    assert typed.partition("://")[0] in caught.value.line()


@pytest.mark.parametrize("typed", ["", "/a (1).jpg", "/*.jpg"])
def test_results_never_replace_what_is_looked_at(folder: Path, typed: str) -> None:
    with pytest.raises(ConfigError, match="written over"):
        find(f"{folder}{typed}", folder)


def test_names_are_safe_and_unique() -> None:
    names = Names()
    labels = [
        "a (1)",
        "a=1",
        "A 1",
        "a\n1",
        "../../etc/passwd",
        "",
        "x" * 300,
        "空" * 300,
        "\udcff",
    ]
    given = [names(label, ".jpg") for label in labels]
    assert len({name.casefold() for name in given}) == len(labels)
    for name in given:
        assert "/" not in name
        assert "\n" not in name
        assert name[0] != "."
        assert len(name.encode()) < 255
    assert given[:2] == ["a_1.jpg", "a_1-2.jpg"]
    assert [names("b", ".jpg") for _ in range(3)] == ["b.jpg", "b-2.jpg", "b-3.jpg"]
