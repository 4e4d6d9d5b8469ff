"""`cvtrain check`: what was put into a data set is found in it, and nothing where all is well."""

import csv
import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import command, write_data, write_mnist, write_objects, write_table

from cvtrain import cli
from cvtrain.checks.duplicates import exact, near
from cvtrain.checks.look import THUMB, look
from cvtrain.errors import ConfigError, DataError

SMALL = ("data.image_size=32", "data.batch_size=8", "trainer.threads=1")
NAME = "a copy = (1),\nof it.jpg"  # what a shell, Hydra, a table and a line each trip over


def photo(seed: int, width: int = 96, height: int = 72) -> Image.Image:
    """Smooth and unlike every other."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def draw(root: Path, *, classes: tuple[str, ...] = ("ants", "bees")) -> Path:
    for split, count in (("train", 12), ("val", 4)):
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                seed = 1000 * (split == "val") + 100 * label + i
                photo(seed).save(root / split / name / f"{i:02}.jpg")
    return root


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:900])


def spoil(root: Path) -> dict[str, tuple[str, str]]:
    """Of each kind of finding the files that it is about, below `root`."""
    ants, bees = root / "train/ants", root / "train/bees"
    truncate(ants / "01.jpg")
    shutil.copy(ants / "02.jpg", root / "val/ants" / NAME)
    with Image.open(ants / "03.jpg") as image:
        image.resize((60, 45)).save(ants / "again.png")
    (root / "train/moths").mkdir()
    (root / "val/moths").mkdir()
    deep = np.random.default_rng(5).integers(0, 65536, (40, 50)).astype(np.uint16)
    Image.fromarray(deep).save(bees / "deep.png")
    turn = Image.Exif()
    turn[0x0112] = 6
    photo(501).save(bees / "turned (2).jpg", exif=turn)
    return {
        "unreadable": ("train/ants/01.jpg", ""),
        "duplicate across splits": ("train/ants/02.jpg", f"val/ants/{NAME}"),
        "near duplicate": ("train/ants/03.jpg", "train/ants/again.png"),
        "16 bits": ("train/bees/deep.png", ""),
        "turned by EXIF": ("train/bees/turned (2).jpg", ""),
    }


def tree(root: Path) -> dict[str, tuple[str, int]]:
    """Every file's content and when it was changed."""
    files = (file for file in sorted(root.rglob("*")) if file.is_file())
    return {
        str(file): (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)
        for file in files
    }


def checked(folder: Path, *words: str) -> dict[str, Any]:
    """check.json of `cvtrain check`, in this process; `code` is the exit code."""
    error = None
    try:
        cli.run(["check", *words, f"out={folder}"])
    except DataError as refused:
        error = refused
    assert error is None or error.name == "CHECK"
    report = json.loads((folder / "check.json").read_text())
    return {**report, "code": error.code if error else 0}


def found_of(report: dict[str, Any], kind: str) -> list[tuple[str, str]]:
    rows = report["found"].get(kind, [])
    return [(row["where"], row.get("other", "")) for row in rows]


def test_each_fault_of_a_folder_is_named(tmp_path: Path) -> None:
    root = draw(tmp_path / "my photos (1)")
    expected = spoil(root)
    for entry in [root, *root.rglob("*")]:
        entry.chmod(0o555 if entry.is_dir() else 0o444)
    before = tree(root)
    words = ("check", "data=folder", f"data.root='{root}'", *SMALL, "out=look")
    done = command(*words, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"}, fresh=True)
    assert done.returncode == 3, done.stderr
    assert tree(root) == before
    report = json.loads((tmp_path / "look/check.json").read_text())
    for kind, names in expected.items():
        paths = tuple(str(root / name) if name else "" for name in names)
        assert found_of(report, kind) == [paths]
        assert kind in done.stdout
        for path in filter(None, paths):
            assert path.replace("\n", "\\n") in done.stdout
    assert report["found"]["empty class"] == [{"where": "train", "what": "moths"}]
    # Both of what training would refuse, not only the first.
    assert [error.partition("]")[0] for error in report["errors"]] == ["[BAD-IMAGE", "[CLASSES"]
    assert report["splits"]["train"]["classes"]["class"] == {"ants": 12, "bees": 14, "moths": 0}
    last = done.stderr.splitlines()[-1]
    assert last.startswith("cvtrain: error[CHECK]: training would fail: BAD-IMAGE, CLASSES; look/")
    with (tmp_path / "look/check.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert str(root / f"val/ants/{NAME}") in [row["other"] for row in rows]
    for name in ("check_samples.png", "check_duplicates.png", "check_odd.png"):
        assert Image.open(tmp_path / "look" / name).width > 144
    assert "turned (2).jpg" in (tmp_path / "look/check.html").read_text()


def test_a_clean_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = draw(tmp_path / "photos")
    report = checked(tmp_path / "check", "data=folder", f"data.root={root}", *SMALL)
    assert "nothing to look at" in capsys.readouterr().out
    assert (report["code"], report["would_train"]) == (0, True)
    assert (report["errors"], report["found"]) == ([], {})
    assert report["sizes"]["smallest"] == report["sizes"]["largest"] == [96, 72]
    files = [
        file for name in ("ants", "bees") for file in sorted((root / "train" / name).iterdir())
    ]
    pixels = np.stack([np.asarray(Image.open(file)) for file in files]).astype(float) / 255
    assert report["pixels"]["images"] == 24
    assert report["pixels"]["mean"] == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-4)
    assert report["pixels"]["std"] == pytest.approx(pixels.std((0, 1, 2)), abs=1e-4)
    assert (tmp_path / "check/check_samples.png").exists()


def test_more_bad_images_than_may_be_left_out(tmp_path: Path) -> None:
    """No source can be made of them, and yet all of the rest is looked at."""
    root = draw(tmp_path / "photos")
    spoil(root)
    truncate(root / "train/bees/07.jpg")
    report = checked(tmp_path / "out", "data=folder", f"data.root={root}", *SMALL)
    assert report["code"] == 3
    names = ("ants/01.jpg", "bees/07.jpg")
    assert found_of(report, "unreadable") == [(str(root / "train" / n), "") for n in names]
    assert len(report["found"]["duplicate across splits"]) == 1
    assert report["found"]["empty class"] == [{"where": "train", "what": "moths"}]
    assert (tmp_path / "out/check_images.png").exists()


def cut(data: bytes, after: int) -> bytes:
    """A JPEG that goes on no further than so many bytes after its header, and ends all the same."""
    return data[: data.index(b"\xff\xda") + after] + b"\xff\xd9"


def test_what_only_the_pixels_show(tmp_path: Path) -> None:
    root = draw(tmp_path / "photos")
    file, mended = root / "train/ants/03.jpg", root / "train/ants/04.jpg"
    file.write_bytes(cut(file.read_bytes(), 0))
    mended.write_bytes(cut(mended.read_bytes(), 400))
    report = checked(tmp_path / "out", "data=folder", f"data.root={root}", *SMALL)
    assert report["code"] == 3
    assert report["found"].keys() == {"unreadable", "damaged"}
    assert found_of(report, "unreadable") == [(str(file), "")]
    assert found_of(report, "damaged") == [(str(mended), "")]
    assert "images that cannot be read: 1, as " in report["errors"][0]


@pytest.mark.parametrize("allowed", [True, False])
def test_what_the_config_allows_is_no_error(tmp_path: Path, allowed: bool) -> None:
    root = draw(tmp_path / "photos")
    spoil(root)
    keys = ("data.on_bad=skip", "data.allow_empty=true") if allowed else ()
    report = checked(tmp_path / "out", "data=folder", f"data.root={root}", *SMALL, *keys)
    assert report["code"] == (0 if allowed else 3)
    assert len(report["found"]["unreadable"]) == 1


def test_the_same_bytes_in_two_classes(tmp_path: Path) -> None:
    root = draw(tmp_path / "photos")
    shutil.copy(root / "train/ants/05.jpg", root / "train/bees/other.jpg")
    report = checked(tmp_path / "out", "data=folder", f"data.root={root}", *SMALL)
    pair = (str(root / "train/ants/05.jpg"), str(root / "train/bees/other.jpg"))
    assert found_of(report, "two classes") == found_of(report, "duplicate") == [pair]
    assert report["found"]["two classes"][0]["what"] == "ants and bees"


def test_arrays(tmp_path: Path) -> None:
    """Noise that tells its class; one digit of validation is made one of training."""
    raw = write_mnist(tmp_path, packed=False)
    images = bytearray((raw / "t10k-images-idx3-ubyte").read_bytes())
    train = (raw / "train-images-idx3-ubyte").read_bytes()
    images[16 + 3 * 784 : 16 + 4 * 784] = train[16 + 7 * 784 : 16 + 8 * 784]
    (raw / "t10k-images-idx3-ubyte").write_bytes(images)
    report = checked(tmp_path / "out", "data=mnist", f"data_dir={tmp_path}", "data.batch_size=8")
    assert report["code"] == 0
    assert found_of(report, "duplicate across splits") == [("train[7]", "val[3]")]
    pixels = np.frombuffer(train[16:], np.uint8) / 255
    assert report["pixels"]["mean"] == pytest.approx([pixels.mean()], abs=1e-4)
    assert report["pixels"]["std"] == pytest.approx([pixels.std()], abs=1e-4)
    labels = np.frombuffer((raw / "train-labels-idx1-ubyte").read_bytes()[8:], np.uint8)
    counts = report["splits"]["train"]["classes"]["class"]
    assert list(counts.values()) == np.bincount(labels, minlength=10).tolist()


def test_a_split_that_is_missing(tmp_path: Path) -> None:
    raw = write_mnist(tmp_path)
    for file in raw.glob("t10k*"):
        file.unlink()
    words = ("data=mnist", f"data_dir={tmp_path}", "data.batch_size=8", "data.url=null")
    report = checked(tmp_path / "out", *words)
    assert report["code"] == 3
    assert report["errors"][0].startswith("[NO-DATA] no t10k-images")
    assert report["splits"]["train"]["images"] == 48


def coco(root: Path, boxes: list[list[float]], on_bad: str) -> list[str]:
    """COCO data, of which the first annotations of training get these boxes."""
    words = write_data("coco", root)
    file = root / "coco/annotations/train.json"
    top = json.loads(file.read_text())
    for annotation, box in zip(top["annotations"], boxes, strict=False):
        annotation["bbox"] = box
    file.write_text(json.dumps(top))
    return ["data=coco", *words, f"data.on_bad_boxes={on_bad}", "data.image_size=48"]


@pytest.mark.parametrize(
    ("boxes", "on_bad", "code"),
    [
        ([[4, 6, 0, 20]], "error", 3),
        ([[4, 6, 0, 20]], "drop", 0),
        ([[4, 6, 0, 20], [500, 6, 9, 9]], "drop", 3),  # more than may be left out
    ],
)
def test_bad_boxes(tmp_path: Path, boxes: list[list[float]], on_bad: str, code: int) -> None:
    report = checked(tmp_path / "out", *coco(tmp_path, boxes, on_bad))
    assert report["code"] == code
    bad = report["found"]["bad box"]
    assert [row["where"] for row in bad] == [str(tmp_path / "coco/train/train001.jpg")] * len(boxes)
    assert "annotations[0] is 0 pixels wide" in bad[0]["what"]
    assert report["boxes"]["train"]["boxes"] == 18 - len(boxes)
    assert bool(report["errors"]) == (code == 3)


def test_statistics_of_boxes(tmp_path: Path) -> None:
    report = checked(tmp_path / "out", *coco(tmp_path, [], "error"))
    said = json.loads((tmp_path / "coco/annotations/train.json").read_text())
    figures, boxes = report["boxes"]["train"], [a["bbox"] for a in said["annotations"]]
    assert (report["code"], figures["boxes"], figures["empty_images"]) == (0, len(boxes), 3)
    assert figures["an_image"]["max"] == 2
    assert figures["small"] == len(boxes)  # by their area of 100 pixels
    aspects = [across / down for _, _, across, down in boxes]
    assert figures["aspect"]["max"] == pytest.approx(max(aspects), abs=1e-4)
    assert {n: c["boxes"] for n, c in figures["categories"].items()} == {"car": 9, "dog": 9}


def test_a_box_that_is_there_twice(tmp_path: Path) -> None:
    words = coco(tmp_path, [], "error")
    file = tmp_path / "coco/annotations/train.json"
    top = json.loads(file.read_text())
    top["annotations"].append({**top["annotations"][2], "id": 999})
    file.write_text(json.dumps(top))
    report = checked(tmp_path / "out", *words)
    assert found_of(report, "box twice") == [(str(tmp_path / "coco/train/train002.jpg"), "")]


def test_bad_annotations_of_voc(tmp_path: Path) -> None:
    write_objects(tmp_path / "VOCdevkit")
    file = tmp_path / "VOCdevkit/Annotations/train002.xml"
    file.write_text(file.read_text().replace("<xmin>5</xmin>", "<xmin>60</xmin>"))
    other = tmp_path / "VOCdevkit/Annotations/train005.xml"
    other.write_text("no xml")
    words = ("data=voc", f"data_dir={tmp_path}", "data.train_sets=[train]", "data.val_sets=[val]")
    report = checked(tmp_path / "out", *words)
    assert report["code"] == 3
    assert found_of(report, "bad box") == [(str(file), "")]
    assert found_of(report, "bad label") == [(str(other), "")]


def test_bad_boxes_of_a_table(tmp_path: Path) -> None:
    write_table(tmp_path / "csv_box", boxes=True)
    file = tmp_path / "csv_box/train.csv"
    lines = file.read_text().splitlines()
    lines[3], lines[9] = lines[3].replace(",3,", ",900,"), lines[9].replace(",3,", ",none,")
    file.write_text("\n".join(lines))
    words = ("data=csv_box", f"data_dir={tmp_path}", "data.batch_size=8", "data.image_size=32")
    report = checked(tmp_path / "out", *words)
    assert report["code"] == 3
    images = [str(tmp_path / f"csv_box/train/photos/{n}.jpg") for n in (2, 8)]
    assert [where for where, _ in found_of(report, "bad box")] == images


def test_odd_files(tmp_path: Path) -> None:
    root = draw(tmp_path / "photos")
    bees = root / "train/bees"
    photo(601).convert("CMYK").save(bees / "printer.jpg")
    photo(602).save(bees / "liar.jpg", format="PNG")
    photo(603).convert("RGBA").save(bees / "alpha.png")
    photo(604).save(bees / "film.gif", save_all=True, append_images=[photo(605), photo(606)])
    photo(607, 300, 20).save(bees / "long.jpg")
    photo(608, 9, 9).save(bees / "tiny.jpg")
    photo(609).convert("L").save(bees / "grey.jpg")
    Image.new("RGB", (50, 50), "red").save(bees / "red.png")
    report = checked(tmp_path / "out", "data=folder", f"data.root={root}", *SMALL)
    assert report["code"] == 0
    kinds = {
        **{"CMYK": "printer.jpg", "another suffix": "liar.jpg", "transparent": "alpha.png"},
        **{"animated": "film.gif", "palette": "film.gif", "extreme aspect": "long.jpg"},
        **{"tiny": "tiny.jpg", "grey among colour": "grey.jpg", "of one colour": "red.png"},
    }
    assert report["found"].keys() == kinds.keys()
    for kind, name in kinds.items():
        assert found_of(report, kind) == [(str(bees / name), "")]


def test_too_few_for_a_step(tmp_path: Path) -> None:
    root = draw(tmp_path / "photos")
    words = ("data=folder", f"data.root={root}", "data.image_size=32", "data.batch_size=64")
    report = checked(tmp_path / "out", *words)
    assert report["code"] == 3
    assert report["errors"][0].startswith("[NO-STEPS] 24 train samples in batches of 64")
    assert (tmp_path / "out/check_samples.png").exists()


def test_no_data(tmp_path: Path) -> None:
    report = checked(tmp_path / "out", "data=folder", f"data.root={tmp_path / 'nowhere'}")
    assert report["code"] == 3
    assert report["errors"][0].startswith("[NO-DATA]")
    assert (tmp_path / "out/check.html").exists()


def test_the_report_does_not_lie_among_the_images(tmp_path: Path) -> None:
    root = draw(tmp_path / "photos")
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match="among the data"):
        cli.run(["check", "data=folder", f"data.root={root}", f"out={root / 'check'}"])
    assert tree(tmp_path) == before


# Duplicates, by themselves


def thumb(image: Image.Image, folder: Path, **options: Any) -> np.ndarray:
    file = folder / f"one.{options.get('format', 'PNG').lower()}"
    image.save(file, **options)
    seen = look(file, max_pixels=10**8, count=False)
    assert seen.thumb is not None
    return seen.thumb


@pytest.mark.parametrize("change", ["quality", "half", "brighter"])
def test_changed_pictures_are_near(tmp_path: Path, change: str) -> None:
    pictures = [photo(seed, 160, 120) for seed in range(8)]
    options: dict[str, Any] = {"format": "JPEG", "quality": 20} if change == "quality" else {}
    size = (80, 60) if change == "half" else (160, 120)
    gain = 0.8 if change == "brighter" else 1.0
    again = [picture.resize(size).point(lambda value: gain * value) for picture in pictures]
    thumbs = [thumb(picture, tmp_path) for picture in pictures]
    thumbs += [thumb(picture, tmp_path, **options) for picture in again]
    pairs = near(np.stack(thumbs), np.arange(16))
    assert sorted((first, second) for first, second, _ in pairs) == [(i, i + 8) for i in range(8)]


def test_noise_has_no_near_pairs() -> None:
    thumbs = np.random.default_rng(0).integers(0, 256, (3000, THUMB, THUMB), dtype=np.uint8)
    assert near(thumbs, np.arange(3000)) == []
    thumbs[2999] = thumbs[17]
    assert near(thumbs, np.arange(3000)) == [(17, 2999, 0)]
    assert near(thumbs, np.arange(2999)) == []


def test_plain_pictures_are_not_near() -> None:
    thumbs = np.full((50, THUMB, THUMB), 200, np.uint8)
    assert near(thumbs, np.arange(50)) == []
    assert near(thumbs, np.arange(0)) == []


def test_exact_groups() -> None:
    digests = np.zeros((6, 16), np.uint8)
    digests[:, 0] = [3, 1, 3, 2, 1, 3]
    good = np.array([True, True, True, True, True, False])
    assert exact(digests, good) == [[0, 2], [1, 4]]


def test_sixteen_bits_of_colour(tmp_path: Path) -> None:
    """Pillow opens such a PNG as if it had eight."""
    cv2 = pytest.importorskip("cv2")
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 20, 3)).astype(np.uint16)
    file = tmp_path / "deep.png"
    file.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    assert Image.open(io.BytesIO(file.read_bytes())).mode == "RGB"
    assert [kind for kind, _ in look(file, max_pixels=10**6, count=False).odd] == ["16 bits"]


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.filterwarnings("ignore")
def test_no_file_ends_a_check(tmp_path: Path, form: str) -> None:
    """Of three frames where there can be so many, spoilt or cut off anywhere."""
    rng, file = np.random.default_rng(0), tmp_path / f"film.{form.lower()}"
    frames = {"save_all": True, "append_images": [photo(2), photo(3)]} if form != "JPEG" else {}
    photo(1).save(file, **frames)
    whole = file.read_bytes()
    assert look(file, max_pixels=10**6, count=True).bad == ""
    seen = []
    for trial in range(40):
        data, place = bytearray(whole), int(rng.integers(20, len(whole) - 20))
        data[place : place + 8] = rng.bytes(8)
        file.write_bytes(data if trial % 2 else whole[:place])
        seen.append(look(file, max_pixels=10**6, count=True))
    assert any(one.bad or "damaged" in dict(one.odd) for one in seen)
    assert all(one.bad or one.thumb is not None for one in seen)
