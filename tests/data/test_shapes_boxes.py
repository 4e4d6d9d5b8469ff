"""The drawn COCO tree: whole or absent, reproducible, its boxes and masks true to its pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvtrain.data import shapes_boxes_draw
from cvtrain.data.shapes_boxes import ShapesBoxes
from cvtrain.data.shapes_boxes_draw import draw_annotated, draw_instances
from cvtrain.data.shapes_draw import CLASSES
from cvtrain.data.source import Augmentations
from cvtrain.errors import MachineError

GIVEN: dict[str, Any] = {"size": 160, "mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "set"
    draw_instances(root, size=160, train=260, val=20)
    return root


def document(root: Path, split: str = "train2017") -> dict[str, Any]:
    return json.loads((root / f"annotations/instances_{split}.json").read_text())


def contents(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file()}


def decoded(segmentation: dict[str, Any]) -> np.ndarray:
    """A mask bool `[H, W]` from its run lengths, column by column."""
    values = np.arange(len(segmentation["counts"])) % 2 == 1
    flat = np.repeat(values, segmentation["counts"])
    return flat.reshape(segmentation["size"][::-1]).T


def test_the_promised_tree(drawn: Path) -> None:
    names = [f"train2017/{i:012d}.jpg" for i in range(1, 261)]
    names += [f"val2017/{i:012d}.jpg" for i in range(1, 21)]
    jsons = {f"annotations/instances_{split}2017.json" for split in ("train", "val")}
    assert set(contents(drawn)) == {*names, *jsons}
    assert len(set(contents(drawn).values())) == 282
    with Image.open(drawn / names[0]) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (160, 160))
    top = document(drawn)
    assert top.keys() == {"images", "annotations", "categories"}
    assert [c["name"] for c in top["categories"]] == list(CLASSES)
    assert [a["id"] for a in top["annotations"]] == list(range(1, len(top["annotations"]) + 1))


def test_what_is_in_them(drawn: Path) -> None:
    """Up to eight objects of each class and of 8 to 96 pixels, some images empty, some crowded."""
    top = document(drawn)
    of = [[a for a in top["annotations"] if a["image_id"] == i["id"]] for i in top["images"]]
    counts = [sum(not a["iscrowd"] for a in each) for each in of]
    assert set(counts) == set(range(9))
    assert 3 <= sum(not each for each in of) <= 20
    crowds = [a for a in top["annotations"] if a["iscrowd"]]
    assert 5 <= len(crowds) <= 26
    single = [a for a in top["annotations"] if not a["iscrowd"]]
    sides = np.array([max(a["bbox"][2:]) for a in single])
    assert sides.min() >= 6
    assert sides.max() <= 97
    assert (sides < 16).mean() < 0.12
    # Each of COCO's three ranges of size, but for the largest, has its share.
    areas = np.array([a["area"] for a in single])
    assert (areas < 32**2).mean() > 0.3
    assert (areas > 32**2).mean() > 0.2
    classes = np.bincount([a["category_id"] for a in single], minlength=9)[1:]
    assert classes.min() > 0.07 * len(single)
    masks = [a["segmentation"] for a in single]
    assert 0.1 < sum(isinstance(mask, list) for mask in masks) / len(masks) < 0.95


def test_boxes_are_tight_around_their_masks(drawn: Path) -> None:
    for annotation in document(drawn)["annotations"]:
        left, top, width, height = annotation["bbox"]
        if isinstance(annotation["segmentation"], dict):
            mask = decoded(annotation["segmentation"])
            assert mask.shape == (160, 160)
            assert mask.sum() == annotation["area"]
            across, down = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
            assert [left, left + width] == [across[0], across[-1] + 1]
            assert [top, top + height] == [down[0], down[-1] + 1]
        else:  # the outline reaches into pixels that it covers by less than half
            corners = np.array(annotation["segmentation"][0]).reshape(-1, 2)
            low, high = corners.min(0), corners.max(0)
            assert np.abs([left, top] - low).max() < 2.5
            assert np.abs([left + width, top + height] - high).max() < 2.5


def test_masks_as_pycocotools_reads_them(drawn: Path) -> None:
    reader = pytest.importorskip("pycocotools.coco")
    coco = reader.COCO(drawn / "annotations/instances_train2017.json")
    off = []
    for annotation in list(coco.anns.values())[:400]:
        mask = coco.annToMask(annotation).astype(bool)
        if isinstance(annotation["segmentation"], dict):
            assert mask.sum() == annotation["area"]
        off.append(abs(mask.sum() - annotation["area"]) / annotation["area"])
    assert np.quantile(off, 0.9) < 0.1


def test_objects_stand_out_in_the_pictures(drawn: Path) -> None:
    """Inside a mask it is lighter or darker than around it, by 0.4 of the range when drawn."""
    differences = []
    annotations = document(drawn)["annotations"]
    taken = {image: np.zeros((160, 160), bool) for image in range(1, 261)}
    for annotation in annotations:
        left, top, width, height = annotation["bbox"]
        taken[annotation["image_id"]][top : top + height, left : left + width] = True
    for annotation in annotations:
        if isinstance(annotation["segmentation"], dict):
            file = drawn / f"train2017/{annotation['image_id']:012d}.jpg"
            grey = np.asarray(Image.open(file).convert("L")).astype(float) / 255
            ground = np.median(grey[~taken[annotation["image_id"]]])
            inside = np.median(grey[decoded(annotation["segmentation"])])
            differences.append(abs(inside - ground))
    assert len(differences) > 100
    assert np.quantile(differences, 0.02) > 0.25


def test_overlaps_are_light() -> None:
    """No object is mostly covered: that would be a riddle."""
    for seed in range(40):
        _, annotations = draw_annotated(np.random.default_rng(seed), 160)
        boxes = [a["bbox"] for a in annotations]
        for annotation in annotations:
            if not annotation["iscrowd"] and isinstance(annotation["segmentation"], dict):
                box = annotation["bbox"]
                assert annotation["area"] > 0.1 * box[2] * box[3]
        assert len({tuple(box) for box in boxes}) == len(boxes)


def test_an_image_depends_on_its_number_alone(drawn: Path, tmp_path: Path) -> None:
    draw_instances(tmp_path / "few", size=160, train=5, val=3)
    few, many = contents(tmp_path / "few"), contents(drawn)
    pictures = {name for name in few if name.endswith(".jpg")}
    assert len(pictures) == 8
    assert all(few[name] == many[name] for name in pictures)
    annotations = document(tmp_path / "few")["annotations"]
    assert annotations == document(drawn)["annotations"][: len(annotations)]


def test_a_draw_that_ends_early_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([draw_annotated] * 3)
    monkeypatch.setattr(shapes_boxes_draw, "draw_annotated", lambda *a: next(answers)(*a))
    with pytest.raises(StopIteration):
        draw_instances(tmp_path / "deep/set", size=64, train=9, val=2)
    assert list(tmp_path.iterdir()) == []


def test_another_process_has_drawn_it_meanwhile(tmp_path: Path) -> None:
    draw_instances(tmp_path / "set", size=32, train=3, val=1)
    before = contents(tmp_path)
    draw_instances(tmp_path / "set", size=32, train=4, val=1)
    assert contents(tmp_path) == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/mine.jpg").write_text("mine")
    with pytest.raises(OSError, match="not empty"):
        draw_instances(tmp_path / "photos", size=32, train=3, val=1)


def test_drawn_once_and_read_as_coco(tmp_path: Path) -> None:
    first = ShapesBoxes(root=str(tmp_path), train=24, val=9, **GIVEN)
    assert first.root == tmp_path / "v1-160px-24-9"
    before = contents(tmp_path)
    again = ShapesBoxes(root=str(tmp_path), train=24, val=9, **GIVEN)
    assert contents(tmp_path) == before
    assert again.info == first.info
    assert (first.info.classes, first.info.image_size) == (CLASSES, 160)
    single = [a for a in document(first.root)["annotations"] if not a["iscrowd"]]
    assert sum(first.info.counts) == len(single)
    split = first.train(160, Augmentations())
    assert split[0][0].shape == (3, 160, 160)
    expected = [a["bbox"] for a in single if a["image_id"] == 1]
    expected = [[x, y, x + w, y + h] for x, y, w, h in expected]
    assert split[0][1]["boxes"].tolist() == expected
    ShapesBoxes(root=str(tmp_path), train=25, val=9, **GIVEN)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot draw the data set") as caught:
        ShapesBoxes(root=str(tmp_path / "file/deep"), train=8, val=8, **GIVEN)
    assert caught.value.name == "NOT-WRITABLE"
