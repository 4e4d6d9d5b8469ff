"""Sheets of pictures: every pixel at its place, captions within their width."""

import numpy as np
import pytest

from cvtrain.metrics.sheet import CELL, GAP, LINE, TILE, fits, readable, sheet, shorten


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def cell(made: np.ndarray, row: int, column: int, *, lines: int) -> np.ndarray:
    top = GAP + row * (CELL + LINE * lines + GAP)
    left = GAP + column * (CELL + GAP)
    return made[top : top + CELL, left : left + CELL]


def test_small_pictures_are_enlarged_pixel_by_pixel() -> None:
    pictures = [noise(CELL // 4, CELL // 4, seed) for seed in range(5)]
    made = sheet(pictures, [["name"]] * 5, columns=3)
    assert made.shape == (2 * (CELL + LINE + GAP) + GAP, 3 * (CELL + GAP) + GAP, 3)
    for number, picture in enumerate(pictures):
        shown = cell(made, number // 3, number % 3, lines=1)
        assert (shown == picture.repeat(4, 0).repeat(4, 1)).all()
    assert (cell(made, 1, 2, lines=1) == 255).all()  # there is no sixth one


@pytest.mark.parametrize("shape", [(1, 1), (500, 20), (20, 500), (CELL, CELL), (1000, 1000)])
def test_any_shape_fits(shape: tuple[int, int]) -> None:
    made = sheet([noise(*shape)], [["one", "two"]], columns=4)
    assert made.shape == (CELL + 2 * LINE + 2 * GAP, 4 * (CELL + GAP) + GAP, 3)
    assert (made[:GAP] == 255).all()
    assert (made[:, :GAP] == 255).all()
    assert (made[:, GAP + CELL + GAP // 2 :] == 255).all()  # nothing beside its cell


def test_a_missing_picture_is_a_grey_tile() -> None:
    made = sheet([None, noise(9, 9)], [[], []], columns=2)
    assert (cell(made, 0, 0, lines=0) == TILE).all()
    assert not (cell(made, 0, 1, lines=0) == TILE).all()


def test_captions_are_shortened_in_their_middle() -> None:
    long = "ILSVRC2012_val_00012345_from_somewhere.JPEG"
    made = sheet([None, None], [[long], ["x"]], columns=2)
    text = made[GAP + CELL :]
    assert (text[:, : GAP + CELL] < 128).any()
    assert (text[:, GAP + CELL : GAP + CELL + GAP] == 255).all()
    assert (text[:, : GAP - 1] == 255).all()
    assert not fits(long)
    assert fits("cat → dog, 97 %")
    assert [shorten("abcdefghij", n) for n in (10, 9, 4, 1)] == [
        "abcdefghij",
        "abcd…ghij",
        "ab…j",
        "a…",
    ]


def test_no_picture_at_all() -> None:
    assert sheet([], [], columns=4).shape[2] == 3


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a\tb\n c", "a b c"), ("\udcff", "?"), ("\x00$x$", "$x$"), ("日本", "日本"), ("", "")],
)
def test_names_become_one_line(name: str, shown: str) -> None:
    assert readable(name) == shown
    sheet([None], [[name]], columns=1)
