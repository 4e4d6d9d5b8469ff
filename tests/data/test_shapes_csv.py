"""The drawn tables: whole or absent, reproducible, true to their pictures."""

import csv
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvtrain.data import shapes_draw
from cvtrain.data.shapes import ShapesBox, ShapesLabels
from cvtrain.data.shapes_draw import CLASSES, PlacedShape, draw_mask, draw_scene, draw_table
from cvtrain.errors import MachineError

KINDS = ("labels", "box")
SIZED = shapes_draw._LEVELLED
GIVEN: dict[str, Any] = {"size": 64, "mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn")
    for kind in KINDS:
        draw_table(root / kind, kind=kind, size=64, train=160, val=40)
    return root


def table(root: Path, split: str = "train") -> list[dict[str, str]]:
    with (root / f"{split}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def contents(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file()}


def foreground(path: Path) -> np.ndarray:
    """bool `[H, W]`: what stands out in lightness from the border, which is ground alone."""
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))
        grey = np.asarray(image.convert("L")).astype(float)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    # A shape differs by 0.4 of the range of lightness from its ground, the ground by less.
    return abs(grey - np.median(border)) > 0.23 * 255


@pytest.mark.parametrize("kind", KINDS)
def test_the_promised_files(drawn: Path, kind: str) -> None:
    root = drawn / kind
    listed = [row["path"] for split in ("train", "val") for row in table(root, split)]
    assert len(listed) == len(set(listed)) == 200
    assert set(contents(root)) == {"train.csv", "val.csv", *listed}
    assert len(set(contents(root).values())) == 202


def test_labels_are_what_is_seen(drawn: Path) -> None:
    """Nothing but ground where main is 0; each level larger than the one before, none missing."""
    rows = table(drawn / "labels")
    assert list(rows[0]) == ["path", "main", "level"]
    extents: dict[str, list[float]] = {level: [] for level in "0123"}
    for row in rows:
        bright = foreground(drawn / "labels" / row["path"])
        if row["main"] == "0":
            assert row["level"] == ""
            assert bright.sum() < 40  # of 4096: the texture's own extremes
        else:
            rows_, columns = np.nonzero(bright)
            reach = np.hypot(rows_ - rows_.mean(), columns - columns.mean())
            extents[row["level"]].append(float(np.quantile(reach, 0.97)))
    assert [len(e) for e in extents.values()] == [32] * 4
    medians = [float(np.median(e)) for e in extents.values()]
    assert all(b > 1.3 * a for a, b in pairwise(medians))


def test_levels_do_not_touch() -> None:
    """Neither in extent nor in area, whichever shapes are compared."""
    for (_, high), (low, _) in pairwise(shapes_draw._LEVELS):
        assert low > 1.4 * high
        small, large = (
            [draw_mask(PlacedShape(name, 0.5, 0.5, r, 0.1), 128).sum() for name in SIZED]
            for r in (high, low)
        )
        assert min(large) > 1.1 * max(small)
    assert max(shapes_draw._LEVELS)[1] + shapes_draw._MARGIN < 0.5  # wholly inside


def test_boxes_are_tight(drawn: Path) -> None:
    """Against the pixels of the JPEGs: shapes differ from their ground by a fifth of the range."""
    rows = table(drawn / "box")
    assert list(rows[0]) == ["path", "class", "x1", "y1", "x2", "y2"]
    assert [row["class"] for row in rows[:8]] == list(CLASSES)
    overlaps = []
    for row in rows:
        x1, y1, x2, y2 = (int(row[name]) for name in ("x1", "y1", "x2", "y2"))
        assert 0 <= x1 < x2 <= 64
        assert 0 <= y1 < y2 <= 64
        below, right = np.nonzero(foreground(drawn / "box" / row["path"]))
        seen = (right.min(), below.min(), right.max() + 1, below.max() + 1)
        width = min(x2, seen[2]) - max(x1, seen[0])
        height = min(y2, seen[3]) - max(y1, seen[1])
        both = (x2 - x1) * (y2 - y1) + (seen[2] - seen[0]) * (seen[3] - seen[1])
        overlaps.append(width * height / (both - width * height))
    # Fine tips are paler than the rest, and now and then a texture reaches further.
    assert np.median(overlaps) > 0.9
    assert np.quantile(overlaps, 0.1) > 0.75


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_depends_on_its_number_alone(drawn: Path, tmp_path: Path, kind: str) -> None:
    draw_table(tmp_path / "few", kind=kind, size=64, train=7, val=3)
    few, many = contents(tmp_path / "few"), contents(drawn / kind)
    pictures = {name for name in few if name.endswith(".jpg")}
    assert all(few[name] == many[name] for name in pictures)
    assert many["train.csv"].startswith(few["train.csv"])


def test_a_draw_that_ends_early_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([draw_scene] * 3)
    monkeypatch.setattr(shapes_draw, "draw_scene", lambda *scene: next(answers)(*scene))
    with pytest.raises(StopIteration):
        draw_table(tmp_path / "deep/set", kind="labels", size=64, train=9, val=2)
    assert list(tmp_path.iterdir()) == []


def test_drawn_once_named_by_what_is_drawn(tmp_path: Path) -> None:
    first = ShapesLabels(root=str(tmp_path), train=40, val=20, **GIVEN)
    assert first.root == tmp_path / "v1-64px-40-20"
    before = contents(tmp_path)
    again = ShapesLabels(root=str(tmp_path), train=40, val=20, **GIVEN)
    assert contents(tmp_path) == before
    assert again.info == first.info
    assert first.info.columns == ShapesLabels.drawn
    assert first.info.classes == ShapesLabels.classes
    assert first.info.columns == {"main": ("0", "1"), "level": ("0", "1", "2", "3")}
    assert first.info.image_size == 64
    ShapesLabels(root=str(tmp_path), train=41, val=20, **GIVEN)
    assert len(list(tmp_path.iterdir())) == 2
    batch = first.val(64).collate([first.val(64)[i] for i in range(5)])
    assert batch.labels.tolist() == [[0, -1], [1, 0], [1, 1], [1, 2], [1, 3]]


def test_boxes_as_they_are_read(tmp_path: Path) -> None:
    """All of the image is seen, so that shares are pixels of 64."""
    source = ShapesBox(root=str(tmp_path), train=40, val=16, **GIVEN)
    assert source.info.classes == CLASSES
    assert source.info.counts == (5,) * 8
    split = source.val(64)
    batch = split.collate([split[i] for i in range(16)])
    for row, box, label in zip(
        table(source.root, "val"), (64 * batch.boxes).tolist(), batch.labels, strict=True
    ):
        assert box == [float(row[name]) for name in ("x1", "y1", "x2", "y2")]
        assert row["class"] == CLASSES[int(label)]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot draw the data set") as caught:
        ShapesBox(root=str(tmp_path / "file/deep"), train=8, val=8, **GIVEN)
    assert caught.value.name == "NOT-WRITABLE"
