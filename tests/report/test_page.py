"""A page holds what it is given, as text, and needs nothing else."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from bokeh.plotting import figure
from PIL import Image

from cvtrain.errors import MachineError
from cvtrain.report.page import (
    Chart,
    Details,
    Part,
    Picture,
    Section,
    Table,
    Text,
    Tiles,
    write_page,
)

HOSTILE = "<script>alert(1)</script><b>&amp;\"'"
LOADING = {"src", "srcset", "href", "action", "data", "poster", "background", "formaction"}


class Parsed(HTMLParser):
    """The standard library's reading of a page: elements, what they refer to, texts."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.references: list[str] = []
        self.texts: list[str] = []
        self.styles: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.references += [value or "" for name, value in attrs if name in LOADING]
        self.styles += [value or "" for name, value in attrs if name == "style"]

    def handle_data(self, data: str) -> None:
        inside = self.styles if self.elements[-1:] == ["style"] else self.texts
        inside.append(data)


def page_of(folder: Path, *parts: Part, title: str = "title") -> Path:
    file = folder / "page.html"
    write_page(file, title=title, subtitle="", sections=[Section("a section", parts)])
    return file


def chart() -> Chart:
    drawn = figure(title=HOSTILE)
    drawn.line([0, 1], [1, float("nan")], legend_label=HOSTILE)
    return Chart(drawn, HOSTILE)


def test_every_text_is_text(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    parts: list[Part] = [
        Text(HOSTILE),
        Text(HOSTILE, "bad"),
        Tiles([(HOSTILE, HOSTILE, HOSTILE)]),
        Table([HOSTILE], [[HOSTILE], [None]], HOSTILE),
        Picture(pixels, HOSTILE),
        Details(HOSTILE, HOSTILE),
        Details(HOSTILE, [Table([HOSTILE], [[HOSTILE]], HOSTILE), Text(HOSTILE)]),
    ]
    file = tmp_path / "page.html"
    sections = [Section(HOSTILE, parts), Section("other", [chart()])]
    write_page(file, title=HOSTILE, subtitle=HOSTILE, sections=sections)
    parsed = Parsed(file)
    assert parsed.elements.count("b") == 0
    assert parsed.elements.count("script") == 3  # the charts' data, BokehJS and the page's own
    # Title (twice), subtitle, navigation, heading, 2 texts, 3 of tiles, 3 of the table, a
    # picture's caption, 2 of details, 5 of details with parts, a chart's caption.
    assert parsed.texts.count(HOSTILE) == 22


def test_nothing_is_loaded(tmp_path: Path) -> None:
    file = page_of(tmp_path, chart(), Picture(np.zeros((4, 4, 3), np.uint8)))
    parsed = Parsed(file)
    assert parsed.references
    assert all(reference.startswith(("data:", "#")) for reference in parsed.references)
    assert parsed.styles
    assert not re.search(r"url\(|@import", " ".join(parsed.styles))
    assert not {"iframe", "object", "embed", "base", "form", "video"} & set(parsed.elements)
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]+)"', file.read_text("utf-8"))
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


def test_a_page_without_charts_is_small(tmp_path: Path) -> None:
    file = page_of(tmp_path, Text("hello"))
    assert file.stat().st_size < 20_000
    assert "Bokeh.set_log_level" not in file.read_text("utf-8")


def test_large_pictures_are_made_smaller(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 200, 3), np.uint8)
    pixels = np.array(Image.fromarray(noise).resize((2600, 1300)))
    file = page_of(tmp_path, chart(), Picture(pixels))
    assert file.stat().st_size < 2_500_000
    [address] = [r for r in Parsed(file).references if r.startswith("data:image")]
    shown = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert shown.size == (1280, 640)
    expected = Image.fromarray(pixels).resize((1280, 640), Image.Resampling.LANCZOS)
    difference = np.abs(np.array(shown, float) - np.array(expected, float))
    assert difference.mean() < 6


def test_small_pictures_keep_their_size(tmp_path: Path) -> None:
    pixels = np.zeros((30, 40), np.uint8)
    pixels[:, 20:] = 255
    [address] = [
        r for r in Parsed(page_of(tmp_path, Picture(pixels))).references if r.startswith("data:im")
    ]
    shown = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("L")
    assert shown.size == (40, 30)
    assert abs(int(shown.getpixel((5, 15))) - 0) < 8
    assert abs(int(shown.getpixel((35, 15))) - 255) < 8


def test_cells(tmp_path: Path) -> None:
    rows = [["a", 1234567, 0.123456], ["b", None, 12.0]]
    file = page_of(tmp_path, Table(["x", "y", "z"], rows, formats=("", "", ".2f")))
    texts = [text for text in Parsed(file).texts if text.strip()]
    for cell in ("a", "1,234,567", "0.12", "b", "—", "12.00"):
        assert cell in texts
    assert 'data-value="1234567"' in file.read_text("utf-8")


def test_sections_without_parts_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    sections = [Section("full", [Text("x")]), Section("empty", [])]
    write_page(file, title="t", subtitle="", sections=sections)
    assert "empty" not in file.read_text("utf-8")


def test_a_name_that_no_encoding_has(tmp_path: Path) -> None:
    file = page_of(tmp_path, Text("broken\udcff name"), chart())
    assert "broken? name" in file.read_text("utf-8")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="out="):
        page_of(tmp_path / "missing", Text("x"))
