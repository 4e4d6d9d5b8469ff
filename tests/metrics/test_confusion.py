"""The confusion matrix against counting by hand; its picture, whatever the classes are called."""

import warnings

import numpy as np
import pytest
import torch

from cvtrain.metrics.confusion import add_confusion, draw_confusion, most_frequent

ODD = [
    *("$\\notacommand$", "$x$ and $", "日本語", "emoji 🐕", "tab\tand\nline", "\udcff from bytes"),
    *("", "a" * 300, "back\\slash_{sub}^{sup} %", "\x00\x07"),
]


def test_against_counting_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix, expected = torch.zeros(7, 7, dtype=torch.int64), np.zeros((7, 7), np.int64)
    for count in (100, 1, 0, 33):
        labels, predicted = torch.randint(7, (2, count), generator=generator)
        add_confusion(matrix, labels, predicted)
        for label, prediction in zip(labels.tolist(), predicted.tolist(), strict=True):
            expected[label, prediction] += 1
    assert (matrix.numpy() == expected).all()
    assert matrix.sum() == 134


def colours(picture: np.ndarray) -> dict[tuple[int, ...], int]:
    seen, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(colour): count for colour, count in zip(seen.tolist(), counts, strict=True)}


def test_colours_are_shares_of_a_row() -> None:
    """A class of 2 and one of 2000, each half wrong, look alike."""
    even = colours(draw_confusion(np.array([[50, 50], [50, 50]]), ["a", "b"]))
    uneven = colours(draw_confusion(np.array([[1, 1], [1000, 1000]]), ["a", "b"]))
    most = sorted(even, key=lambda colour: -even[colour])[:2]  # white paper, then the cells
    assert sorted(uneven, key=lambda colour: -uneven[colour])[:2] == most
    assert uneven[most[1]] == pytest.approx(even[most[1]], rel=0.02)


@pytest.mark.parametrize("classes", [1, 2, 10, 20, 21, 61, 150])
def test_any_name_is_drawn_and_nothing_is_said(
    classes: int, capfd: pytest.CaptureFixture[str]
) -> None:
    names = [ODD[i % len(ODD)] for i in range(classes)]
    matrix = np.random.default_rng(0).integers(0, 30, (classes, classes))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = draw_confusion(matrix, names)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert min(picture.shape[:2]) > 300
    assert max(picture.shape[:2]) < 2500
    assert capfd.readouterr() == ("", "")


def test_nothing_is_cut_off() -> None:
    """A margin of white on every side, with short names and long ones."""
    for names in (["0", "1"], ["a long name of a class", "and one more of the kind"]):
        picture = draw_confusion(np.eye(2, dtype=np.int64), names)
        for edge in (picture[:4], picture[-4:], picture[:, :4], picture[:, -4:]):
            assert (edge == 255).all()


def test_every_cell_of_a_thousand_classes_is_there() -> None:
    """A single mistake off the diagonal is a mark of two pixels at least."""
    right = np.eye(1000, dtype=np.int64) * 50
    wrong = right.copy()
    wrong[10, 700] = 5
    names = [str(number) for number in range(1000)]
    # Only the matrix: the list beside it says so in words.
    pictures = [draw_confusion(matrix, names)[:, :2000].astype(int) for matrix in (right, wrong)]
    rows = min(len(picture) for picture in pictures)
    changed = np.abs(pictures[0][-rows:] - pictures[1][-rows:]).max(2) > 25
    assert changed.sum() >= 4


def test_the_most_frequent_mistakes_in_words() -> None:
    matrix = np.array([[50, 3, 0], [9, 40, 1], [0, 0, 50]])
    lines = most_frequent(matrix, ["cat", "dog", "cow"])
    assert [line for line in lines if "→" in line] == [
        "9  dog → cat",
        "3  cat → dog",
        "1  dog → cow",
    ]
