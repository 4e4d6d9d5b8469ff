"""Boxes from outside the network: windows, selective search, files; they move with the image."""

import json
import logging
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torchvision.transforms import v2

from cvtrain.data.augment import HorizontalFlip
from cvtrain.data.box_transforms import LargeScaleJitter
from cvtrain.data.coco import Coco
from cvtrain.data.images import read_image
from cvtrain.data.loader import FileLoader, Order
from cvtrain.data.objects import Objects, Rows
from cvtrain.data.proposal_files import Stored, compute_once, names_of, read_npz, write_npz
from cvtrain.data.proposals import Grid, Proposer, Split, recalls, windows
from cvtrain.data.scan import Scan, look
from cvtrain.data.shapes_boxes_draw import draw_annotated, draw_instances
from cvtrain.data.source import Augmentations
from cvtrain.data.voc import Voc
from cvtrain.errors import ConfigError, CvtrainError, DataError

SIZES = [(40, 30), (30, 40), (64, 48)]  # width, height
BOXES = [
    np.array([[1, 2, 30, 20]]),
    np.zeros((0, 4), int),
    np.array([[0, 0, 9, 9], [5, 6, 64, 48]]),
]


def scan(root: Path, sizes: list[tuple[int, int]] = SIZES) -> Scan:
    """Grey images with a white rectangle in the middle."""
    found = Scan(root, [])
    (root / "images").mkdir(parents=True, exist_ok=True)
    for number, (width, height) in enumerate(sizes):
        image = Image.new("RGB", (width, height), (90, 90, 90))
        box = (width // 4, height // 4, 3 * width // 4, 3 * height // 4)
        ImageDraw.Draw(image).rectangle(box, fill="white")
        file = root / "images" / f"{number}.png"
        image.save(file)
        look(found, file, number, max_pixels=10**6)
    return found


def none_in(found: Scan) -> Objects:
    return Rows().sort(len(found.files))


def iou(a: Any, b: Any) -> float:
    """By the definition."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def refusal(method: str, split: Split, *others: Split, **settings: Any) -> str:
    splits = {each.name: each for each in (split, *others)}
    with pytest.raises(CvtrainError) as caught:
        Proposer(method, **settings).boxes(split.name, splits)
    line = caught.value.line()
    assert "\n" not in line
    return line


# Windows


@pytest.mark.parametrize("count", [1, 37, 500, 2000])
@pytest.mark.parametrize(("height", "width"), [(160, 160), (480, 640), (600, 90), (1, 1)])
def test_windows_fill_the_image(height: int, width: int, count: int) -> None:
    boxes = windows(height, width, count)
    assert boxes.shape == (count, 4)
    assert boxes.dtype == np.float32
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= np.float32([width, height]) * 1.00001).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    if count >= 500:  # every corner is in one
        assert boxes[:, :2].min() == 0
        assert np.allclose(boxes[:, 2:].max(0), (width, height))


def test_an_object_is_met_by_a_window_of_its_size() -> None:
    """Of the sizes of the windows themselves at worst half a step away: (3/4)^2 of it shared."""
    boxes = windows(300, 300, 2000)
    side = 300 / 1.6**2
    rng = np.random.default_rng(0)
    for left, top in rng.uniform(0, 300 - side, (50, 2)):
        best = max(iou(box, (left, top, left + side, top + side)) for box in boxes)
        assert best >= 0.75**2 / (2 - 0.75**2) - 1e-4


def test_the_grid_meets_nine_shapes_of_ten() -> None:
    rows = Rows()
    for image in range(40):
        for each in draw_annotated(np.random.default_rng([7, image]), 160)[1]:
            left, top, width, height = each["bbox"]
            box = (left, top, left + width, top + height)
            rows.add(image, box, 1, crowd=bool(each["iscrowd"]))
    objects = rows.sort(40)
    sizes = np.full((40, 2), 160)
    at_1000, images, count = recalls(Grid(sizes, 1000), objects)
    assert (images, count) == (40, 1000)
    assert at_1000[0.5] >= 0.88  # 0.913 of many
    assert recalls(Grid(sizes, 2000), objects)[0][0.5] >= 0.93
    told = objects.boxes[~objects.crowd]
    best = [max(iou(box, truth) for box in windows(160, 160, 1000)) for truth in told[:40]]
    first = Rows()
    for truth in told[:40].tolist():
        first.add(0, tuple(truth), 1)
    assert recalls(Grid(sizes, 1000), first.sort(1))[0][0.5] == np.mean(np.array(best) >= 0.5)


def test_recalls_by_hand() -> None:
    rows = Rows()
    rows.add(0, (0, 0, 10, 10), 1)  # 0.6 with the first
    rows.add(0, (50, 50, 60, 60), 1)  # nothing
    rows.add(1, (0, 0, 10, 10), 2)  # in an image without any
    rows.add(2, (0, 0, 20, 20), 1)  # exactly
    rows.add(2, (40, 40, 60, 60), 1, crowd=True)
    rows.add(2, (40, 40, 60, 60), 1, difficult=True)
    boxes = Stored(
        np.array([0, 1, 1, 3]), np.float32([[0, 0, 10, 6], [0, 0, 20, 20], [9, 9, 10, 10]])
    )
    assert recalls(boxes, rows.sort(3)) == ({0.5: 0.5, 0.7: 0.25}, 3, 1.0)
    assert recalls(boxes, Rows().sort(0)) == ({0.5: 1.0, 0.7: 1.0}, 0, 0.0)


# Files


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = scan(tmp_path)
    sizes = np.array([size[::-1] for size in SIZES])
    write_npz(tmp_path / "a.npz", names_of(found), sizes, BOXES)
    read = read_npz(tmp_path / "a.npz", found)
    assert read.boxes.dtype == np.int16
    assert [read.of(i).tolist() for i in range(3)] == [box.tolist() for box in BOXES]
    assert read.of(0).dtype == np.float32
    halves = [box + 0.5 for box in BOXES]
    write_npz(tmp_path / "b.npz", names_of(found), sizes, halves)
    read = read_npz(tmp_path / "b.npz", found)
    assert [read.of(i).tolist() for i in range(3)] == [box.tolist() for box in halves]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz", "images"]


def test_a_file_of_more_images_in_another_order(tmp_path: Path) -> None:
    """As one of a trained network for both splits, and a count of which the best are taken."""
    found = scan(tmp_path)
    names = ["elsewhere/x.png", *names_of(found)[::-1]]
    sizes = np.array([(9, 9), *(size[::-1] for size in SIZES[::-1])])
    write_npz(tmp_path / "a.npz", names, sizes, [np.array([[0, 0, 1, 1]]), *BOXES[::-1]])
    split = Split("val", found, none_in(found), [])
    boxes = Proposer(str(tmp_path / "a.npz"), 1).boxes("val", {"val": split})
    assert [boxes.of(i).tolist() for i in range(3)] == [box[:1].tolist() for box in BOXES]


def broken(file: Path, **changes: Any) -> None:
    """The same .npz with other arrays; None leaves one out."""
    with np.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files} | changes
    with file.open("wb") as out:
        np.savez(out, **{name: array for name, array in arrays.items() if array is not None})


DAMAGES: dict[str, tuple[Any, str]] = {
    "cut": (lambda f: f.write_bytes(f.read_bytes()[:-200]), "no .npz of proposals"),
    "empty": (lambda f: f.write_bytes(b""), "no .npz of proposals"),
    "text": (lambda f: f.write_text("boxes"), "no .npz of proposals"),
    "array": (lambda f: np.save(f.open("wb"), np.zeros(4)), "no .npz of proposals"),
    "bit": (lambda f: flip(f), "no .npz of proposals"),
    "gone": (lambda f: f.unlink(), "is neither a method nor a file"),
    "zip": (lambda f: zipfile.ZipFile(f, "w").close(), "names"),
    "no boxes": (lambda f: broken(f, boxes=None), "boxes is missing"),
    "flat": (lambda f: broken(f, boxes=np.zeros(12)), "boxes are float64 [12]"),
    "texts": (lambda f: broken(f, boxes=np.array([["a"] * 4] * 3)), "boxes are <U1 [3, 4]"),
    "nan": (lambda f: broken(f, boxes=np.full((3, 4), np.nan)), "boxes[0] is [nan"),
    "turned": (lambda f: broken(f, boxes=np.array([[0, 0, 1, 1], [5, 0, 2, 1], [0, 0, 1, 1]])),
               "boxes[1] is [5, 0, 2, 1]"),
    "offsets": (lambda f: broken(f, offsets=np.array([0, 2, 1, 3])), "do not divide its 3 boxes"),
    "beyond": (lambda f: broken(f, offsets=np.array([0, 1, 1, 9])), "do not divide its 3 boxes"),
    "few": (lambda f: broken(f, offsets=np.array([0, 3])), "offsets are int64 [2], not [4]"),
    "sizes": (lambda f: broken(f, sizes=np.zeros((2, 2), int)), "sizes are int64 [2, 2]"),
    "names": (lambda f: broken(f, names=np.arange(3)), "names are no list of texts"),
    "others": (lambda f: broken(f, names=np.array(["images/0.png", "b", "c"])),
               "lacks 2 of 3 images, as images/1.png"),
    "scaled": (lambda f: broken(f, sizes=np.array([(60, 80), (80, 60), (96, 128)])),
               "has images/0.png as 80x60 pixels, which has 40x30"),
}  # fmt: skip


def flip(file: Path) -> None:
    """A bit of the first box."""
    data = bytearray(file.read_bytes())
    data[data.index(b"\n", data.index(b"boxes.npy")) + 3] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_refused(tmp_path: Path, damage: str) -> None:
    found = scan(tmp_path)
    file = tmp_path / "a.npz"
    write_npz(file, names_of(found), np.array([size[::-1] for size in SIZES]), BOXES)
    change, expected = DAMAGES[damage]
    change(file)
    line = refusal(str(file), Split("train", found, none_in(found), []))
    assert expected in line
    assert "type data.proposals=" in line
    assert str(file) in line


def results(file: Path, *nodes: Any) -> str:
    file.write_text(json.dumps(list(nodes)))
    return str(file)


def result(image: int | str, score: float | None = None, box: Any = (1, 2, 3, 4)) -> dict[str, Any]:
    node = {"image_id": image, "bbox": list(box)}
    return node if score is None else {**node, "score": score}


def test_a_json_of_results(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = scan(tmp_path)
    split = Split("val", found, none_in(found), [7, 5, 9])
    file = results(
        tmp_path / "val.json",
        result(5, 0.2),
        result(9, 0.5, (0, 0, 64.5, 48)),
        result(5, 0.9, (0, 0, 8, 8)),
        result(1000, 1.0),  # of another split
    )
    for method in (file, str(tmp_path)):  # which is a folder of one for each split
        boxes = Proposer(method).boxes("val", {"val": split})
        assert [boxes.of(i).tolist() for i in range(3)] == [
            [],
            [[0, 0, 8, 8], [1, 2, 4, 6]],
            [[0, 0, 64.5, 48]],
        ]
    assert "nothing for 1 of 3 images" in caplog.text
    other = Split("train", found, none_in(found), [4, 9, 3])
    assert "train images, both of which have 9" in refusal(file, split, other)
    Proposer(str(tmp_path)).boxes("val", {"val": split, "train": other})
    assert "has neither train.npz nor train.json" in refusal(str(tmp_path), other, split)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[", "cannot be read as a json"),
        ("{}", "a dict at its top"),
        ("[]", "no box for any of 3 images, of ids as 7, among 0"),
        ("[1]", "[0] is 1"),
        ('[{"image_id": "7", "bbox": [1, 2, 3, 4]}]', "no box for any of 3 images"),
        ('[{"image_id": 7.0, "bbox": [1, 2, 3, 4]}]', "no object with an image_id"),
        ('[{"image_id": 7, "bbox": [1, 2, 3]}]', "[0] has bbox [1, 2, 3]"),
        ('[{"image_id": 7, "bbox": [1, 2, 3, NaN]}]', "[0] has bbox [1, 2, 3, nan]"),
        ('[{"image_id": 7, "bbox": [1, 2, 3, 4], "score": "a"}]', "and score 'a'"),
        ('[{"image_id": 7, "bbox": [1, 2, 3, 0]}]', "[0].bbox is 3x0 pixels"),
    ],
)
def test_a_json_that_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    found = scan(tmp_path)
    (tmp_path / "a.json").write_text(text)
    line = refusal(str(tmp_path / "a.json"), Split("val", found, none_in(found), [7, 5, 9]))
    assert expected in line
    assert "error[PROPOSALS]" in line


@pytest.mark.parametrize(
    ("method", "settings", "expected"),
    [
        (
            "gird",
            {},
            "data.proposals=gird is neither a method nor a file; type data.proposals=grid",
        ),
        ("grid", {"count": 0}, "data.proposals_count=0"),
        ("grid", {"count": 10**9}, "data.proposals_count=1000000000"),
        ("grid", {"smallest": 0}, "data.proposals_min=0"),
    ],
)
def test_settings_that_are_refused(method: str, settings: dict[str, int], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        Proposer(method, **settings)


# Computed once

SLOW = """
import sys, time
from pathlib import Path
import numpy as np
from cvtrain.data.proposal_files import compute_once
from cvtrain.data.scan import Scan, look

root, log, wait = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
found = Scan(root, [])
for number in range(40):
    look(found, root / "images" / f"{number}.png", number, max_pixels=10**6)

def propose(image):
    with log.open("a") as file:
        file.write(f"{image}\\n")
    time.sleep(wait)
    rng = np.random.default_rng(image)
    corner = rng.integers(0, 10, (image % 5, 2))
    return np.concatenate([corner, corner + 1 + rng.integers(0, 9, corner.shape)], 1)

read = compute_once(root / "proposals" / "a.npz", found, "key", propose, threads=2)
print(read.boxes.sum(), len(read.boxes))
"""


def start(root: Path, log: str, wait: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, str(root), str(root / log), str(wait)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def asked(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def test_one_that_was_killed_goes_on_and_two_at_once_compute_once(tmp_path: Path) -> None:
    scan(tmp_path, [(20, 20)] * 40)
    folder = tmp_path / "proposals"
    killed = start(tmp_path, "first", 0.05)
    while len(asked(tmp_path / "first")) < 20 and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert sorted(path.name for path in folder.iterdir()) == ["a.npz.lock", "a.npz.part"]
    with (folder / "a.npz.part").open("ab") as part:
        part.write(b"\x93NUMPY\x01\x00v")  # the beginning of one that was not finished
    both = [start(tmp_path, f"second{i}", 0.01) for i in range(2)]
    said = {process.communicate(timeout=60)[0] for process in both}
    assert len(said) == 1, said
    again = [asked(tmp_path / f"second{i}") for i in range(2)]
    assert min(map(len, again)) == 0  # it waited for the other
    rest = max(again, key=len)
    assert 0 < len(rest) < 30
    assert {*asked(tmp_path / "first"), *rest} == set(range(40))
    assert [path.name for path in folder.iterdir()] == ["a.npz"]
    found = scan(tmp_path, [(20, 20)] * 40)
    whole = compute_once(folder / "a.npz", found, "key", pytest.fail, threads=1)
    assert [len(whole.of(i)) for i in range(40)] == [i % 5 for i in range(40)]
    assert whole.of(38).tolist() == expected_of(38)


def expected_of(image: int) -> list[list[float]]:
    rng = np.random.default_rng(image)
    corner = rng.integers(0, 10, (image % 5, 2))
    return np.concatenate([corner, corner + 1 + rng.integers(0, 9, corner.shape)], 1).tolist()


def test_a_computed_file_of_something_else_or_damaged(tmp_path: Path) -> None:
    found, file = scan(tmp_path), tmp_path / "proposals" / "a.npz"

    def propose(image: int) -> NDArray[Any]:
        return BOXES[image]

    compute_once(file, found, "one", propose, threads=1)
    with pytest.raises(DataError, match=r"made of something else, 'one', not two; .*remove it"):
        compute_once(file, found, "two", propose, threads=1)
    flip(file)
    with pytest.raises(DataError, match="remove it, and it is computed anew"):
        compute_once(file, found, "one", propose, threads=1)


def test_an_image_that_cannot_be_read_ends_it_at_once(tmp_path: Path) -> None:
    found = scan(tmp_path, [(20, 20)] * 30)
    begun = []

    def propose(image: int) -> NDArray[Any]:
        begun.append(image)
        time.sleep(0.01)
        header = found.headers[image]
        read_image(found.files[image], header, header.height, header.width)
        return BOXES[0]

    found.files[3].write_bytes(b"")
    with pytest.raises(DataError, match=r"3\.png"):
        compute_once(tmp_path / "proposals" / "a.npz", found, "key", propose, threads=2)
    assert len(begun) < 15
    assert [path.name for path in (tmp_path / "proposals").iterdir()] == ["a.npz.part"]


# Selective search


def split_of(found: Scan, rows: Rows | None = None) -> dict[str, Split]:
    objects = (rows or Rows()).sort(len(found.files))
    return {"train": Split("train", found, objects, list(range(len(found.files))))}


def test_selective_search(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("cv2")
    caplog.set_level(logging.INFO)
    found, rows = scan(tmp_path, [(120, 80), (80, 120)]), Rows()
    truths = [(w // 4, h // 4, 3 * w // 4 + 1, 3 * h // 4 + 1) for w, h in [(120, 80), (80, 120)]]
    for image, truth in enumerate(truths):
        rows.add(image, truth, 1)
    splits = split_of(found, rows)
    boxes = Proposer("selective_search", 2000, 20).boxes("train", splits)
    for image, (truth, header) in enumerate(zip(truths, found.headers, strict=True)):
        of = boxes.of(image)
        assert max(iou(box, truth) for box in of) > 0.9
        assert ((of[:, 2:] - of[:, :2]) >= 20).all()
        assert (of[:, 2:] <= [header.width, header.height]).all()
        areas = np.prod(of[:, 2:] - of[:, :2], axis=1)
        assert (np.diff(areas) <= 0).all()
    assert (
        "meet 100.0% at IoU 0.5 and 100.0% at IoU 0.7 of the objects (of 2 images)" in caplog.text
    )
    files = list((tmp_path / "proposals").iterdir())
    few = Proposer("selective_search", 1, 20).boxes("train", splits)
    assert [few.of(i).tolist() for i in range(2)] == [boxes.of(i)[:1].tolist() for i in range(2)]
    before = {file: file.stat().st_mtime_ns for file in files}
    Proposer("selective_search", 2000, 20).boxes("train", splits)
    assert {file: file.stat().st_mtime_ns for file in files} == before
    assert len(list((tmp_path / "proposals").iterdir())) == 2  # other settings have their own file


def test_a_large_image_is_searched_at_another_size(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    [split] = split_of(scan(tmp_path, [(1200, 600)])).values()
    of = Proposer("selective_search").boxes("train", {"train": split}).of(0)
    assert max(iou(box, (300, 150, 901, 451)) for box in of) > 0.95
    assert of.max(0).tolist()[2:] == [1200, 600]


def test_other_images_have_another_file(tmp_path: Path) -> None:
    found = scan(tmp_path)
    key = Proposer("grid").key(found)
    assert Proposer("grid").key(scan(tmp_path)) == key
    Image.new("RGB", (40, 31)).save(found.files[0])
    look(other := Scan(tmp_path, []), found.files[0], 0, max_pixels=10**6)
    assert Proposer("grid").key(other) != key


def test_without_opencv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of(scan(tmp_path))["train"]
    monkeypatch.setitem(sys.modules, "cv2", None)  # as good as not installed
    line = refusal("selective_search", split)
    assert "needs OpenCV" in line
    assert "type pip install 'cvtrain[proposals]', or data.proposals=grid" in line
    monkeypatch.delitem(sys.modules, "cv2")
    (tmp_path / "cv2.py").write_text("__version__ = '4'\n")  # the wheel without contrib
    monkeypatch.syspath_prepend(tmp_path)
    line = refusal("selective_search", split)
    assert "only one wheel of OpenCV may be installed" in line
    assert "pip uninstall opencv-python" in line
    # What another machine computed is read without it.
    key = Proposer("selective_search").key(split.found)
    (folder := tmp_path / "proposals").mkdir()
    sizes = np.array([size[::-1] for size in SIZES])
    file = folder / f"selective_search-train-{key}.npz"
    write_npz(file, names_of(split.found), sizes, BOXES, key=key)
    assert len(Proposer("selective_search").boxes("train", {"train": split}).of(2)) == 2


# With the image


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes") / "drawn"
    draw_instances(root, size=96, train=12, val=4)
    return root


def coco(root: Path, **settings: Any) -> Coco:
    return Coco(root=str(root), mean=[0.5] * 3, std=[0.5] * 3, **{"long_side": None, **settings})


def true_boxes(root: Path, folder: Path) -> str:
    """The objects themselves as proposals."""
    for split in ("train", "val"):
        top = json.loads((root / "annotations" / f"instances_{split}2017.json").read_text())
        nodes = [each for each in top["annotations"] if not each["iscrowd"]]
        results(folder / f"{split}.json", *(result(n["image_id"], box=n["bbox"]) for n in nodes))
    return str(folder)


AUGMENTATIONS: dict[str, list[Any]] = {
    "none": [],
    "flip": [HorizontalFlip()],
    "flips": [v2.RandomHorizontalFlip(1.0), v2.RandomVerticalFlip(1.0)],
    "iou_crop": [v2.RandomIoUCrop()],
    "zoom_out": [v2.RandomZoomOut(p=1.0), v2.RandomIoUCrop(), v2.RandomHorizontalFlip()],
    "jitter": [v2.ScaleJitter((128, 128))],
    "large": [LargeScaleJitter(size=80, low=0.3, high=2.0, fill=[0, 0, 0])],
    "turn": [v2.RandomAffine(30, scale=(0.8, 1.2))],
}


@pytest.mark.parametrize("square", [None, 70])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_they_move_as_the_objects_do(
    tmp_path: Path, shapes: Path, name: str, square: int | None
) -> None:
    source = coco(shapes, proposals=true_boxes(shapes, tmp_path), square=square)
    files = source.train(120, Augmentations.sort(AUGMENTATIONS[name]))
    loader = FileLoader(files, Order(samples=len(files), batch_size=4, train=True, seed=3))
    objects = 0
    for (batch,) in loader.epoch(0):
        assert batch.proposals is not None
        for image, target, proposals in zip(
            batch.images, batch.targets, batch.proposals, strict=True
        ):
            assert target.keys() == {"boxes", "labels", "draw"}
            assert proposals.dtype == torch.float32
            assert type(proposals) is torch.Tensor
            height, width = image.shape[1:]
            assert (proposals >= 0).all()
            assert (proposals <= torch.tensor([width, height] * 2)).all()
            for box in target["boxes"]:
                assert (proposals == box).all(1).any()
            # A crop leaves out objects whose middle it does not have; what is left of them stays.
            assert len(proposals) >= len(target["boxes"])
            if not any(isinstance(each, v2.RandomIoUCrop) for each in AUGMENTATIONS[name]):
                assert len(proposals) == len(target["boxes"])
            objects += len(proposals)
    assert objects > 12


def test_a_crop_is_the_same_with_and_without_them(tmp_path: Path, shapes: Path) -> None:
    augment = Augmentations.sort([v2.RandomIoUCrop(), v2.RandomHorizontalFlip()])
    files = [
        coco(shapes, proposals=proposals).train(96, augment)
        for proposals in (None, "grid", true_boxes(shapes, tmp_path))
    ]
    for index in range(len(files[0])):
        seen = []
        for each in files:
            torch.manual_seed(index)
            seen.append(each[index])
        assert all(torch.equal(seen[0][0], other[0]) for other in seen[1:])
        assert all(torch.equal(seen[0][1]["boxes"], other[1]["boxes"]) for other in seen[1:])


def test_a_source_without_any_has_none(shapes: Path) -> None:
    files = coco(shapes).val(96)
    assert files.collate([files[0], files[1]]).proposals is None
    with_grid = coco(shapes, proposals="grid", proposals_count=70)
    files = with_grid.val(192)
    [first, second] = files.collate([files[0], files[1]]).proposals or []
    assert torch.equal(first, second)
    assert torch.allclose(first, 2 * torch.from_numpy(windows(96, 96, 70)))
    prints = {coco(shapes).info.fingerprint, with_grid.info.fingerprint}
    assert len(prints) == 2  # a resumed run needs the same
    assert (
        with_grid.info.fingerprint
        == coco(shapes, proposals="grid", proposals_count=70).info.fingerprint
    )


def test_voc_has_them_too(tmp_path: Path) -> None:
    """There an image's id in a json is its name."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for split, name in (("train", "2008_000002"), ("val", "000005")):
        (tmp_path / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{name}\n")
        Image.new("RGB", (50, 40)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
        box = "<xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>35</ymax>"
        text = f"<annotation><object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"
        (tmp_path / "Annotations" / f"{name}.xml").write_text(text)
    file = results(
        tmp_path / "both.json", result("000005"), result("2008_000002", box=(5, 6, 7, 8))
    )
    source = Voc(
        root=str(tmp_path),
        mean=[0.5] * 3,
        std=[0.5] * 3,
        train_sets=["train"],
        val_sets=["val"],
        proposals=file,
    )
    train, val = source.train(80, Augmentations()), source.val(40)
    assert train[0][1]["proposals"].tolist() == [[10, 12, 24, 28]]
    assert val[0][1]["proposals"].tolist() == [[1, 2, 4, 6]]
