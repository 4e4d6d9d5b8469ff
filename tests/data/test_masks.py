"""Masks: read, checked before anything decodes them, moved with their images, and measured."""

import json
import os
import resource
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import command, metrics
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from cvtrain.data.box_transforms import LargeScaleJitter
from cvtrain.data.coco import Coco
from cvtrain.data.coco_masks import packed, read_mask
from cvtrain.data.shapes_boxes import ShapesBoxes
from cvtrain.data.source import Augmentations
from cvtrain.errors import ConfigError, CvtrainError
from cvtrain.tasks.detection import Detection

coco_mask = pytest.importorskip("pycocotools.mask")

GIVEN: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.25] * 3, "long_side": None}
FILES = {"train_json": "a.json", "val_json": "a.json", "train_dir": ".", "val_dir": "."}
WIDTH, HEIGHT = 12, 8
Top = dict[str, Any]

# Drawn by hand: a rectangle as polygon, an L as run lengths, and a crowd.
RECTANGLE = """
............
..######....
..######....
............
............
............
............
............"""
ELL = """
............
............
............
............
.#..........
.#..........
.####.......
............"""
CORNERS = [[2, 1, 8, 1, 8, 3, 2, 3]]
# Columns of 8 pixels: 12 before the L, 3 of it, 5, then 1, 7, 1, 7, 1, and what is left.
RUNS = [12, 3, 7, 1, 7, 1, 7, 1, 57]


def pixels(drawing: str) -> np.ndarray:
    return np.array([[c == "#" for c in line] for line in drawing.split()], np.uint8)


def annotation(number: int, segmentation: Any, box: list[float], **more: Any) -> Top:
    said = {"id": number, "image_id": 1, "category_id": 1, "bbox": box, "area": 9.0, "iscrowd": 0}
    return {**said, "segmentation": segmentation, **more}


def document() -> Top:
    ell = {"size": [HEIGHT, WIDTH], "counts": RUNS}
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
    annotations = [
        annotation(1, crowd, [0, 0, 12, 8], iscrowd=1),
        annotation(2, CORNERS, [2, 1, 5.5, 2]),  # the box is that of the json, not of the mask
        annotation(3, ell, [1, 4, 4, 3]),
    ]
    image = {"id": 1, "file_name": "1.png", "width": WIDTH, "height": HEIGHT}
    empty = {**image, "id": 2, "file_name": "2.png"}
    categories = [{"id": 1, "name": "ant"}]
    return {"images": [image, empty], "annotations": annotations, "categories": categories}


def write(root: Path, top: Top) -> Path:
    for image in top["images"]:
        if not (root / image["file_name"]).exists() and image["width"] < 10_000:
            size = image["width"], image["height"]
            Image.new("RGB", size).save(root / image["file_name"])
    (root / "a.json").write_text(json.dumps(top))
    return root


def coco(root: Path, **options: Any) -> Coco:
    return Coco(root=str(root), **{**GIVEN, **FILES, "masks": True, **options})


def flipped(*more: torch.nn.Module) -> Augmentations:
    return Augmentations(images=[v2.RandomHorizontalFlip(1.0), *more])


def test_by_hand(tmp_path: Path) -> None:
    """Both forms, as they are, twice as large and mirrored; crowds are no targets."""
    source = coco(write(tmp_path, document()))
    drawn = np.stack([pixels(RECTANGLE), pixels(ELL)])
    same = source.train(HEIGHT, Augmentations())
    assert np.array_equal(same[0][1]["masks"], drawn)
    _, target, truth, _ = source.train(2 * HEIGHT, flipped())[0]
    twice = np.kron(drawn, np.ones((1, 2, 2), np.uint8))
    assert np.array_equal(target["masks"], twice[:, :, ::-1])
    assert target["masks"].dtype == torch.uint8
    assert type(target["masks"]) is torch.Tensor
    assert target["boxes"].tolist() == [[9, 2, 20, 6], [14, 8, 22, 14]]
    # Of the file, and of all objects, as the official decoder reads them.
    size = [HEIGHT, WIDTH]
    seen = [coco_mask.decode({"size": size, "counts": code}) for code in truth["rles"]]
    assert np.array_equal(seen, [np.ones((HEIGHT, WIDTH)), *drawn])


@pytest.mark.parametrize("first", [[], [v2.RandomCrop((24, 36))]], ids=["read", "at_last"])
def test_smaller_masks_are_not_shifted(first: list[Any], tmp_path: Path) -> None:
    """A pixel of a third of the size is what was in its middle, as in the image."""
    rng = np.random.default_rng(0)
    mask = np.kron(rng.random((8, 12)) < 0.4, np.ones((3, 3))).astype(np.uint8)
    mask[::3] ^= 1  # at an edge of each
    code = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    top = document()
    top["images"] = [{"id": 1, "file_name": "1.png", "width": 36, "height": 24}]
    top["annotations"] = [annotation(1, {"size": [24, 36], "counts": code}, [0, 0, 36, 24])]
    files = coco(write(tmp_path, top)).train(8, Augmentations(images=first))
    assert np.array_equal(files[0][1]["masks"][0], mask[1::3, 1::3])


def test_batches_of_several_sizes(tmp_path: Path) -> None:
    """Also of an image without objects; through a process that reads."""
    top = document()
    top["images"][1] |= {"width": 20, "height": 10}
    source = coco(write(tmp_path, top))
    files = source.train(16, Augmentations())
    loader = DataLoader(files, batch_size=2, collate_fn=files.collate, num_workers=1)
    (batch,) = loader
    assert [target["masks"].shape for target in batch.targets] == [(2, 16, 24), (0, 16, 32)]
    assert [image.shape for image in batch.images] == [(3, 16, 24), (3, 16, 32)]
    assert torch.equal(batch.targets[0]["masks"], files[0][1]["masks"])
    assert [len(truth["rles"]) for truth in batch.truths] == [3, 0]
    assert all(type(code) is bytes for code in batch.truths[0]["rles"])
    # Whatever comes before the size of the network, of no objects, too.
    small = source.train(16, Augmentations(images=[v2.RandomCrop(6)]))
    assert small[1][1]["masks"].shape == (0, 16, 16)


def test_only_where_asked_for(tmp_path: Path) -> None:
    source = coco(write(tmp_path, document()), masks=False)
    _, target, truth, _ = source.train(HEIGHT, Augmentations())[0]
    assert target.keys() == {"boxes", "labels", "draw"}
    assert "rles" not in truth
    asked = coco(tmp_path).info.fingerprint
    assert asked != source.info.fingerprint
    top = document()
    top["annotations"][1]["segmentation"][0][0] = 2.5
    assert coco(write(tmp_path, top)).info.fingerprint != asked
    assert coco(tmp_path, masks=False).info.fingerprint == source.info.fingerprint


def test_crowds_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, areas, decode = coco(write(tmp_path, document())), [], coco_mask.decode

    def noted(code: Any) -> Any:
        areas.append(int(coco_mask.area(code)))
        return decode(code)

    monkeypatch.setattr(coco_mask, "decode", noted)
    assert len(source.train(HEIGHT, Augmentations())[0][1]["masks"]) == 2
    assert areas == [12, 6]  # not the 96 of the crowd


# Whatever moves an image: a red and a green object on black are where their masks are.

FILL = [60, 50, 40]
MOVES: dict[str, Callable[[], torch.nn.Module]] = {
    "flip": lambda: v2.RandomVerticalFlip(1.0),
    "zoom_out": lambda: v2.RandomZoomOut(fill=FILL, p=1.0),
    "large_scale_jitter": lambda: LargeScaleJitter(size=96, low=0.6, high=1.5, fill=FILL),
    "iou_crop": lambda: v2.RandomIoUCrop(trials=5),
    "rotation": lambda: v2.RandomRotation([30, 60], fill=FILL),
    "colours": lambda: v2.RandomPhotometricDistort(p=0.0),
}


@pytest.mark.parametrize("name", MOVES)
def test_masks_move_with_the_image(name: str, tmp_path: Path) -> None:
    picture = np.zeros((60, 90, 3), np.uint8)
    picture[20:50, 10:45, 0] = picture[5:30, 55:80, 1] = 255
    Image.fromarray(picture).save(tmp_path / "1.png")
    code = coco_mask.encode(np.asfortranarray(picture[:, :, 1] // 255))["counts"].decode()
    top = document()
    top["images"] = [{"id": 1, "file_name": "1.png", "width": 90, "height": 60}]
    top["categories"] = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
    top["annotations"] = [
        annotation(1, [[10, 20, 45, 20, 45, 50, 10, 50]], [10, 20, 35, 30]),
        annotation(2, {"size": [60, 90], "counts": code}, [55, 5, 25, 25], category_id=2),
    ]
    files = coco(write(tmp_path, top)).train(72, Augmentations(images=[MOVES[name]()]))
    seen = 0
    for seed in range(6):
        torch.manual_seed(seed)
        image, target, _, _ = files[0]
        masks = target["masks"]
        assert masks.shape == (len(target["boxes"]), *image.shape[1:])
        assert set(masks.unique().tolist()) <= {0, 1}
        for mask, label in zip(masks.bool(), target["labels"].tolist(), strict=True):
            coloured = image[label - 1] > 127
            off, area = (mask ^ coloured).sum().item(), mask.sum().item()
            # Where torchvision resizes, masks are up to a pixel off, down and across.
            assert off <= 2.2 * area**0.5 + 4
            seen += area > 300
    assert seen > 3


# What cannot be a mask of its image

POLYGONS = {
    "odd": ([[1, 1, 9, 1, 9, 7, 3]], "polygon 0, which has 7 numbers"),
    "two_corners": ([[1, 1, 9, 7]], "polygon 0, which has 4 numbers"),
    "second": ([CORNERS[0], []], "polygon 1, which has 0 numbers"),
    "nan": ([[1, 1, 9, 1, float("nan"), 7]], "polygon 0, which is not finite"),
    "huge": ([[1, 1, 9, 1, 10**400, 7]], "polygon 0, which is [1, 1, 9, 1, 1000"),
    "infinite": ([[1, 1, 9, 1, float("inf"), 7]], "polygon 0, which is not finite"),
    "far": ([[1, 1, 1e8, 1, 9, 7]], "reaches far out of its image, 12x8 pixels"),
    "long": ([[0, 0, 12, 8] * 50], "pixels long, more than its image has, 12x8"),
    "bools": ([[True] * 6], "no numbers"),
    "deep": ([[[1, 1], [2, 2], [3, 3]]], "no numbers"),
    "empty": ([], "is [], neither polygons nor run lengths"),
}


@pytest.mark.parametrize("name", POLYGONS)
def test_bad_polygons(name: str, tmp_path: Path) -> None:
    """Refused, or, as bad boxes may be, left out with their objects."""
    segmentation, why = POLYGONS[name]
    top = document()
    top["annotations"][2]["segmentation"] = segmentation
    line = refused(write(tmp_path, top))
    assert f"annotations[2].segmentation has {why}" in line or why in line
    files = coco(tmp_path, on_bad_boxes="drop").train(HEIGHT, Augmentations())
    assert np.array_equal(files[0][1]["masks"], pixels(RECTANGLE)[None])
    assert len(files[0][2]["rles"]) == 2


def refused(root: Path, **options: Any) -> str:
    with pytest.raises(CvtrainError) as caught:
        coco(root, **options)
    assert (caught.value.code, caught.value.name) == (3, "COCO")
    line = caught.value.line()
    assert line.isprintable()
    return line


RLES: dict[str, tuple[Any, str]] = {
    "none": (None, "neither polygons nor run lengths"),
    "text": ("a mask", "neither polygons nor run lengths"),
    "no_size": ({"counts": RUNS}, "has size None, not [8, 12]"),
    "turned": ({"size": [12, 8], "counts": RUNS}, "has size [12, 8], not [8, 12]"),
    "negative": ({"size": [8, 12], "counts": [-4, 100]}, "has a run of -4 pixels"),
    "too_few": ({"size": [8, 12], "counts": [4, 5]}, "has runs of 9 pixels together"),
    "too_many": ({"size": [8, 12], "counts": [96, 1]}, "has runs of 97 pixels together"),
    "float": ({"size": [8, 12], "counts": [96.0]}, "no whole numbers"),
    "bool": ({"size": [8, 12], "counts": [95, True]}, "no whole numbers"),
    "cut_off": ({"size": [8, 12], "counts": "<3Q"}, "which are cut off"),
    "packed_too_few": ({"size": [8, 12], "counts": "<3"}, "has runs of 15 pixels together"),
    "packed_negative": ({"size": [8, 12], "counts": "O"}, "has a run of -1 pixels"),
    "endless": ({"size": [8, 12], "counts": "o" * 10**6}, "no run lengths"),
    "many": ({"size": [8, 12], "counts": "0" * 10**6}, "no run lengths"),
}


@pytest.mark.parametrize("name", RLES)
def test_bad_run_lengths(name: str, tmp_path: Path) -> None:
    """Whatever data.on_bad_boxes is."""
    segmentation, why = RLES[name]
    top = document()
    top["annotations"][2]["segmentation"] = segmentation
    line = refused(write(tmp_path, top), on_bad_boxes="drop")
    assert "annotations[2].segmentation" in line
    assert why in line
    assert len(line) < 400


def test_a_mask_that_is_missing(tmp_path: Path) -> None:
    top = document()
    del top["annotations"][1]["segmentation"]
    assert "annotations[1].segmentation is missing" in refused(write(tmp_path, top))


def test_compressed_run_lengths_are_read_as_they_were_written() -> None:
    """By pycocotools, of random masks: long runs, short ones, none before the first pixel."""
    rng = np.random.default_rng(0)
    for share in (0.0, 0.001, 0.3, 0.9, 1.0):
        mask = np.asfortranarray(rng.random((150, 220)) < share, np.uint8)
        code = coco_mask.encode(mask)["counts"].decode()
        counts = read_mask({"size": [150, 220], "counts": code}, 150, 220)
        assert isinstance(counts, np.ndarray)
        values = np.repeat(np.arange(len(counts)) % 2, counts.astype(int))
        assert np.array_equal(values.reshape(220, 150).T, mask)
    assert read_mask({"size": [8, 12], "counts": [96]}, 8, 12) == np.array([96])
    assert packed([[1, 2.5]])[0].dtype == np.float64


# K5: in a process that has 200 MB left

HOSTILE = {
    "bytes": {"size": [10, 20], "counts": "\xff\xff\xff"},
    "size": {"size": [100_000, 100_000], "counts": [0, 10_000_000_000]},
    "packed_size": {"size": [100_000, 100_000], "counts": "0000"},
    "counts": {"size": [10, 20], "counts": [0, 10**30]},
    "more_than_there_is": {"size": [10, 20], "counts": [0, 2**31, 2**31]},
    "polygon": [[0, 0, 4e8, 0, 4e8, 4e8]],
}


def hostile(count: int, mask: Any, first: int = 17) -> Top:
    good = {"size": [10, 20], "counts": [50, 100, 50]}
    image = {"id": 1, "file_name": "1.png", "width": 20, "height": 10}
    masks = [mask if first <= i < first + count else good for i in range(60)]
    annotations = [annotation(i, mask, [2, 2, 5, 5]) for i, mask in enumerate(masks)]
    return {**document(), "images": [image], "annotations": annotations}


def limited(root: Path) -> tuple[int, str, str]:
    """Code, name and line of the refusal, in a process that gets little more memory than it has."""

    def reads(answer: Any) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + 200 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        try:
            coco(root).train(10, Augmentations())[0]
            answer.send((0, "", ""))
        except CvtrainError as error:
            answer.send((error.code, error.name, error.line()))
        except MemoryError:
            answer.send((1, "MemoryError", ""))

    context = get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=reads, args=(theirs,))
    process.start()
    theirs.close()
    told = ours.recv()
    process.join(10)
    assert process.exitcode == 0
    return told


@pytest.mark.fault("K5")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_masks(name: str, tmp_path: Path) -> None:
    code, kind, line = limited(write(tmp_path, hostile(1, HOSTILE[name])))
    assert (code, kind) == (3, "COCO"), line
    assert "annotations[17].segmentation has " in line
    assert "a mistake: " in line
    assert limited(write(tmp_path, hostile(0, None)))[0] == 0  # the memory does for what is right


@pytest.mark.fault("K5")
def test_twenty_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    code, _, line = limited(write(tmp_path, hostile(25, HOSTILE["bytes"])))
    assert code == 3
    assert "25 mistakes: annotations[17].segmentation has counts" in line
    assert line.count(".segmentation") == 20
    assert "and 5 more" in line


@pytest.mark.fault("K5")
@pytest.mark.parametrize("counts", [[0, 10**10], "0000"])
def test_an_image_that_is_said_to_be_huge(counts: Any, tmp_path: Path) -> None:
    """Its mask may be of that size; it is compared with the image's file before it is decoded."""
    top = hostile(1, {"size": [100_000, 100_000], "counts": counts}, first=0)
    top["annotations"] = top["annotations"][:1]
    top["images"][0] |= {"width": 100_000, "height": 100_000}
    Image.new("RGB", (20, 10)).save(tmp_path / "1.png")
    code, kind, line = limited(write(tmp_path, top))
    assert (code, kind) == (3, "COCO")
    place = "images[0] 1.png has 20x10 pixels, not 100000x100000"
    assert (place if isinstance(counts, list) else "annotations[0].segmentation") in line


# Measured

ROOT = Path(os.environ.get("CVTRAIN_DATA", "nowhere")) / "coco"


def fed_back(source: Coco) -> dict[str, float]:
    """The figures of a network that finds all that is true, by the task's own evaluator."""
    evaluator = Detection(num_classes=len(source.info.classes)).evaluator()
    for index in range(len(source.val(8))):
        truth = source.val(8)[index][2]
        files = source.val(int(truth["size"].min()))  # the image as it is in its file
        batch = files.collate([files[index]])
        (target,) = batch.targets
        scores = torch.ones(len(target["labels"]))
        masks = target["masks"][:, None].float()
        evaluator.update([{**target, "scores": scores, "masks": masks}], batch)
    return evaluator.compute()


def test_what_is_true_is_found_in_full(tmp_path: Path) -> None:
    source = ShapesBoxes(root=str(tmp_path), size=64, train=4, val=24, masks=True, **GIVEN)
    figures = fed_back(source)
    assert figures["mask_mAP"] == pytest.approx(100)
    assert figures["mAP"] == pytest.approx(100)
    # Pixels that are wrong lower it: everything without its upper half.
    files = source.val(64)
    evaluator = Detection(num_classes=8).evaluator()
    for index in range(len(files)):
        batch = files.collate([files[index]])
        (target,) = batch.targets
        masks = target["masks"][:, None].float()
        masks = masks * (masks.cumsum(2) > masks.sum(2, keepdim=True) / 2)
        scores = torch.ones(len(target["labels"]))
        evaluator.update([{**target, "scores": scores, "masks": masks}], batch)
    worse = evaluator.compute()
    assert worse["mAP"] == pytest.approx(100)
    assert worse["mask_mAP"] < 40


def test_measured_where_data_and_network_have_them(tmp_path: Path) -> None:
    source = ShapesBoxes(root=str(tmp_path), size=64, train=2, val=2, masks=True, **GIVEN)
    files = source.val(64)
    batch = files.collate([files[0], files[1]])
    scored = [{**t, "scores": torch.ones(len(t["labels"]))} for t in batch.targets]
    masked = [{**found, "masks": found["masks"][:, None].float()} for found in scored]
    boxed = [{k: v for k, v in found.items() if k != "masks"} for found in scored]
    maskless = [{k: v for k, v in truth.items() if k != "rles"} for truth in batch.truths]

    def measured(found: list[Any], truths: list[Any], **arguments: Any) -> bool:
        evaluator = Detection(num_classes=8, **arguments).evaluator()
        evaluator.update(found, batch._replace(truths=truths))
        other = Detection(num_classes=8, **arguments).evaluator()  # a process without images
        other.merge([other.kept(), evaluator.kept()])
        figures = evaluator.compute()
        assert other.compute() == figures
        return "mask_mAP" in figures

    assert measured(masked, batch.truths)
    assert not measured(boxed, batch.truths)
    assert not measured(masked, maskless)
    assert not measured(masked, batch.truths, masks=False)
    with pytest.raises(ConfigError, match="finds no masks"):
        measured(boxed, batch.truths, masks=True)


@pytest.mark.data
@pytest.mark.skipif(not ROOT.is_dir(), reason="CVTRAIN_DATA has no coco/")
def test_real_masks() -> None:
    """Every mask as the official reader has it, crowds too; all of it found is 100 per cent."""
    from pycocotools.coco import COCO

    source = Coco(root=str(ROOT), masks=True, **GIVEN)
    theirs = COCO(ROOT / "annotations/instances_val2017.json")
    for number, image in enumerate(theirs.dataset["images"]):
        expected = theirs.loadAnns(theirs.getAnnIds(imgIds=[image["id"]]))
        codes = source.val(min(image["height"], image["width"]))[number][2]["rles"]
        assert codes == [theirs.annToRLE(one)["counts"] for one in expected]
    figures = fed_back(source)
    assert figures["mask_mAP"] == pytest.approx(100)
    assert figures["mAP"] == pytest.approx(100)


# The command

WORDS = (
    *("model=maskrcnn_resnet50_fpn", "data=shapes_boxes", "data.size=64", "data.train=4"),
    *("data.val=2", "data_dir=drawn", "debug=smoke", "data.batch_size=2", "eval.batch_size=2"),
    *("trainer.duration=1st", "recipe=none", "hydra.run.dir=run"),
)


def test_mask_rcnn_through_the_command(tmp_path: Path) -> None:
    done = command(*WORDS, "data.masks=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = metrics(tmp_path / "run")
    assert any("train/loss_mask" in line for line in lines)
    assert any(0 <= line.get("val/mask_mAP", -1) <= 100 for line in lines)


def test_mask_rcnn_without_masks(tmp_path: Path) -> None:
    done = command(*WORDS, cwd=tmp_path)
    assert done.returncode == 2
    assert "the data give none" in done.stderr.splitlines()[-1]
    assert "data.masks=true" in done.stderr.splitlines()[-1]
