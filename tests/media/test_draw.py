"""What is drawn, by its pixels; what is said in a line."""

import numpy as np
import pytest
from pycocotools import mask as coco

from cvtrain.media.draw import colour, draw, line

GREY = 90
WHERE = [20.0, 30.0, 80.0, 70.0]


def picture(height: int = 400, width: int = 480) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def told(box: list[float] = WHERE, score: float = 0.9, index: int = 0) -> dict:
    return {"objects": [{"class": "cat", "index": index, "score": score, "box": box}]}


def rgb(index: int) -> list[int]:
    return [int(colour(index)[k : k + 2], 16) for k in (1, 3, 5)]


def test_a_box_is_where_it_is_and_the_rest_stays() -> None:
    before = picture()
    drawn = draw(before, told())
    assert (before == GREY).all()  # a copy
    assert drawn.shape == before.shape
    for row, column in ((70, 50), (50, 20), (50, 80), (31, 79)):
        assert drawn[row, column].tolist() == rgb(0)
    assert (drawn[36:66, 26:76] == GREY).all()  # inside
    assert (drawn[80:] == GREY).all()
    assert (drawn[:, 200:] == GREY).all()


@pytest.mark.parametrize(
    "box",
    [
        [0, 0, 480, 400],
        [470, 0, 480, 5],
        [-50, -50, 900, 900],
        [475, 395, 480, 400],
        [10, 10, 10, 10],
        [200, 0, 210, 3],
    ],
)
def test_boxes_at_the_edge_keep_their_names_inside(box: list[float]) -> None:
    drawn = draw(picture(), told([float(side) for side in box]))
    assert drawn.shape == (400, 480, 3)
    own = (drawn == rgb(0)).all(-1)
    rows, columns = np.nonzero(own)
    assert own.sum() > 300  # the paper of a name, at least
    assert columns.max() - columns.min() >= 50  # all of its width
    ink = (drawn.min(-1) > 150) | (drawn.max(-1) < 60)
    assert ink.sum() > 20
    assert rows.max() < 400


def test_names_of_boxes_that_lie_together_do_not_hide_each_other() -> None:
    both = [{"class": "cat", "index": i, "score": 0.9 - i / 10, "box": WHERE} for i in range(3)]
    drawn = draw(picture(), {"objects": both})
    paper = [(drawn == rgb(index)).all(-1).sum() for index in range(3)]
    assert min(paper) > 400  # pixels: most of a name's own
    assert max(paper) < 3 * min(paper)


def test_small_pictures_are_enlarged_and_large_ones_have_large_letters() -> None:
    drawn = draw(picture(40, 50), told([10, 10, 40, 30]))
    assert drawn.shape == (240, 300, 3)
    assert drawn[120, 60].tolist() == rgb(0)  # the left side, six times as far
    own = (draw(picture(2000, 3000), told([900, 900, 2000, 1500])) == rgb(0)).all(-1)
    assert own[:900].sum(0).max() > 60  # pixels: the height of a name


def test_what_is_unsure_is_not_drawn() -> None:
    assert (draw(picture(), told(score=0.3), least=0.5) == GREY).all()


def test_a_mask_tints_what_it_covers() -> None:
    there = np.zeros((400, 480), np.uint8)
    there[200:300, 100:200] = 1
    code = coco.encode(np.asfortranarray(there))
    entry = told([100, 200, 200, 300], index=2)
    entry["objects"][0]["mask"] = {"size": [400, 480], "counts": code["counts"].decode()}
    drawn = draw(picture(), entry)
    assert drawn[250, 150].tolist() == [(GREY + own) // 2 for own in rgb(2)]
    assert (drawn[320:] == GREY).all()


TOP = [
    {"class": "tabby", "index": 1, "probability": 0.9},
    {"class": "tiger\ncat", "index": 2, "probability": 0.1},
]


def test_classes_stand_below_a_picture_and_on_a_frame() -> None:
    below = draw(picture(), {"top": TOP})
    assert (below[:400] == GREY).all()
    assert below.shape[0] > 400 + 2 * 12
    on = draw(picture(), {"top": TOP}, over=True)
    assert on.shape == (400, 480, 3)
    assert (on[:18, :60] != GREY).any()
    assert (on[40:] == GREY).all()


def test_a_single_box_has_its_class() -> None:
    drawn = draw(picture(), {"top": TOP, "box": WHERE}, over=True)
    assert drawn[70, 50].tolist() == rgb(1)


def test_a_name_longer_than_the_picture_is_cut() -> None:
    long = [{"class": "x" * 500, "index": 0, "probability": 1.0}]
    assert draw(picture(), {"top": long}).shape[1] == 480
    assert draw(picture(), {"top": long}, over=True).shape == (400, 480, 3)
    entry = told()
    entry["objects"][0]["class"] = "x" * 500
    assert draw(picture(), entry).shape == (400, 480, 3)


def test_lines() -> None:
    objects = [
        {"class": name, "score": s} for name, s in (("car", 0.9), ("bus", 0.8), ("car", 0.2))
    ]
    assert line({"objects": objects}) == "2 car, 1 bus"
    assert line({"objects": objects}, 0.5) == "1 car, 1 bus"
    assert line({"objects": []}) == "nothing"
    assert line({"top": TOP}).startswith("tabby (90.0 %), ")
    columns = [{"column": "kind", "class": "ant", "index": 0, "probability": 0.5}]
    assert line({"columns": columns}) == "kind ant (50.0 %)"
