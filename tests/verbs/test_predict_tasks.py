"""What each task says by `cvtrain predict`."""

import json
from pathlib import Path

import pytest
import torch
from predicting import (
    predict,
    trained,
)
from tiny import write_data


def test_the_same_as_an_evaluation_says(tmp_path: Path) -> None:
    """Errors counted over the files of a split are those of that split's evaluation."""
    words = write_data("folder", tmp_path / "data")
    words += ["model=cnn", "data=folder", "data.image_size=32", "eval.max_batches=null"]
    run = trained(tmp_path, *words) / "checkpoints" / "last.pt"
    said = predict(f"run={run}", f"source={tmp_path}/data/folder/val", out=tmp_path / "out")
    wrong = sum(line["top"][0]["class"] != Path(line["source"]).parent.name for line in said)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 100 * wrong / len(said) == pytest.approx(summary["val/top1_err"], abs=0.01)


def test_columns_and_a_single_box(tmp_path: Path) -> None:
    for data, model in (("csv", "cnn"), ("csv_box", "cnn")):
        folder = tmp_path / data
        words = write_data(data, folder / "data")
        run = trained(folder, f"model={model}", f"data={data}", "data.image_size=32", *words)
        source = folder / "data" / data / "val" / "photos"
        said = predict(f"run={run}", f"source={source}", out=folder / "out")
        assert len(said) == 36
        for line in said:
            if data == "csv":
                names = {one["column"]: one["class"] for one in line["columns"]}
                assert names.keys() == {"kind", "large"}
                assert names["kind"] in ("ant", "bee", "wasp")
                assert names["large"] in ("0", "1")
                assert all(0.33 <= one["probability"] <= 1 for one in line["columns"])
            else:
                left, top, right, bottom = line["box"]
                assert 0 <= left <= right <= line["width"]
                assert 0 <= top <= bottom <= line["height"]
                assert len(line["top"]) == 3


def test_masks_are_as_large_as_the_picture() -> None:
    from pycocotools import mask as coco

    from cvtrain.tasks.told import Wanted, objects

    class View:
        image, size, place = torch.zeros(3, 48, 64), (96, 128), (0.0, 0.0, 128.0, 96.0)

    chances = torch.zeros(2, 1, 48, 64)
    chances[1, 0, 10:20, 30:50] = 1
    found = {
        "boxes": torch.tensor([[0.0, 0, 5, 5], [30, 10, 50, 20]]),
        "labels": torch.tensor([2, 1]),
        "scores": torch.tensor([0.2, 0.9]),
        "masks": chances,
    }
    [best] = objects(found, View(), Wanted(("a", "b"), least=0.5))
    assert (best["class"], best["box"]) == ("a", [60.0, 20.0, 100.0, 40.0])
    there = coco.decode({**best["mask"], "counts": best["mask"]["counts"].encode()})
    assert there.shape == (96, 128)
    assert there[20:40, 60:100].all()
    assert there.sum() == 20 * 40
