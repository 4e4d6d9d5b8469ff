"""COCO's format: what is read of a json, against the json itself and pycocotools."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cvtrain.data.coco import Coco
from cvtrain.data.source import Augmentations

GIVEN: dict[str, Any] = {
    "mean": [0.5] * 3,
    "std": [0.25] * 3,
    "train_json": "train.json",
    "val_json": "val.json",
    "train_dir": "photos",
    "val_dir": "photos",
}
# Ids have gaps and stand in no order; those of the validation json are others.
CATEGORIES = [{"id": 90, "name": "zebra"}, {"id": 1, "name": "cat"}, {"id": 7, "name": "ant"}]
OTHERS = [{"id": 3, "name": "ant"}, {"id": 5, "name": "zebra"}, {"id": 8, "name": "yak"}]


def annotation(number: int, image: int, category: int, box: list[float], **more: Any) -> Any:
    said = {"iscrowd": 0, "area": 5.0, "segmentation": [[1, 1, 2, 2, 3, 1]], **more}
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, **said}


def document(categories: list[Any], annotations: list[Any]) -> dict[str, Any]:
    """Three images: 20 wide and 10 high, 12x16, and one of nothing."""
    sizes = {10: (20, 10), 4: (12, 16), 7: (8, 8)}
    images = [
        {"id": id_, "file_name": f"{id_}.png", "width": width, "height": height}
        for id_, (width, height) in sizes.items()
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


TRAIN = document(
    CATEGORIES,
    [
        annotation(0, 4, 7, [1, 2, 3, 4], area=11.5),
        annotation(31, 10, 90, [0, 0, 20, 10]),
        annotation(5, 4, 1, [2.5, 3, 9, 12], iscrowd=1),
        annotation(6, 10, 1, [15, 5, 10, 2]),  # 5 pixels of it are outside
        annotation(8, 4, 1, [11, 15, 1, 1]),
    ],
)
VAL = document(OTHERS, [annotation(1, 7, 5, [1, 1, 2, 2]), annotation(2, 7, 3, [4, 4, 3, 3])])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path, TRAIN, VAL)


def write(root: Path, train: dict[str, Any], val: dict[str, Any]) -> Path:
    (root / "photos").mkdir(exist_ok=True)
    for image in document([], [])["images"]:
        size = image["width"], image["height"]
        Image.new("RGB", size, (image["id"], 100, 200)).save(root / "photos" / image["file_name"])
    (root / "train.json").write_text(json.dumps(train))
    (root / "val.json").write_text(json.dumps(val))
    return root


def coco(root: Path, **options: Any) -> Coco:
    return Coco(root=str(root), **{**GIVEN, **options})


@pytest.mark.fault("K3")
def test_categories_in_the_order_of_their_ids_joined_by_name(root: Path) -> None:
    source = coco(root)
    assert source.info.classes == ("cat", "ant", "zebra")
    assert source.info.counts == (2, 1, 1)
    split = source.val(8)
    truths = split.collate([split[i] for i in range(3)]).truths
    assert [truth["labels"].tolist() for truth in truths] == [[], [], [3, 2]]


def test_what_is_learnt_and_what_is_true(root: Path) -> None:
    source = coco(root)
    split = source.train(10, Augmentations())
    batch = split.collate([split[i] for i in range(3)])
    assert [image.shape for image in batch.images] == [(3, 10, 20), (3, 13, 10), (3, 10, 10)]
    assert [image.dtype for image in batch.images] == [torch.uint8] * 3
    assert [image[:, 0, 0].tolist() for image in batch.images] == [
        [n, 100, 200] for n in (10, 4, 7)
    ]
    wide, tall, empty = batch.truths
    # As in its file; in the order of the json, clipped to the image.
    assert wide["size"].tolist() == [10, 20]
    assert wide["boxes"].tolist() == [[0, 0, 20, 10], [15, 5, 20, 7]]
    assert wide["labels"].tolist() == [3, 1]
    assert tall["boxes"].tolist() == [[1, 2, 4, 6], [2.5, 3, 11.5, 15], [11, 15, 12, 16]]
    assert tall["labels"].tolist() == [2, 1, 1]
    assert tall["crowd"].tolist() == [False, True, False]
    assert tall["area"].tolist() == [11.5, 5, 5]
    assert tall["difficult"].tolist() == [False] * 3
    assert batch.targets[0]["boxes"].tolist() == [[0, 0, 20, 10], [15, 5, 20, 7]]
    # Neither the crowd nor what is less than a pixel of the resized image.
    assert batch.targets[1]["labels"].tolist() == [2]
    expected = torch.tensor([1 * 10 / 12, 2 * 13 / 16, 4 * 10 / 12, 6 * 13 / 16])
    assert torch.allclose(batch.targets[1]["boxes"][0], expected)
    for each in (empty, batch.targets[2]):
        assert each["boxes"].shape == (0, 4)
        assert each["labels"].shape == (0,)
        assert each["boxes"].dtype == torch.float32
        assert each["labels"].dtype == torch.int64
    assert all(type(t) is torch.Tensor for target in batch.targets for t in target.values())
    assert all(type(image) is torch.Tensor for image in batch.images)
    assert batch.ids.tolist() == [0, 1, 2]
    assert batch.proposals is None
    larger = coco(root, min_box=4).train(10, Augmentations())
    assert [larger[i][1]["labels"].tolist() for i in range(2)] == [[3], []]


def test_what_is_done_is_said(root: Path, said: Callable[[], str]) -> None:
    train = json.loads(json.dumps(TRAIN))
    del train["annotations"][0]["area"], train["annotations"][3]["area"]
    del train["annotations"][1]["iscrowd"]
    source = coco(write(root, train, VAL))
    assert "2 annotations without area have that of their boxes" in said()
    assert "1 annotations without iscrowd count as single objects" in said()
    assert "1 boxes reach out of their images and are clipped" in said()
    assert "3 classes, 3 train images with 4 boxes, 3 val images with 2 boxes" in said()
    truths = [source.train(10, Augmentations())[i][2] for i in range(2)]
    assert truths[0]["area"].tolist() == [5, 10]  # the second of what is left of its box
    assert truths[1]["area"].tolist() == [12, 5, 5]


def test_names_and_pictures(root: Path) -> None:
    source = coco(root)
    assert source.name_of(1) == str(root / "photos/4.png")
    assert source.name_of(2, "val") == str(root / "photos/7.png")
    image = source.image_of(0, "train")
    assert image.shape == (3, 10, 20)
    assert image[:, 0, 0].tolist() == [10, 100, 200]


@pytest.mark.parametrize(
    "change",
    [
        lambda top: top["annotations"][0].update(bbox=[1, 2, 3, 5]),
        lambda top: top["annotations"][0].update(category_id=1),
        lambda top: top["annotations"][0].update(iscrowd=1),
        lambda top: top["annotations"].pop(),
        lambda top: top["images"].reverse(),
        lambda top: top["categories"][0].update(name="horse"),
    ],
)
def test_the_fingerprint_is_of_what_is_learnt(root: Path, change: Callable[[Any], Any]) -> None:
    before = coco(root).info.fingerprint
    assert coco(root).info.fingerprint == before
    train = json.loads(json.dumps(TRAIN))
    train["annotations"][0]["segmentation"] = []
    write(root, train, VAL)
    assert coco(root).info.fingerprint == before
    change(train)
    write(root, train, document(OTHERS, VAL["annotations"][1:]))
    assert coco(root).info.fingerprint != before


def test_a_bad_image_is_left_out_with_its_boxes(root: Path, said: Callable[[], str]) -> None:
    (root / "photos/10.png").write_bytes((root / "photos/10.png").read_bytes()[:40])
    source = coco(root, on_bad="skip")
    assert len(source.bad) == 1
    assert "10.png" in source.bad[0]
    assert source.info.counts == (1, 1, 0)
    split = source.train(16, Augmentations())
    assert len(split) == 2
    assert [split[i][2]["labels"].tolist() for i in range(2)] == [[2, 1, 1], []]
    assert source.name_of(0) == str(root / "photos/4.png")
    assert "left out" in said()


DATA = Path(os.environ.get("CVTRAIN_DATA", "nowhere")) / "coco"


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="CVTRAIN_DATA has no coco/")
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_images_against_pycocotools(split: str) -> None:
    """Every box, label, area and crowd of every image, as the official reader has them."""
    reader = pytest.importorskip("pycocotools.coco")
    source = Coco(root=str(DATA), mean=[0.5] * 3, std=[0.25] * 3, long_side=333)
    theirs = reader.COCO(DATA / f"annotations/instances_{split}2017.json")
    files = source.train(200, Augmentations()) if split == "train" else source.val(200)
    names = [category["name"] for category in theirs.loadCats(sorted(theirs.getCatIds()))]
    assert source.info.classes == tuple(names)
    assert len(files) == len(theirs.imgs)
    for number, image in enumerate(theirs.dataset["images"]):
        assert source.name_of(number, split).endswith(image["file_name"])
        expected = theirs.loadAnns(theirs.getAnnIds(imgIds=[image["id"]]))
        pixels, target, truth, index = files[number]
        assert index == number
        assert truth["size"].tolist() == [image["height"], image["width"]]
        boxes = np.array([a["bbox"] for a in expected], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        # To the hundredth of a pixel to which COCO rounds: some end that far outside.
        assert np.allclose(truth["boxes"].numpy(), boxes, atol=0.011)
        labels = [names[label - 1] for label in truth["labels"].tolist()]
        assert labels == [theirs.cats[a["category_id"]]["name"] for a in expected]
        assert truth["crowd"].tolist() == [bool(a["iscrowd"]) for a in expected]
        assert np.allclose(truth["area"].numpy(), [a["area"] for a in expected])
        height, width = pixels.shape[1:]
        assert min(height, width) == 200 or max(height, width) == 333
        single = boxes[[not a["iscrowd"] for a in expected]]
        scaled = single * np.array([width / image["width"], height / image["height"]] * 2)
        sides = scaled[:, 2:] - scaled[:, :2]
        large = (sides >= 1.05).all(1)
        assert len(target["boxes"]) >= large.sum()
        if (sides < 0.95).any(1).sum() + large.sum() == len(sides):
            assert np.allclose(target["boxes"].numpy(), scaled[large], atol=0.05)
