"""Jsons of COCO's format with something wrong in them: refused in one line that says where."""

import json
import math
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from tiny import command, write_data

from cvtrain.config import config_dir, options
from cvtrain.data.coco import Coco
from cvtrain.data.source import Augmentations
from cvtrain.errors import CvtrainError

GIVEN: dict[str, Any] = {
    "mean": [0.5] * 3,
    "std": [0.25] * 3,
    "train_json": "train.json",
    "val_json": "val.json",
    "train_dir": "photos",
    "val_dir": "photos",
}
Top = dict[str, Any]


def document() -> Top:
    """Five images of 20x10 pixels and eight boxes, four of each category."""
    images = [{"id": i, "file_name": f"{i}.png", "width": 20, "height": 10} for i in range(5)]
    annotations = [
        {"id": 40 + i, "image_id": i % 4, "category_id": 1 + i % 2, "bbox": [i, 1, 4, 5]}
        | {"iscrowd": 0, "area": 20.0, "segmentation": [[1, 1, 9, 9, 1, 9]]}
        for i in range(8)
    ]
    categories = [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(5):
        Image.new("RGB", (20, 10), (number, 0, 0)).save(tmp_path / f"photos/{number}.png")
    for split in ("train", "val"):
        (tmp_path / f"{split}.json").write_text(json.dumps(document()))
    return tmp_path


def coco(root: Path, **options: Any) -> Coco:
    return Coco(root=str(root), **{**GIVEN, **options})


def refused(root: Path, split: str = "train", name: str = "COCO", **options: Any) -> str:
    """The one line, which comes soon."""
    begun = time.perf_counter()
    with pytest.raises(CvtrainError) as caught:
        coco(root, **options)
    assert time.perf_counter() - begun < 2
    assert (caught.value.code, caught.value.name) == (3, name)
    line = caught.value.line()
    assert line.isprintable()
    assert len(line) < 4000
    if split:
        assert f"{split}.json" in line
    return line


def changed(root: Path, change: Callable[[Top], Any], split: str = "train") -> Path:
    top = document()
    change(top)
    (root / f"{split}.json").write_text(json.dumps(top))
    return root


def test_nothing_is_wrong_with_it(root: Path) -> None:
    assert coco(root).info.counts == (4, 4)


# K1: what is no instances json


@pytest.mark.fault("K1")
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no json"),
        (b"I am no json", "no json: Expecting value: line 1"),
        (b"\xff\xfe\x00{", "no json"),
        (b"\x89PNG\r\n\x1a\n" * 100, "no json"),
        (b"[]", "a list at its top"),
        (b"3", "an? int at its top"),
        (b"[" * 200_000, "no json"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "no json"),
        (b"{}", "the list images is missing"),
        (b'{"images": {}, "annotations": [], "categories": []}', "the list images is a dict"),
        (b'{"images": [], "categories": []}', "the list annotations is missing"),
        (b'{"images": [], "annotations": null, "categories": []}', "annotations is a NoneType"),
        (b'{"images": [1e999, {}]} {"more": 1}', "no json: Extra data"),
        (b'{"images": ' + b"9" * 5000 + b"}", "no json: Exceeds the limit"),
    ],
    ids=range(14),
)
def test_no_json(root: Path, content: bytes, why: str, split: str) -> None:
    (root / f"{split}.json").write_bytes(content)
    assert re.search(why, refused(root, split))


@pytest.mark.fault("K1")
@pytest.mark.parametrize("share", [0.0001, 0.3, 0.9, 0.99999])
def test_a_large_one_that_is_cut_off(root: Path, share: float) -> None:
    top = document()
    top["annotations"] = top["annotations"] * 20_000
    text = json.dumps(top)
    (root / "train.json").write_text(text[: int(share * len(text))])
    assert re.search("cut off|no json", refused(root))


@pytest.mark.fault("K1")
@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_a_wrong_node(root: Path, key: str) -> None:
    for node in (3, None, "image", [1, 2]):
        line = refused(changed(root, lambda top, node=node: top[key].append(node)))
        assert f"{key}[{len(document()[key])}] is {node!r}, no object" in line


REQUIRED = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
NODES = [(key, name) for key, names in REQUIRED.items() for name in names]


@pytest.mark.fault("K1")
@pytest.mark.parametrize(("key", "name"), NODES, ids=map("-".join, NODES))
def test_a_key_that_is_missing_or_of_another_type(root: Path, key: str, name: str) -> None:
    place = rf"{key}\[1\]\.{name}"
    assert re.search(f"{place} is missing", refused(changed(root, lambda t: t[key][1].pop(name))))
    for value in (None, {}, True, "1" if name not in ("file_name", "name") else 1):
        line = refused(changed(root, lambda t, value=value: t[key][1].update({name: value})))
        assert re.search(rf"{place} is {re.escape(repr(value))}", line), line


@pytest.mark.fault("K1")
@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        ("images", "width", 0),
        ("images", "height", -3),
        ("images", "width", 10**400),
        ("images", "file_name", ""),
        ("images", "file_name", "a\0b"),
        ("images", "file_name", "0.png"),  # another's
        ("annotations", "iscrowd", "no"),
        ("annotations", "iscrowd", 2),
        ("annotations", "iscrowd", []),
        ("annotations", "area", "12"),
        ("annotations", "area", -1),
        ("annotations", "area", math.nan),
        ("annotations", "area", math.inf),
        ("annotations", "area", 10**400),
        ("annotations", "area", [3]),
        ("annotations", "image_id", 99),
        ("categories", "name", " "),
    ],
)
def test_a_value_that_cannot_be(root: Path, key: str, name: str, value: Any) -> None:
    line = refused(changed(root, lambda top: top[key][1].update({name: value})))
    assert f"{key}[1].{name} is" in line


@pytest.mark.fault("K1")
def test_twenty_are_named_and_all_are_counted(root: Path) -> None:
    def change(top: Top) -> None:
        top["annotations"] = [{**top["annotations"][0], "id": i, "image_id": 9} for i in range(30)]

    line = refused(changed(root, change))
    assert "30 mistakes: annotations[0].image_id is 9, no image's, annotations[1]" in line
    assert "annotations[19].image_id is 9, no image's and 10 more;" in line
    assert "annotations[20]" not in line


@pytest.mark.fault("K1")
def test_images_that_are_missing(root: Path) -> None:
    (root / "photos/3.png").unlink()
    (root / "photos/4.png").unlink()
    (root / "photos/4.png").symlink_to("nowhere.png")
    line = refused(root)
    assert "2 mistakes: " in line
    for number in (3, 4):
        assert f"images[{number}].file_name is {root}/photos/{number}.png, which is not" in line
    assert "data.root=FOLDER" in line


@pytest.mark.fault("K1")
@pytest.mark.parametrize("size", [(20, 11), (21, 10), (10, 20)])
def test_an_image_of_another_size(root: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(root / "photos/2.png")
    line = refused(root)
    assert f"images[2] 2.png has {size[0]}x{size[1]} pixels" in line
    assert "not 20x10" in line
    assert ("EXIF" in line) == (size == (10, 20))


@pytest.mark.fault("K1")
def test_an_image_that_is_turned_by_its_exif(root: Path) -> None:
    """Its boxes are of the upright image, as it is shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(root / "photos/2.png", exif=exif)
    assert "images[2] 2.png has 10x20 pixels, turned by its EXIF, not 20x10" in refused(root)

    def turned(top: Top) -> None:
        top["images"][2].update(width=10, height=20)

    changed(root, turned)
    changed(root, turned, "val")
    assert coco(root).val(10)[2][0].shape == (3, 20, 10)


@pytest.mark.fault("K1")
def test_what_is_not_there_at_all(root: Path) -> None:
    line = refused(root, "", name="NO-DATA", train_json="other.json")
    assert "other.json" in line
    assert "data.train_json=FILE" in line
    line = refused(root, "", name="NO-DATA", val_dir="val2017")
    assert "val2017" in line
    assert "data.val_dir=NAME" in line


# K2: boxes

BAD_BOXES = [
    ([1, 1, 0, 5], "is 0 pixels wide"),
    ([1, 1, 5, 0.0], "is 0 pixels high"),
    ([1, 1, -3, 5], "is -3 pixels wide"),
    ([1, 1, 3, -5], "is -5 pixels high"),
    ([math.nan, 1, 3, 5], "is not finite"),
    ([1, 1, math.inf, 5], "is not finite"),
    ([1, -math.inf, 2, 5], "is not finite"),
    ([1, 1, 1e30, 5], "reaches far out of its image, 20x10 pixels"),
    ([1e30, 1, 2, 5], "is 0 pixels wide"),
    ([-1e30, 1, 1e31, 5], "reaches far out of its image, 20x10 pixels"),
    ([1, 1, 3, 1e9], "reaches far out of its image, 20x10 pixels"),
    ([1e308, 1, 1e308, 5], "is not finite"),
    ([20, 1, 3, 5], "lies outside its image, 20x10 pixels"),
    ([1, 10, 3, 5], "lies outside its image, 20x10 pixels"),
    ([-3, 1, 3, 5], "lies outside its image, 20x10 pixels"),
    ([1, -5, 3, 5], "lies outside its image, 20x10 pixels"),
    ([1, 1, 3], "is [1, 1, 3], not four numbers"),
    ([1, 1, 3, 4, 5], "not four numbers"),
    ([], "is [], not four numbers"),
    ("1 1 3 5", "is '1 1 3 5', not four numbers"),
    ([1, 1, "3", 5], "not four numbers"),
    ([1, True, 3, 5], "not four numbers"),
    ([1, None, 3, 5], "not four numbers"),
    ([1, [1], 3, 5], "not four numbers"),
    ([10**400, 1, 3, 5], "not four numbers"),
    (None, "is None, not four numbers"),
    ({"x": 1}, "not four numbers"),
    ([0.1] * 100_000, "not four numbers"),
]


@pytest.mark.fault("K2")
@pytest.mark.parametrize(("box", "why"), BAD_BOXES, ids=range(len(BAD_BOXES)))
def test_a_bad_box(root: Path, box: Any, why: str, said: Callable[[], str]) -> None:
    changed(root, lambda top: top["annotations"][5].update(bbox=box))
    line = refused(root)
    assert re.search(r"a mistake: annotations\[5\]\.bbox (is|lies|reaches) ", line)
    assert f"{why};" in line
    assert "data.on_bad_boxes=drop" in line
    source = coco(root, on_bad_boxes="drop")
    assert source.info.counts == (4, 3)
    assert "warning: " in said()
    assert "1 bad boxes of 8 are left out (annotations[5].bbox " in said()
    assert f"{why})" in said()


@pytest.mark.fault("K2")
def test_many_bad_boxes_are_not_dropped(root: Path) -> None:
    """What is wrong with one in a hundred is wrong with the data."""

    def change(top: Top, bad: int = 3) -> None:
        top["annotations"] = [{**top["annotations"][i % 8], "id": i} for i in range(200)]
        for node in top["annotations"][:bad]:
            node["bbox"] = [1, 1, 0, 0]

    changed(root, change)
    line = refused(root, on_bad_boxes="drop")
    assert "3 mistakes: annotations[0].bbox is 0 pixels wide" in line
    assert "more than 1% of its boxes is too much to leave out" in line
    changed(root, lambda top: change(top, 2))
    assert sum(coco(root, on_bad_boxes="drop").info.counts) == 198


@pytest.mark.fault("K2")
def test_other_mistakes_are_not_dropped(root: Path) -> None:
    def change(top: Top) -> None:
        top["annotations"][1]["bbox"] = [1, 1, 0, 0]
        top["annotations"][2]["category_id"] = 77

    line = refused(changed(root, change), on_bad_boxes="drop")
    assert "2 mistakes: annotations[1].bbox is 0 pixels wide, annotations[2].category_id" in line
    assert "on_bad_boxes" not in line


@pytest.mark.fault("K2")
def test_partly_outside_is_clipped_and_counted(root: Path, said: Callable[[], str]) -> None:
    def change(top: Top) -> None:
        for number, box in enumerate(([-2, 3, 5, 4], [18, 8, 5, 3.5], [-1, -1, 30, 20])):
            top["annotations"][number]["bbox"] = box

    source = coco(changed(root, change))
    assert "3 boxes reach out of their images and are clipped" in said()
    split = source.train(10, Augmentations())
    clipped = [[0, 3, 3, 7], [18, 8, 20, 10], [0, 0, 20, 10]]
    assert [split[i][2]["boxes"][0].tolist() for i in range(3)] == clipped


# K3: ids


@pytest.mark.fault("K3")
@pytest.mark.parametrize(
    ("key", "name", "value", "what"),
    [
        ("annotations", "category_id", 3, "annotations[1].category_id is 3, no category's"),
        ("annotations", "category_id", 0, "annotations[1].category_id is 0, no category's"),
        ("annotations", "category_id", -1, "annotations[1].category_id is -1, no category's"),
        ("annotations", "id", 40, "annotations[1].id is 40, that of annotations[0], too"),
        ("images", "id", 0, "images[1].id is 0, that of images[0], too"),
        ("categories", "id", 1, "categories[1].id is 1, that of categories[0], too"),
        ("categories", "name", "ant", "categories[1].name is 'ant', that of categories[0]"),
    ],
)
def test_ids_unknown_and_duplicate(root: Path, key: str, name: str, value: Any, what: str) -> None:
    assert what in refused(changed(root, lambda top: top[key][1].update({name: value})))


@pytest.mark.fault("K3")
def test_an_id_of_zero_is_one_as_any(root: Path) -> None:
    def change(top: Top) -> None:
        top["annotations"][0]["id"] = 0
        top["categories"][0]["id"] = 0
        for node in top["annotations"]:
            node["category_id"] = 2 if node["category_id"] == 2 else 0

    source = coco(changed(root, change))
    assert source.info.classes == ("ant", "bee")
    assert source.info.counts == (4, 4)
    assert source.train(10, Augmentations())[0][1]["labels"].tolist() == [1, 1]


@pytest.mark.fault("K3")
def test_a_category_that_training_does_not_know(root: Path) -> None:
    """One that is used; the list alone may be longer."""
    changed(root, lambda top: top["categories"].append({"id": 9, "name": "wasp"}), "val")
    assert coco(root).info.classes == ("ant", "bee")
    changed(root, lambda top: top["categories"][1].update(name="wasp"), "val")
    line = refused(root, "val")
    assert "annotations[1].category_id is 'wasp', no category of the training json" in line


# K4: nothing to learn


@pytest.mark.fault("K4")
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kind", ["none", "crowds"])
def test_no_box_to_learn(root: Path, kind: str, split: str) -> None:
    def change(top: Top) -> None:
        if kind == "none":
            top["annotations"] = []
        for node in top["annotations"]:
            node["iscrowd"] = 1

    count = 8 if kind == "crowds" else 0
    line = refused(changed(root, change, split), split)
    assert f"not a single box to learn among {count} annotations of 5 images" in line


@pytest.mark.fault("K4")
def test_empty_and_crowded_images_are_kept(root: Path) -> None:
    def change(top: Top) -> None:
        for node in top["annotations"]:
            node["iscrowd"] = int(node["image_id"] == 1)

    split = coco(changed(root, change)).train(10, Augmentations())
    assert len(split) == 5
    batch = split.collate([split[i] for i in range(5)])
    assert [len(target["boxes"]) for target in batch.targets] == [2, 0, 2, 2, 0]
    assert [truth["crowd"].tolist() for truth in batch.truths][1::3] == [[True, True], []]


# K5: masks


@pytest.mark.fault("K5")
@pytest.mark.parametrize(
    "mask",
    [
        {"size": [10, 20], "counts": "\xff\xff\xff"},
        {"size": [100_000, 100_000], "counts": [0, 10_000_000_000]},
        {"size": [100_000, 100_000], "counts": "0000"},
        {"size": [10, 20], "counts": [0, 10**30]},
        {"size": [-1, 0], "counts": [-5]},
        "a mask",
        [[[[]]]],
        [["nan"] * 3],
        None,
    ],
    ids=range(9),
)
def test_masks_are_never_decoded(root: Path, mask: Any) -> None:
    """Nor does the memory for them ever appear."""

    def change(top: Top) -> None:
        for node in top["annotations"]:
            node |= {"segmentation": mask, "iscrowd": int(node["id"] == 41)}

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    split = coco(changed(root, change)).train(10, Augmentations())
    assert [len(split[i][1]["boxes"]) for i in range(5)] == [2, 1, 2, 2, 0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


# The command


def detector() -> str:
    files = {name: config_dir() / f"model/{name}.yaml" for name in options("model")}
    of = {name: yaml.safe_load(file.read_text())["task"] for name, file in files.items()}
    return next(name for name in of if of[name] == "detection")


@pytest.mark.fault("K1")
def test_the_command_ends_before_anything_is_built(tmp_path: Path) -> None:
    typed = write_data("coco", tmp_path)
    file = tmp_path / "coco/annotations/train.json"
    file.write_text(file.read_text()[:-40])
    done = command("data=coco", f"model={detector()}", *typed, "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 3
    last = done.stderr.splitlines()[-1]
    assert re.match(r"cvtrain: error\[COCO\]: .*train\.json; type ", last), last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"on_bad_boxes": "skip"}, "type data.on_bad_boxes=error or data.on_bad_boxes=drop"),
        ({"on_bad": "drop"}, "type data.on_bad=error or data.on_bad=skip"),
        ({"min_box": 0}, "data.min_box=0"),
        ({"long_side": -1}, "data.long_side=-1"),
        ({"square": 0}, "data.square=0"),
    ],
)
def test_options_out_of_range(root: Path, given: dict[str, Any], hint: str) -> None:
    with pytest.raises(CvtrainError) as caught:
        coco(root, **given)
    assert caught.value.code == 2
    assert hint in caught.value.line()
