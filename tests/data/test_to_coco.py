"""scripts/to_coco.py: other formats to COCO's, read back by `data=coco`; broken files are named."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cvtrain.data.coco import Coco
from cvtrain.data.source import Augmentations

SCRIPT = Path(__file__).parents[2] / "scripts" / "to_coco.py"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images, of 40x20 and of 10x30 pixels."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "images/a.jpg")
    Image.new("RGB", (10, 30)).save(tmp_path / "images/b.png")
    (tmp_path / "names.txt").write_text("dog\ncat\n\n")
    return tmp_path


Done = tuple[int, str, str]  # the exit code, what was printed, what was said on stderr
Run = Callable[..., Done]


@pytest.fixture
def run(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The script's main, in this process: a fresh one needs seconds for torch."""
    spec = importlib.util.spec_from_file_location("to_coco", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "to_coco", module)
    spec.loader.exec_module(module)

    def main(kind: str, *more: str) -> Done:
        monkeypatch.setattr("sys.argv", ["to_coco.py", *arguments(root, kind), *more])
        try:
            module.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        else:
            code = 0
        return code, *capsys.readouterr()

    return main


def arguments(root: Path, kind: str) -> list[str]:
    folders = ["--images", str(root / "images"), "--labels", str(root / "labels")]
    return [kind, str(root / "out.json"), *folders]


def write(root: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (root / "labels" / name).write_text(text)


def learnt(root: Path) -> tuple[tuple[str, ...], list[tuple[list[list[float]], list[int]]]]:
    """The classes, and of each image its boxes and labels, by the reader of `data=coco`."""
    folders = {"train_dir": "images", "val_dir": "images"}
    jsons = {"train_json": "out.json", "val_json": "out.json"}
    source = Coco(root=str(root), mean=[0.5] * 3, std=[0.5] * 3, **folders, **jsons)
    samples = [source.train(10, Augmentations())[i][2] for i in range(2)]
    return source.info.classes, [(t["boxes"].tolist(), t["labels"].tolist()) for t in samples]


VOC = {
    "a.xml": """<annotation><filename>a.jpg</filename>
        <size><width>40</width><height>20</height></size>
        <object><name>dog</name>
        <bndbox><xmin>3</xmin><ymin>4</ymin><xmax>10</xmax><ymax>9</ymax></bndbox></object>
        <object><name>cat</name><difficult>1</difficult>
        <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>20</ymax></bndbox></object></annotation>""",
    "b.xml": "<annotation></annotation>",
}
YOLO = {"a.txt": "0 0.15 0.325 0.2 0.25\n\n1 0.5 0.5 1 1\n"}  # and no b.txt
LABELME = {
    "a.json": {
        "imagePath": "..\\images\\a.jpg",
        "imageWidth": 40,
        "imageHeight": 20,
        "shapes": [
            {"label": "dog", "shape_type": "rectangle", "points": [[10, 9], [2, 4]]},
            {"label": "cat", "points": [[0, 0], [8, 0], [0, 20]]},
            {"label": "cat", "shape_type": "circle", "points": [[20, 10], [23, 14]]},
        ],
    },
    "b.json": {"imagePath": "b.png", "shapes": []},
}


def test_voc(root: Path, run: Run) -> None:
    write(root, VOC)
    assert run("voc") == (0, f"{root}/out.json: 2 images, 2 boxes\n", "")
    classes, [first, second] = learnt(root)
    assert classes == ("cat", "dog")
    assert first == ([[2, 3, 10, 9], [0, 0, 40, 20]], [2, 1])
    assert second == ([], [])
    top = json.loads((root / "out.json").read_text())
    assert [a["iscrowd"] for a in top["annotations"]] == [0, 1]  # the difficult one
    (root / "set.txt").write_text("a\n")
    assert "1 images" in run("voc", "--list", str(root / "set.txt"))[1]


def test_yolo(root: Path, run: Run) -> None:
    write(root, YOLO)
    assert run("yolo", "--classes", str(root / "names.txt"))[0] == 0
    classes, [first, second] = learnt(root)
    assert classes == ("dog", "cat")
    assert first == ([[2, 4, 10, 9], [0, 0, 40, 20]], [1, 2])
    assert second == ([], [])
    assert run("yolo")[0] == 2


def test_labelme(root: Path, run: Run) -> None:
    write(root, LABELME)
    assert run("labelme")[0] == 0
    classes, [first, second] = learnt(root)
    assert classes == ("cat", "dog")
    assert first == ([[2, 4, 10, 9], [0, 0, 8, 20], [15, 5, 25, 15]], [2, 1, 1])
    assert second == ([], [])
    top = json.loads((root / "out.json").read_text())
    assert [a["area"] for a in top["annotations"]] == [40, 80, 100]
    assert top["annotations"][1]["segmentation"] == [[0, 0, 8, 0, 0, 20]]
    assert [i["file_name"] for i in top["images"]] == ["a.jpg", "b.png"]


BROKEN: list[tuple[str, dict[str, Any], list[str]]] = [
    ("voc", {"b.xml": "<annotation>"}, ["b.xml: is no XML"]),
    ("voc", {"c.xml": "<annotation/>"}, [r"c.xml: has no image"]),
    ("voc", {"b.xml": VOC["a.xml"].replace("a.jpg", "b.png")}, ["b.xml: says 40x20 pixels"]),
    (
        "yolo",
        {"a.txt": "0 0.1 0.1 0.2\n", "b.txt": "2 0.5 0.5 0.1 0.1"},
        ["a.jpg: line 1 is '0 0.1 0.1 0.2', not class 0 to 1", "b.png: line 1 is '2 0.5"],
    ),
    ("yolo", {"a.txt": "dog 0.1 0.1 0.2 0.1"}, ["a.jpg: line 1: invalid literal"]),
    ("yolo", {"a.txt": "0 12 14 3 4"}, ["a.jpg: line 1: these are no shares of the image"]),
    ("yolo", {"a.txt": "0 0.5 0.5 0 0.1"}, ["a.jpg: the box of a 'dog' is 0 pixels wide"]),
    ("yolo", {"a.txt": "0 nan 0.5 0.1 0.1"}, ["a.jpg: the box of a 'dog' is not finite"]),
    (
        "labelme",
        {"a.json": "[]", "b.json": "{"},
        ["a.json: is no labelme", "b.json: is no labelme"],
    ),
    ("labelme", {"a.json": {"imagePath": "a.jpg"}}, ["a.json: has no key 'shapes'"]),
    (
        "labelme",
        {"a.json": {"imagePath": "a.jpg", "shapes": [{"label": 3, "points": [[1, 2]]}]}},
        ["a.json: has a label 3, no text"],
    ),
    (
        "labelme",
        {
            "a.json": {
                "imagePath": "a.jpg",
                "shapes": [{"label": "x", "points": [[1, 2]], "shape_type": "point"}],
            }
        },
        ["a.json: has a point, which has no box"],
    ),
]


@pytest.mark.parametrize(("kind", "files", "lines"), BROKEN, ids=range(len(BROKEN)))
def test_broken_files_are_named(
    root: Path, run: Run, kind: str, files: dict[str, Any], lines: list[str]
) -> None:
    """A line each, exit code 3, and the json of before is still there."""
    good = {"voc": VOC, "yolo": YOLO, "labelme": LABELME}[kind]
    write(root, {**good, **files})
    (root / "out.json").write_text("before")
    code, _, err = run(kind, "--classes", str(root / "names.txt"))
    assert code == 3
    *said, last = err.splitlines()
    assert last == f"to_coco: {len(lines)} broken, nothing written"
    assert len(said) == len(lines)
    for line, expected in zip(said, lines, strict=True):
        assert expected in line
    assert (root / "out.json").read_text() == "before"
    assert sorted(f.name for f in root.iterdir()) == ["images", "labels", "names.txt", "out.json"]


def test_folders_that_are_not_there(root: Path, run: Run) -> None:
    code, _, err = run("voc")  # no XML file in it
    assert code == 3
    assert "no annotations of voc" in err
    code, _, err = run("voc", "--list", str(root / "nowhere.txt"))
    assert code == 1
    assert err.startswith("to_coco: ")


def test_the_command(root: Path) -> None:
    write(root, LABELME)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments(root, "labelme")],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == f"{root}/out.json: 2 images, 3 boxes"
