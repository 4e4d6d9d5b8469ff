"""Pages of runs in a real browser: a desktop and a phone, light and dark."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from PIL import Image
from written_run import CLASSES, HOSTILE, write_run

from cvtrain.report.run import write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")

WIDTHS = {"desktop": 1280, "phone": 390}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    files = {}
    for kind in ("classifier", "detector"):
        run = write_run(folder / kind, detector=kind == "detector")
        files[kind] = run / "report.html"
        write_report(run, files[kind])
    return files


def brightness(file: Path) -> float:
    return float(np.array(Image.open(file).convert("L")).mean())


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("kind", ["classifier", "detector"])
def test_a_page_is_whole(
    kind: str, width: int, browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    """No complaint, no request, nothing wider than the window, every chart drawn."""
    shots = {}
    for dark in (False, True):
        browser.open(pages[kind], width=width, dark=dark)
        assert browser.complaints() == []
        assert browser.requests() == [pages[kind].resolve().as_uri()]
        assert browser.evaluate("document.title") == "net on things"  # HOSTILE would change it
        browser.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
        # A phone's innerWidth grows with what overflows: the screen's own width is the measure.
        assert browser.evaluate("document.scrollingElement.scrollWidth") <= width
        outside = f"""[...document.querySelectorAll("main *, header *")].filter((element) => {{
            const box = element.getBoundingClientRect();
            return box.right > {width} + 1 && !element.closest(".scroll > *, pre > *");
        }}).map((element) => element.outerHTML.slice(0, 80))"""
        assert browser.evaluate(outside) == []
        sizes = """[...document.querySelectorAll(".chart > div")].map((place) =>
            [place.clientWidth, place.clientHeight])"""
        drawn = browser.evaluate(sizes)
        assert len(drawn) >= 8
        assert all(across > 250 and down > 100 for across, down in drawn)
        broken = "[...document.images].filter((image) => !image.naturalWidth).length"
        assert browser.evaluate(broken) == 0
        shots[dark] = browser.screenshot(tmp_path / f"{dark}.png", whole=False)
    assert brightness(shots[False]) > 180
    assert brightness(shots[True]) < 110


def test_charts_follow_a_change_of_the_scheme(
    browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    """Switched while it is open, a page looks as one that was opened so."""
    browser.open(pages["classifier"], width=1280, dark=True)
    opened = browser.screenshot(tmp_path / "opened.png", whole=False)
    browser.open(pages["classifier"], width=1280, dark=False)
    scheme = {"name": "prefers-color-scheme", "value": "dark"}
    browser("Emulation.setEmulatedMedia", features=[scheme])
    browser.settle()
    switched = browser.screenshot(tmp_path / "switched.png", whole=False)
    one, other = (np.array(Image.open(file).convert("RGB"), int) for file in (opened, switched))
    assert np.abs(one - other).mean() < 0.5


def test_values_under_the_mouse(browser: Browser, pages: dict[str, Path]) -> None:
    """The confusion matrix tells a cell's classes, as text."""
    browser.open(pages["classifier"], width=1280)
    places = browser.evaluate("""[...document.querySelectorAll(".chart")].map((chart) => {
        const box = chart.getBoundingClientRect();
        return [box.x + scrollX, box.y + scrollY, box.width, box.height];
    })""")
    left, top, across, down = max(places, key=lambda box: box[3])  # the square one
    browser.evaluate(f"scrollTo(0, {top - 20})")
    browser.settle()
    for move in (0.6, 0.62):
        where = {"x": left + move * across, "y": 20 + move * down}
        browser("Input.dispatchMouseEvent", type="mouseMoved", **where)
        browser.settle()
    tooltip = browser.evaluate("""[...document.querySelectorAll(".bk-Tooltip")].map((shown) =>
        shown.shadowRoot.querySelector(".bk-tooltip-content").innerText).join()""")
    assert "predicted" in tooltip
    assert any(name in tooltip for name in CLASSES)


def test_a_finger_scrolls_over_charts(browser: Browser, pages: dict[str, Path]) -> None:
    browser("Emulation.setTouchEmulationEnabled", enabled=True)
    browser.open(pages["classifier"], width=390)
    held = browser.evaluate("""(() => {
        const inside = (root) => [...root.querySelectorAll("*")].flatMap((element) =>
            [element, ...(element.shadowRoot ? inside(element.shadowRoot) : [])]);
        const layers = inside(document).filter((e) => e.classList.contains("bk-events"));
        return layers.map((layer) => getComputedStyle(layer).touchAction);
    })()""")
    browser("Emulation.setTouchEmulationEnabled", enabled=False)
    assert held
    assert set(held) == {"auto"}


def test_a_click_sorts(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["detector"], width=1280)
    first = """(() => {
        const heads = [...document.querySelectorAll("th")];
        const head = heads.find((one) => one.textContent === "AP, %");
        head.querySelector("button").click();
        return [...head.closest("table").tBodies[0].rows].map((row) => row.cells[1].textContent);
    })()"""
    rising, falling = browser.evaluate(first), browser.evaluate(first)
    numbers = [70.0, *range(72, 80)]
    assert rising == [*(f"{number:.2f}" for number in numbers), "—"]
    assert falling == [*(f"{number:.2f}" for number in numbers[::-1]), "—"]


def test_hostile_names_are_shown(browser: Browser, pages: dict[str, Path]) -> None:
    for page in pages.values():
        browser.open(page, width=1280)
        assert HOSTILE in browser.evaluate("document.body.innerText")
        assert browser.evaluate("document.title") == "net on things"
