"""The page of a sweep: its numbers, and a real browser's view of it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from browser import CHROMIUM, Browser
from test_page import Parsed
from written_sweep import write_job, write_sweep

from cvtrain.report.board import Board
from cvtrain.report.page import Chart
from cvtrain.report.sweep import write_leaderboard
from cvtrain.report.sweep_charts import blend, numeric_axis, short_names, word_axis
from cvtrain.report.sweep_parameters import parallel, parameter_axis
from cvtrain.report.sweep_record import SweepRecord

HOSTILE = "<script>document.title='taken'</script>"
real = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_sweep(tmp_path_factory.mktemp("sweeps") / "mine")
    (folder / "lr=0.1,batch_size=32,seed=1" / "report.html").write_text("<title>its own</title>")
    write_leaderboard(folder)
    return folder


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that can be typed is a script; some is very long."""
    folder = tmp_path_factory.mktemp("hostile")
    for number, word in enumerate((HOSTILE, "w" * 300, "a&b", "'\"")):
        swept = {"data.<b>x</b>": word, "size": f"{10**number}", **{f"k{n}": "1" for n in "abc"}}
        figures = {"top1_err": 5.0 + number, f"err_{HOSTILE}": 1.0}
        run = write_job(folder, swept, figures, run=f"run{number}<i>")
        (run / "report.html").write_text("")
    swept = {"data.<b>x</b>": HOSTILE, "size": "1", "kd": "x y"}
    write_job(folder, swept, run="failed", state="failed", error=f"it said {HOSTILE * 20}")
    (folder / "sweep.json").write_text(json.dumps({"name": HOSTILE, "command": HOSTILE}))
    write_leaderboard(folder)
    return folder


def test_numbers_are_those_of_the_summaries(sweep: Path) -> None:
    """Each table cell of a figure holds the value itself."""
    text = (sweep / "leaderboard.html").read_text(encoding="utf-8")
    cells = {float(value) for value in re.findall(r'data-value="([^"]+)"', text)}
    for file in sweep.glob("*/summary.json"):
        told = json.loads(file.read_text())
        assert {value for name, value in told.items() if name.startswith("val/")} <= cells
        assert told["train/images_per_sec"] in cells
    assert {4.0, 0.125**0.5} <= cells  # a mean and a deviation, by hand


def test_sections_and_links(sweep: Path) -> None:
    parsed = Parsed(sweep / "leaderboard.html")
    text = " ".join(parsed.texts)
    for shown in ("Leaderboard", "Parallel coordinates", "Without a figure", "NON-FINITE"):
        assert shown in text
    assert "cvtrain data=mnist optimizer.lr=0.1 data.batch_size=32 seed=1" in parsed.texts
    links = [reference for reference in parsed.references if "report.html" in reference]
    assert links == ["./lr%3D0.1%2Cbatch_size%3D32%2Cseed%3D1/report.html"]


def test_texts_are_texts(hostile: Path) -> None:
    parsed = Parsed(hostile / "leaderboard.html")
    assert parsed.elements.count("script") == 3
    assert not {"i", "b"} & set(parsed.elements)
    assert sum(HOSTILE in text for text in parsed.texts) > 5


def test_two_hundred_jobs(tmp_path: Path) -> None:
    """A page that a mail can carry, and a chart of the first fifty."""
    for number in range(200):
        swept = {"lr": f"{number}", "seed": "0"}
        run = write_job(tmp_path, swept, {"top1_err": 10.0 + number})
        lines = (
            {"step": step, "epoch": step / 100, "train/loss": number + 1 / step}
            for step in range(1, 401)
        )
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_leaderboard(tmp_path)
    assert (tmp_path / "leaderboard.html").stat().st_size < 3_000_000
    assert "The first 50 of 200 runs" in (tmp_path / "leaderboard.html").read_text("utf-8")


def test_axes() -> None:
    axis = numeric_axis("lr", [0.001, 0.1, 10.0], ["1e-3", "0.1", "10"])
    assert axis.places == pytest.approx([0.0, 0.5, 1.0])  # by magnitude
    assert list(axis.ticks.values()) == ["1e-3", "0.1", "10"]
    assert numeric_axis("n", [2.0, 3.0, 4.0], ["2", "3", "4"]).places == [0.0, 0.5, 1.0]
    assert numeric_axis("err", [2.0, 3.0], ["2", "3"], down=True).places == [1.0, 0.0]
    assert numeric_axis("same", [2.0, 2.0], ["2", "2"]).places == [0.5, 0.5]
    assert len(numeric_axis("many", [*map(float, range(40))], [*map(str, range(40))]).ticks) == 5
    words = word_axis("model", ["b", "a", "b"], ["a", "b"])
    assert (words.places, words.ticks) == ([1.0, 0.0, 1.0], {0.0: "a", 1.0: "b"})
    many = word_axis("name", ["30"], [*map(str, range(40))])
    assert len(many.ticks) <= 16
    assert short_names(["optimizer.lr", "a.x", "b.x"]) == ["lr", "a.x", "b.x"]
    assert (blend(0), blend(0.5), blend(1)) == ("#2563eb", "#a855f7", "#f97316")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("0", "1e-5", "1e-2"), [0.0, 0.5, 1.0]),  # evenly: 0 has no magnitude
        (("1e-4", "1e-3", "1e-2"), [0.0, 0.5, 1.0]),
        (("0", "1", "5"), [0.0, 0.2, 1.0]),
        (("-1", "0", "3"), [0.0, 0.25, 1.0]),
        (("sgd", "adam", "lion"), [1.0, 0.0, 0.5]),
    ],
)
def test_the_axis_of_a_parameter(
    values: tuple[str, ...], expected: list[float], tmp_path: Path
) -> None:
    for number, value in enumerate(values):
        write_job(tmp_path, {"k": value}, {"top1_err": float(number)}, run=f"{number}")
    board = Board.of(SweepRecord.read(tmp_path))
    shown = [job for group in board.groups for job in group.jobs]
    assert parameter_axis(board, "k", shown).places == pytest.approx(expected)


@pytest.mark.parametrize(("primary", "best"), [("top1_err", "0"), ("mAP", "2")])
def test_the_best_is_on_top_and_blue(primary: str, best: str, tmp_path: Path) -> None:
    for number in range(3):
        figures = {primary: 10.0 + number}
        write_job(tmp_path, {"k": f"{number}"}, figures, run=f"{number}", primary=primary)
    [chart] = parallel(Board.of(SweepRecord.read(tmp_path)))
    assert isinstance(chart, Chart)
    sources = (one.data_source.data for one in chart.figure.renderers)
    [lines] = [source for source in sources if "colour" in source]
    place = lines["run"].index(best)
    assert lines["ys"][place][-1] == max(ys[-1] for ys in lines["ys"]) == 1.0
    assert lines["colour"][place] == "#2563eb"


# In the browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@real
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["sweep", "hostile"])
def test_a_page_is_whole(
    name: str, width: int, browser: Browser, request: pytest.FixtureRequest
) -> None:
    """No complaint, no request, nothing wider than the window, every chart drawn."""
    page = request.getfixturevalue(name) / "leaderboard.html"
    title = "sweep mine" if name == "sweep" else f"sweep {HOSTILE}"
    for dark in (False, True):
        browser.open(page, width=width, dark=dark)
        assert browser.complaints() == []
        assert browser.requests() == [page.resolve().as_uri()]
        assert browser.evaluate("document.title") == title
        assert browser.evaluate("document.scrollingElement.scrollWidth") <= width
        outside = f"""[...document.querySelectorAll("main *, header *")].filter((element) => {{
            const box = element.getBoundingClientRect();
            return box.right > {width} + 1 && !element.closest(".scroll > *, pre > *");
        }}).map((element) => element.outerHTML.slice(0, 80))"""
        assert browser.evaluate(outside) == []
        sizes = """[...document.querySelectorAll(".chart > div")].map((place) =>
            [place.clientWidth, place.clientHeight])"""
        drawn = browser.evaluate(sizes)
        assert len(drawn) >= 5
        assert all(across > 250 and down > 100 for across, down in drawn)


@real
@pytest.mark.parametrize(
    ("chart", "shown"),
    [(0, "<i>"), (2, HOSTILE), (3, "<i>")],
    ids=["curves", "parallel", "effect"],
)
def test_what_is_hovered_over_is_text(
    chart: int, shown: str, browser: Browser, hostile: Path
) -> None:
    """Down a line across the chart, until the mouse meets the right one."""
    browser.open(hostile / "leaderboard.html", width=1280)
    left, top, across, down = browser.evaluate(f"""(() => {{
        const box = document.querySelectorAll(".chart")[{chart}].getBoundingClientRect();
        return [box.x + scrollX, box.y + scrollY, box.width, box.height];
    }})()""")
    browser.evaluate(f"scrollTo(0, {top - 20})")
    browser.settle()
    seen = ""
    for step in range(60):
        aside = (0.3, 0.3, 0.3, 0.42)[chart]  # where the second of four values is
        where = {"x": left + aside * across, "y": 20 + step / 60 * down}
        browser("Input.dispatchMouseEvent", type="mouseMoved", **where)
        browser.evaluate("new Promise((done) => requestAnimationFrame(done))")
        seen += browser.evaluate("""[...document.querySelectorAll(".bk-Tooltip")].map((shown) =>
            shown.shadowRoot.querySelector(".bk-tooltip-content").innerText).join()""")
        if shown in seen:
            break
    assert shown in seen
    assert browser.evaluate("document.title") == f"sweep {HOSTILE}"


@real
def test_the_command_is_copied(browser: Browser, sweep: Path) -> None:
    browser.open(sweep / "leaderboard.html", width=1280)
    box = browser.evaluate("""(() => {
        const box = document.querySelector("button.copy").getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2];
    })()""")
    for kind in ("mousePressed", "mouseReleased"):
        where = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
        browser("Input.dispatchMouseEvent", type=kind, **where)
    browser.settle()
    assert browser.evaluate("document.querySelector('button.copy').textContent") == "copied"
    command = "cvtrain data=mnist optimizer.lr=0.1 data.batch_size=32 seed=1"
    assert browser.evaluate("getSelection().toString()").strip() == command


@real
def test_a_click_sorts_and_a_link_leads_to_the_run(browser: Browser, sweep: Path) -> None:
    browser.open(sweep / "leaderboard.html", width=1280)
    column = """(() => {
        const tables = [...document.querySelectorAll("table")];
        const table = tables.find((one) => one.tHead.textContent.includes("images/s"));
        const heads = [...table.tHead.rows[0].cells];
        const shown = heads.findIndex((one) => one.textContent === "top1_err, %");
        heads[shown].querySelector("button").click();
        return [...table.tBodies[0].rows].map((row) => row.cells[shown].textContent);
    })()"""
    rising = [float(text) for text in browser.evaluate(column)]
    assert rising == sorted(rising)
    assert len(rising) == 10
    report = sweep / "lr=0.1,batch_size=32,seed=1" / "report.html"
    leads_to = unquote(browser.evaluate("document.querySelector('td a').href"))
    assert leads_to == unquote(report.resolve().as_uri())
