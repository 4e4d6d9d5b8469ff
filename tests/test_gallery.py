"""The README's table of networks is what scripts/gallery.py makes of the models that are there."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from cvtrain.config import options

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
def table(gallery: ModuleType) -> str:
    return gallery.table()


def test_a_row(table: str) -> None:
    assert (
        "| `resnet50` | ResNet-50, 2015 | 25,557,032 | 3,857,973,248 (3.8 G), 3x224x224 "
        "| 22.85 % top-1, 6.71 % top-5 (ImageNet, ten crops) | " in table
    )
    assert "| `lenet5_1998` | LeNet-5, 1998 | 60,000 (60,000) |" in table
    lines = {line.split("`")[1]: line for line in table.splitlines()[2:]}
    assert lines["lenet5"].endswith("| mnist, mnist_distorted, shapes |")
    assert lines["lenet5_1998"].endswith("| mnist |")
    assert {"torchvision", "timm"}.isdisjoint(lines)  # families
    assert lines.keys() <= set(options("model"))
    assert all(line.count("|") == 7 for line in table.splitlines())


def test_between_the_markers(gallery: ModuleType) -> None:
    text = "a\n<!-- gallery -->\nold\n<!-- /gallery -->\nb\n"
    once = gallery.put(text, "| new |")
    assert once == "a\n<!-- gallery -->\n| new |\n<!-- /gallery -->\nb\n"
    assert gallery.put(once, "| new |") == once
    assert gallery.put("no markers", "| new |") is None


@pytest.mark.parametrize(("old", "code"), [("| new |", 0), ("| old |", 1), (None, 1)])
def test_check_and_write(
    old: str | None,
    code: int,
    gallery: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(gallery.put("<!-- gallery --><!-- /gallery -->", old) if old else "nothing")
    monkeypatch.setattr(gallery, "README", readme)
    monkeypatch.setattr(gallery, "table", lambda: "| new |")
    monkeypatch.setattr("sys.argv", ["gallery.py", "--check"])
    if code:
        with pytest.raises(SystemExit) as end:
            gallery.main()
        assert end.value.code  # a text: exit code 1
    else:
        gallery.main()
    if old:
        monkeypatch.setattr("sys.argv", ["gallery.py", "--write"])
        gallery.main()
        assert "| new |" in readme.read_text()


def test_the_readme_is_current(gallery: ModuleType, table: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    if gallery.put(text, table) is None:
        pytest.skip("README.md has no gallery yet")
    shown = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert shown
    assert gallery.put(text, table) == text, "python scripts/gallery.py --write"
