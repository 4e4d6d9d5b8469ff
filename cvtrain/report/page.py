"""One self-contained HTML file: tables, charts to hover over, pictures; light and dark, any width.

Nothing in it is loaded from elsewhere, and its content security policy forbids a browser to. Every
text is escaped. Charts are Bokeh's; their colours follow the page's (page.js).
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from PIL import Image

from cvtrain.files import whole

HERE = Path(__file__).parent
WIDEST = 1280  # pixels of a picture, as much as the page shows
QUALITY = 88  # of a picture, as WebP counts


@dataclass(frozen=True)
class Link:
    """A cell that leads to another file; `address` is relative to the page, and quoted."""

    text: str
    address: str


Cell = str | int | float | Link | None


@dataclass(frozen=True)
class Text:
    """A paragraph; in a coloured box if `kind` is `note`, `good`, `warning` or `bad`, as `code`
    in a typewriter's letters, as `code copy` with a button that copies it."""

    text: str
    kind: str = ""
    template: ClassVar[str] = "text"
    wide: ClassVar[bool] = True


@dataclass(frozen=True)
class Details:
    """What is folded away: a text as it is, line by line, or other parts."""

    summary: str
    content: "str | Sequence[Part]"
    template: ClassVar[str] = "details"
    wide: ClassVar[bool] = True


@dataclass(frozen=True)
class Table:
    """Rows that a click on a column's head sorts; None is a dash.

    `formats` are format specs of the columns, as `.2f`, for their numbers; `{:.4g}` for floats and
    `{:,}` for integers otherwise. `wide` takes the page's whole width.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    formats: Sequence[str] = ()
    wide: bool = True
    template: ClassVar[str] = "table"

    def shown(self, column: int, cell: Cell) -> str:
        if cell is None:
            return "—"
        if isinstance(cell, str | Link):
            return cell if isinstance(cell, str) else cell.text
        spec = self.formats[column] if column < len(self.formats) else ""
        return format(cell, spec or (".4g" if isinstance(cell, float) else ","))


@dataclass(frozen=True)
class Tiles:
    """A few figures in large type: (label, value, note) each."""

    tiles: Sequence[tuple[str, str, str]]
    template: ClassVar[str] = "tiles"
    wide: ClassVar[bool] = True


@dataclass(frozen=True)
class Picture:
    """uint8 `[H, W, 3]` or `[H, W]`; half of the page's width, or all of it (`wide`)."""

    pixels: np.ndarray
    caption: str = ""
    wide: bool = False
    template: ClassVar[str] = "picture"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as shown at most, in pixels."""
        height, width = self.pixels.shape[:2]
        return min(width, WIDEST), max(1, round(height * min(1.0, WIDEST / width)))

    @property
    def address(self) -> str:
        """The picture itself, as an address."""
        image = Image.fromarray(self.pixels)
        if image.size != self.size:
            image = image.resize(self.size, Image.Resampling.LANCZOS)
        image.save(file := io.BytesIO(), format="WEBP", quality=QUALITY)
        return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


@dataclass(frozen=True)
class Chart:
    """A Bokeh figure; half of the page's width, or all of it (`wide`)."""

    figure: Any
    caption: str = ""
    wide: bool = False
    template: ClassVar[str] = "chart"


Part = Text | Details | Table | Tiles | Picture | Chart


@dataclass(frozen=True)
class Section:
    title: str
    parts: Sequence[Part] = field(default_factory=tuple)


def write_page(path: Path, *, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Write the page, whole or not at all; MachineError where it cannot be.

    Sections without parts are left out. Bokeh's script, 1.3 MB, is in pages that have a chart.
    """
    charts = Charts()
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True)
    text = environment.get_template("page.html").render(
        title=title,
        subtitle=subtitle,
        sections=[section for section in sections if section.parts],
        charts=charts,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
    )
    # A name of a file may hold what no encoding has.
    data = text.encode("utf-8", "replace")
    with whole(path, size=len(data), key="out") as temporary:
        temporary.write_bytes(data)


class Charts:
    """The figures of a page, as they come."""

    def __init__(self) -> None:
        self.items: list[Any] = []

    def add(self, chart: Chart) -> str:
        """Returns the id of the place that it will fill."""
        from bokeh.core.types import ID
        from bokeh.embed import json_item

        place = ID(f"chart-{len(self.items)}")
        self.items.append(json_item(chart.figure, place))
        return place

    @property
    def data(self) -> Markup:
        """JSON that cannot end the script it stands in."""
        return Markup(json.dumps(self.items).replace("<", "\\u003c").replace("&", "\\u0026"))

    @property
    def library(self) -> Markup:
        """BokehJS, its core alone."""
        from bokeh.resources import Resources

        inline = Resources(mode="inline", components=["bokeh"], minified=True, log_level="error")
        return Markup("\n".join(inline.js_raw))
