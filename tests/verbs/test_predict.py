"""`cvtrain predict` by its command: what it writes against what the network says by itself."""

import csv
import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image
from predicting import (
    frames_of,
    predict,
    trained,
    trained_classifier,
    write_photos,
    write_video,
)
from tiny import write_data
from torchvision.models import ResNet18_Weights

from cvtrain import cli
from cvtrain.compose import compose_config
from cvtrain.errors import ConfigError
from cvtrain.trained.network import of_run

CPU = torch.device("cpu")
DETECTOR = ("model=faster_rcnn_tiny", "data=coco", "data.image_size=48", "data.long_side=80")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    words = write_data("coco", folder / "data")
    run = trained(folder, *DETECTOR, *words, "model.score=0.0001", "model.detections=1000")
    shutil.rmtree(folder / "data")
    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path)


# What is said


def test_classes_are_those_of_the_network(classifier: Path, photos: Path, tmp_path: Path) -> None:
    """By the steps of torchvision's transforms, written out here."""
    from torchvision.transforms import v2

    said = predict(f"run={classifier}", f"source={photos}", "top_k=2", out=tmp_path / "out")
    network = of_run(str(classifier), compose_config([]), [], device=CPU)
    data = network.config.data.args
    norm = v2.Normalize(data["mean"], data["std"])
    short = round(network.size / data["crop_fraction"])
    assert len(said) == 5
    for line in said:
        image = Image.open(line["source"]).convert("RGB")
        assert (line["width"], line["height"]) == image.size
        steps = [
            v2.Resize(short),
            v2.CenterCrop(network.size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
        with torch.no_grad():
            shares = network.model(norm(v2.Compose(steps)(image))[None]).softmax(1)[0]
        assert {one["class"] for one in line["top"]} == {"ants", "bees"}
        for one in line["top"]:
            assert one["probability"] == pytest.approx(float(shares[one["index"]]), abs=0.02)
        assert sum(one["probability"] for one in line["top"]) == pytest.approx(1, abs=1e-5)


def test_objects_are_where_the_network_finds_them(
    detector: Path, photos: Path, tmp_path: Path
) -> None:
    words = (f"run={detector}", f"source={photos}", "eval.batch_size=1")
    said = predict(*words, out=tmp_path / "out")
    network = of_run(str(detector), compose_config([]), [], device=CPU)
    data = network.config.data.args
    count = hits = 0
    for line in said:
        image = torchvision.io.decode_image(line["source"], "RGB")
        height, width = image.shape[1:]
        scale = 48 / min(height, width)
        size = [round(height * scale), round(width * scale)]
        small = torchvision.transforms.v2.functional.resize(image, size, antialias=True) / 255
        norm = torchvision.transforms.v2.Normalize(data["mean"], data["std"])
        with torch.no_grad():
            [found] = network.model([norm(small)])
        boxes = found["boxes"] * torch.tensor([width / size[1], height / size[0]] * 2)
        for entry in line["objects"]:
            own = found["labels"] == 1 + ("car", "dog").index(entry["class"])
            apart = (boxes[own] - torch.tensor(entry["box"])).abs().amax(1)
            close = (found["scores"][own] - entry["score"]).abs() < 0.01
            hits += bool((close & (apart < 0.5)).any())  # pixels of the file
        count += len(line["objects"])
        scores = [entry["score"] for entry in line["objects"]]
        assert scores == sorted(scores, reverse=True)
    # Where two are as sure as each other, rounding decides which of them is left.
    assert hits > 0.9 * count > 50


# What is written


def test_pictures_and_a_table(detector: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["predict", f"run={detector}", f"source={photos}", "format=csv", "threshold=0"]
    assert cli.run([*words, f"out={out}"]) == 0
    with (out / "predictions.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    names = {row["source"]: row["drawn"] for row in rows}
    assert set(names) == {str(file) for file in photos.rglob("*") if file.is_file()}
    assert len({name.casefold() for name in names.values()}) == 5
    for source, name in names.items():
        own, drawn = Image.open(source), Image.open(out / name)
        factor = 320 // max(own.size)
        assert drawn.size == (own.width * factor, own.height * factor)
    assert {file.name for file in out.iterdir()} == {*names.values(), "predictions.csv"}


def test_nothing_drawn(classifier: Path, photos: Path, tmp_path: Path, capsys: Any) -> None:
    said = predict(f"run={classifier}", f"source={photos}", "draw=false", out=tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["predictions.jsonl"]
    assert "drawn" not in said[0]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 6
    assert "new\\nline.jpg: " in printed[3]
    assert printed[-1].startswith("5 pictures, ")


@pytest.mark.parametrize("kind", ["classifier", "detector"])
def test_a_video(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    import_av = pytest.importorskip("av")
    clip = write_video(tmp_path / "clip (1).mp4")
    run, out = request.getfixturevalue(kind), tmp_path / "out"
    said = predict(
        f"run={run}",
        f"source={clip}",
        "threshold=0.1" if kind == "detector" else "top_k=1",
        out=out,
    )
    assert [line["frame"] for line in said] == [*range(20)]
    assert [line["time"] for line in said] == pytest.approx([k / 20 for k in range(20)])
    assert (said[0]["width"], said[0]["height"], said[0]["drawn"]) == (96, 72, "clip_1.mp4")
    with import_av.open(str(out / "clip_1.mp4")) as file:
        assert file.streams.video[0].average_rate == 20
    assert len(frames_of(out / "clip_1.mp4")) == 20
    still = tmp_path / "frame.png"
    Image.fromarray(frames_of(clip)[7]).save(still)
    [alone] = predict(
        f"run={run}",
        f"source={still}",
        *(["threshold=0.1"] if kind == "detector" else ["top_k=1"]),
        out=tmp_path / "still",
    )
    key = "objects" if kind == "detector" else "top"
    assert len(alone[key]) == len(said[7][key])
    for one, other in zip(alone[key], said[7][key], strict=True):
        assert one["class"] == other["class"]
        name = "score" if kind == "detector" else "probability"
        assert one[name] == pytest.approx(other[name], abs=1e-3)


def test_a_folder_of_both(classifier: Path, photos: Path, tmp_path: Path) -> None:
    for name in ("one.mp4", "two.mp4"):
        write_video(photos / name, count=10)
    said = predict(f"run={classifier}", f"source={photos}", out=tmp_path / "out")
    assert len(said) == 5 + 20
    for name in ("one.mp4", "two.mp4"):
        assert len(frames_of(tmp_path / "out" / name)) == 10


# What is asked for


def test_threshold_and_suppression(detector: Path, photos: Path, tmp_path: Path) -> None:
    words, out = (f"run={detector}", f"source={photos}", "draw=false"), tmp_path / "out"
    everything = predict(*words, "threshold=0", out=out)
    scores = sorted(e["score"] for line in everything for e in line["objects"])
    middle = scores[len(scores) // 2]
    some = predict(*words, f"threshold={middle}", out=out)
    kept = [entry["score"] for line in some for entry in line["objects"]]
    assert kept
    assert min(kept) >= middle - 1e-6
    assert len(kept) < len(scores)
    soft = predict(*words, "threshold=0", "nms=soft", out=out)
    assert sum(len(x["objects"]) for x in soft) >= sum(len(x["objects"]) for x in everything)
    assert soft != everything
    assert predict(*words, "threshold=0", "nms=hard", out=out) == everything


def test_precision(classifier: Path, photos: Path, tmp_path: Path) -> None:
    words = (f"run={classifier}", f"source={photos}", "draw=false")
    full = predict(*words, "precision=fp32", out=tmp_path / "a")
    half = predict(*words, "precision=bf16", out=tmp_path / "b")
    assert full == predict(*words, out=tmp_path / "c")
    assert half != full
    pairs = zip(full, half, strict=True)
    assert all(
        a["top"][0]["probability"] == pytest.approx(b["top"][0]["probability"], abs=0.05)
        for a, b in pairs
    )


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("threshold=2", "0 to 1"),
        ("threshold=x", "0 to 1"),
        ("threshold=0.5", "detector"),
        ("nms=soft", "no soft"),
        ("nms=none", "nms=soft"),
        ("top_k=0", "whole number"),
        ("precision=fp16", "bf16"),
        ("precision=int8", "precision=bf16"),
        ("format=xml", "format=csv"),
        ("draw=maybe", "draw=true"),
        ("top_kk=3", "top_kk"),
    ],
)
def test_refused(word: str, text: str, classifier: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        predict(f"run={classifier}", f"source={photos}", word, out=tmp_path / "out")
    assert text in caught.value.line()
    assert not (tmp_path / "out").exists()


def test_no_window_without_a_display(
    classifier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    source = photos / "a (1).jpg"
    assert len(predict(f"run={classifier}", f"source={source}", "show=true", out=tmp_path)) == 1
    assert "no display" in capsys.readouterr().err


def test_published_weights_bring_their_classes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of random weights in torch's cache, under the name that its content has."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18().eval()
    cache = tmp_path / "home" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(theirs.state_dict(), cache / "new")
    digits = hashlib.sha256((cache / "new").read_bytes()).hexdigest()[:8]
    (cache / "new").rename(cache / f"resnet18-{digits}.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    url = f"https://127.0.0.1:9/resnet18-{digits}.pth"
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", url)
    words = ("model=torchvision", "model.name=resnet18", "model.pretrained=imagenet")
    source = photos / "b=c,d.jpg"
    [said] = predict(*words, f"source={source}", "top_k=1000", out=tmp_path / "out")
    names = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert [one["class"] for one in said["top"]] == [names[one["index"]] for one in said["top"]]
    steps = ResNet18_Weights.IMAGENET1K_V1.transforms()
    with torch.no_grad():
        shares = theirs(steps(Image.open(source))[None]).softmax(1)[0]
    ours = torch.zeros(1000)
    ours[[one["index"] for one in said["top"]]] = torch.tensor(
        [one["probability"] for one in said["top"]]
    )
    assert (ours - shares).abs().max() < 0.1 * shares.max()
