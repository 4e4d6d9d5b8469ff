"""A detector measured again: its figures and files against pycocotools, several as one."""

import contextlib
import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_eval import evaluated, refused
from tiny import write_objects
from torchvision.ops import batched_nms

from cvtrain import cli
from cvtrain.errors import ConfigError, DataError

SPLITS = ["data.train_json=annotations/train.json", "data.val_json=annotations/val.json"]
SPLITS += ["data.train_dir=train", "data.val_dir=val"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, as COCO, its categories being 7 and 8; `a` and `b`, two detectors that know a bit."""
    folder = tmp_path_factory.mktemp("detectors")
    write_objects(folder / "data", count=16, size=(64, 64))  # no image is padded in a batch
    for file in (folder / "data" / "annotations").iterdir():
        top = json.loads(file.read_text())
        for annotation in top["annotations"]:
            annotation["id"] += 1  # to pycocotools a match with number 0 is none
        file.write_text(json.dumps(top))
    for run in ("a", "b"):
        words = ["model=faster_rcnn_tiny", "data=coco", f"data.root={folder / 'data'}", *SPLITS]
        words += ["data.image_size=48", "recipe=none", "optimizer=adamw", "optimizer.lr=0.002"]
        words += ["data.batch_size=4", "trainer.duration=10ep", "eval.every=10ep", "augment=[none]"]
        words += [f"seed={ord(run)}", "trainer.threads=1", "trainer.workers=0"]
        assert cli.run([*words, f"hydra.run.dir={folder / run}"]) == 0
    return folder


def stored(run: Path) -> dict[str, float]:
    state = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    return state["position"]["metrics"]


def cocos(truth: Path, results: Path) -> np.ndarray:
    """The twelve figures, from the files alone."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        evaluation = COCOeval(coco, coco.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats


def test_exactly_the_stored_figures_and_a_file_that_coco_takes(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = evaluated(f"run={home / 'a'}", out=tmp_path)
    metrics = stored(home / "a")
    assert {name: summary[name] for name in metrics} == metrics
    assert summary["val/mAP"] > 1  # it has learnt something
    found = cocos(home / "data" / "annotations" / "val.json", tmp_path / "detections.json")
    assert summary["val/mAP"] == pytest.approx(found[0], abs=0.01)
    assert summary["val/mAP50"] == pytest.approx(found[1], abs=0.01)
    assert summary["val/AR100"] == pytest.approx(found[8], abs=0.01)
    low, high = summary["intervals"]["val/mAP"]
    assert low < high
    printed = capsys.readouterr().out
    assert f"exactly these {len(metrics)} figures" in printed
    assert summary["per_category"].keys() == {"car", "dog"}
    results = json.loads((tmp_path / "detections.json").read_text())
    assert {row["category_id"] for row in results} <= {7, 8}


def test_rows_of_images(home: Path, tmp_path: Path) -> None:
    evaluated(f"run={home / 'a'}", out=tmp_path)
    with (tmp_path / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    truth = json.loads((home / "data" / "annotations" / "val.json").read_text())
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    counts = dict.fromkeys(names.values(), 0)
    for annotation in truth["annotations"]:
        counts[names[annotation["image_id"]]] += 1
    assert {Path(row["name"]).name: int(row["objects"]) for row in rows} == counts
    for row in rows:
        assert int(row["hits"]) + int(row["missed"]) == int(row["objects"])
        parts = (int(row[name]) for name in ("hits", "false", "excused"))
        assert sum(parts) == int(row["detections"])


@pytest.mark.parametrize("size", [1, 7, 64])
def test_any_batch_size_measures_the_same(home: Path, size: int, tmp_path: Path) -> None:
    summary = evaluated(f"run={home / 'a'}", f"eval.batch_size={size}", out=tmp_path)
    assert summary["val/mAP"] == pytest.approx(stored(home / "a")["val/mAP"], abs=0.01)


def test_voc(home: Path, tmp_path: Path) -> None:
    summary = evaluated(f"run={home / 'a'}", "task.voc=2007", out=tmp_path)
    each = [value for value in summary["voc_per_category"].values() if value is not None]
    assert summary["val/voc_mAP"] == pytest.approx(np.mean(each), abs=1e-3)
    assert summary["val/mAP"] == stored(home / "a")["val/mAP"]


def test_without_the_training_data(home: Path, tmp_path: Path) -> None:
    """Also where a category has another id, and another place among them."""
    shutil.copytree(home / "data" / "val", tmp_path / "val")
    truth = json.loads((home / "data" / "annotations" / "val.json").read_text())
    for node in truth["categories"]:
        node["id"] = 20 - node["id"]
    for node in truth["annotations"]:
        node["category_id"] = 20 - node["category_id"]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "val.json").write_text(json.dumps(truth))
    out = tmp_path / "out"
    summary = evaluated(f"run={home / 'a'}", f"data.root={tmp_path}", out=out)
    metrics = stored(home / "a")
    assert {name: summary[name] for name in metrics} == pytest.approx(metrics)
    found = cocos(tmp_path / "annotations" / "val.json", out / "detections.json")
    assert summary["val/mAP"] == pytest.approx(found[0], abs=0.01)
    typed = ("data=coco", f"data.root={tmp_path}", *SPLITS)
    again = evaluated(f"run={home / 'a'}", *typed, out=out)
    assert again["val/mAP"] == summary["val/mAP"]  # as the run sees images, not as data=coco does
    truth["categories"][0]["name"] = "truck"
    (tmp_path / "annotations" / "val.json").write_text(json.dumps(truth))
    error = refused(DataError, "CLASSES", f"run={home / 'a'}", f"data.root={tmp_path}")
    assert "truck" in error.what


def detections(out: Path) -> dict[int, list[dict[str, Any]]]:
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in json.loads((out / "detections.json").read_text()):
        rows.setdefault(row["image_id"], []).append(row)
    return rows


@pytest.mark.parametrize("merge", ["nms", "soft"])
def test_boxes_of_several_are_brought_together(home: Path, merge: str, tmp_path: Path) -> None:
    runs, alone = f"run=[{home / 'a'},{home / 'b'}]", []
    for name in ("a", "b"):
        evaluated(f"run={home / name}", out=tmp_path / name)
        alone.append(detections(tmp_path / name))
    other = f"compare={home / 'a'}"
    summary = evaluated(runs, f"merge={merge}", other, out=tmp_path / "both")
    found = cocos(home / "data" / "annotations" / "val.json", tmp_path / "both" / "detections.json")
    assert summary["val/mAP"] == pytest.approx(found[0], abs=0.01)
    assert 0 < summary["compare"]["p"] <= 1
    assert set(summary["members"]) == {str(home / "a"), str(home / "b")}
    for image, rows in detections(tmp_path / "both").items():
        together = [*alone[0].get(image, []), *alone[1].get(image, [])]
        boxes = torch.tensor([row["bbox"] for row in together])
        boxes[:, 2:] += boxes[:, :2]
        scores = torch.tensor([row["score"] for row in together])
        labels = torch.tensor([row["category_id"] for row in together])
        if merge == "nms":
            kept = batched_nms(boxes, scores, labels, 0.5)[:100]
            expected = scores[kept].sort(descending=True).values
            score = torch.tensor([row["score"] for row in rows]).sort(descending=True).values
            torch.testing.assert_close(score, expected, rtol=0, atol=1e-5)
        else:  # all are there, the surest as it was
            assert len(rows) <= min(len(together), 100)
            assert max(row["score"] for row in rows) == pytest.approx(scores.max().item(), abs=1e-5)


def test_a_merge_that_is_none(home: Path) -> None:
    refused(ConfigError, "CONFIG", f"run=[{home / 'a'},{home / 'b'}]", "merge=mean")
    refused(ConfigError, "CONFIG", f"run={home / 'a'}", "task.masks=true")
