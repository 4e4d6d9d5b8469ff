"""The README's tables of networks are what scripts/gallery.py makes of the models there are."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from cvtrain.config import config_dir, options
from cvtrain.verbs.summary import read_papers

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def gallery() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "scripts" / "gallery.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tables(gallery: ModuleType) -> dict[str, str]:
    return gallery.tables()


def lines_of(table: str) -> dict[str, str]:
    return {line.split("`")[1]: line for line in table.splitlines()[2:]}


def task_of(name: str) -> str:
    return yaml.safe_load((config_dir() / "model" / f"{name}.yaml").read_text())["task"]


def test_a_row(tables: dict[str, str]) -> None:
    table = tables["gallery"]
    assert (
        "| `resnet50` | ResNet-50, 2015 | 25,557,032 | 3,857,973,248 (3.8 G), 3x224x224 "
        "| 22.85 % top-1, 6.71 % top-5 (ImageNet, ten crops) | " in table
    )
    assert "| `lenet5_1998` | LeNet-5, 1998 | 60,000 (60,000) |" in table
    lines = lines_of(table)
    assert lines["lenet5"].endswith("| mnist, mnist_distorted, shapes |")
    assert lines["lenet5_1998"].endswith("| mnist |")


def test_every_network_is_in_one_table(tables: dict[str, str]) -> None:
    families = {"torchvision", "timm", "torchvision_detector"}
    shown = {name: set(lines_of(table)) for name, table in tables.items()}
    detects = {name for name in options("model") if task_of(name) == "detection"}
    assert shown["detectors"] == detects - families
    assert shown["gallery"] <= {*options("model")} - detects - families
    assert {"lenet5", "mlp"} <= shown["gallery"]
    assert all(line.count("|") == 7 for table in tables.values() for line in table.splitlines())


# Counted elsewhere: 21 outputs are those of VOC; torchvision publishes its own for 91.
DETECTORS = [
    ("rcnn", "56,954,261", 21),
    ("fast_rcnn", "134,690,729", 21),
    ("faster_rcnn", "137,078,239", 21),
    ("faster_rcnn_resnet101_c4", "47,462,111", 21),
    ("fasterrcnn_resnet50_fpn", "41,755,286 (41,755,286)", 91),
    ("maskrcnn_resnet50_fpn", "44,401,393 (44,401,393)", 91),
    ("retinanet_resnet50_fpn", "34,014,999 (34,014,999)", 91),
    ("fcos_resnet50_fpn", "32,269,600 (32,269,600)", 91),
    ("fasterrcnn_resnet50_fpn_v2", "43,712,278 (43,712,278)", 91),
    ("ssd300_vgg16", "35,641,826 (35,641,826)", 91),
    ("ssdlite320_mobilenet_v3_large", "3,440,060 (3,440,060)", 91),
]


@pytest.mark.parametrize(("name", "parameters", "outputs"), DETECTORS)
def test_a_detectors_row(name: str, parameters: str, outputs: int, tables: dict[str, str]) -> None:
    assert f" | {parameters} | {outputs} | " in lines_of(tables["detectors"])[name]


def test_figures_and_recipes_of_a_detector(tables: dict[str, str]) -> None:
    lines = lines_of(tables["detectors"])
    assert lines["faster_rcnn"].endswith("| 69.9 % (VOC 2007), 21.2 % (COCO val) | coco, voc |")
    assert "(COCO val2017), 34.6 % (COCO val2017, masks)" in lines["maskrcnn_resnet50_fpn"]
    assert lines["faster_rcnn_tiny"].endswith("|  | shapes_boxes |")  # of no paper


def test_figures_are_those_of_the_recipes() -> None:
    """Each that a recipe of a detector publishes is one of the table's."""
    papers = read_papers()
    for name in (n for n in options("model") if task_of(n) == "detection" and n in papers):
        for recipe in options("recipe"):
            text = (config_dir() / "recipe" / f"{recipe}.yaml").read_text()
            published = yaml.safe_load(text).get("published", {})
            if recipe in (f"{name}_voc", f"{name}_coco"):
                figures = {published[k] for k in ("mAP", "voc_mAP", "mask_mAP") if k in published}
                assert figures <= {*papers[name].get("mAP", {}).values()}, recipe


def test_between_the_markers(gallery: ModuleType) -> None:
    text = "a\n<!-- gallery -->\nold\n<!-- /gallery -->\nb\n"
    once = gallery.put(text, "gallery", "| new |")
    assert once == "a\n<!-- gallery -->\n| new |\n<!-- /gallery -->\nb\n"
    assert gallery.put(once, "gallery", "| new |") == once
    assert gallery.put("no markers", "gallery", "| new |") is None
    assert gallery.put(text, "detectors", "| new |") is None


NEW = {"gallery": "| new |", "detectors": "| newer |"}


@pytest.mark.parametrize(
    ("old", "code"),
    [
        (NEW, 0),
        ({**NEW, "gallery": "| old |"}, 1),
        ({**NEW, "detectors": "| old |"}, 1),
        ({"gallery": "| new |"}, 1),  # no markers of the other
        ({}, 1),
    ],
)
def test_check_and_write(
    old: dict[str, str],
    code: int,
    gallery: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readme = tmp_path / "README.md"
    blocks = (f"<!-- {name} -->\n{table}\n<!-- /{name} -->" for name, table in old.items())
    readme.write_text("\ntext\n".join(blocks))
    monkeypatch.setattr(gallery, "README", readme)
    monkeypatch.setattr(gallery, "tables", lambda: NEW)

    def run(word: str) -> int | str | None:
        monkeypatch.setattr("sys.argv", ["gallery.py", word])
        try:
            gallery.main()
        except SystemExit as end:
            return end.code
        return 0

    assert bool(run("--check")) == bool(code)  # a text: exit code 1
    before = readme.read_text()
    if old.keys() != NEW.keys():
        assert run("--write")
        assert readme.read_text() == before
    else:
        assert run("--write") == 0
        assert run("--check") == 0
        assert readme.read_text().count("\ntext\n") == 1


def test_the_readme_is_current(gallery: ModuleType, tables: dict[str, str]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, table in tables.items():
        assert lines_of(table)
        assert gallery.put(text, name, table) == text, "python scripts/gallery.py --write"
