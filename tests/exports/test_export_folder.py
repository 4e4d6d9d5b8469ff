"""An export's folder is there whole, and takes no place that is another's."""

from pathlib import Path

import pytest

from cvtrain.errors import ConfigError, MachineError
from cvtrain.exports import folder

OURS = (folder.CARD, folder.CLASSES, folder.CONFIG, folder.INPUT, "model.onnx")


def fill(place: Path, names: tuple[str, ...], text: str = "") -> Path:
    place.mkdir(exist_ok=True)
    for name in names:
        (place / name).write_text(text)
    return place


@pytest.mark.parametrize("names", [(), OURS])
def test_a_place_that_is_free(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder.check_free(tmp_path / "new")
    folder.check_free(fill(tmp_path / "there", names))


@pytest.mark.parametrize("names", [("thesis.tex",), (*OURS, "thesis.tex"), ("README.md",)])
def test_a_place_that_is_taken(tmp_path: Path, names: tuple[str, ...]) -> None:
    fill(tmp_path / "there", names)
    with pytest.raises(ConfigError):
        folder.check_free(tmp_path / "there")


def test_a_file_and_a_missing_parent(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for place in ("file", "link", "no/folder"):
        with pytest.raises(ConfigError):
            folder.check_free(tmp_path / place)


def test_an_earlier_export_is_replaced_at_the_end(tmp_path: Path) -> None:
    old = fill(tmp_path / "there", (*OURS, "model.pt"), "old")
    with folder.drafting(old) as draft:
        fill(draft, OURS, "new")
        assert (old / "model.pt").read_text() == "old"
        folder.put(draft, old)
    assert sorted(path.name for path in old.iterdir()) == sorted(OURS)
    assert (old / "model.onnx").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_nothing_is_left_of_one_that_ends_early(tmp_path: Path) -> None:
    old = fill(tmp_path / "there", OURS, "old")

    def interrupted() -> None:
        with folder.drafting(old) as draft:
            fill(draft, OURS, "new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (old / "model.onnx").read_text() == "old"


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    def written() -> None:
        with folder.drafting(tmp_path / "new") as draft:
            (draft / "model.onnx").symlink_to("/dev/full")
            (draft / "model.onnx").write_bytes(b"x" * 10_000)

    with pytest.raises(MachineError, match="out=FOLDER") as raised:
        written()
    assert raised.value.name == "NO-SPACE"
    assert not [*tmp_path.iterdir()]
