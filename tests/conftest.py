"""For every test: one thread of OpenMP, and the table of faults that is written on request."""

import logging
import os
import platform
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import faults
import pytest

# Two of them beside another busy process are up to ten times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A second of each of hundreds of runs; those that are about the page ask for it.
os.environ.setdefault("CVTRAIN_REPORT", "false")

LONG = ("reliability", "verbs", "exports", "engine", "tests")  # folders of such files
OUTCOMES: dict[str, list[tuple[str, str]]] = defaultdict(list)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", metavar="FILE", help="write the table of faults into FILE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that take minutes run by night; files of long tests come first, so that no worker is
    left alone with one at the end.
    """
    items.sort(key=lambda item: item.path.parent.name not in LONG)
    for item in items if "CVTRAIN_NIGHTLY" not in os.environ else ():
        if item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.skip(reason="set CVTRAIN_NIGHTLY=1"))


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """What we log, a line each."""
    caplog.set_level(logging.INFO, logger="cvtrain")
    logger = logging.getLogger("cvtrain")
    before, logger.propagate = logger.propagate, True  # a run in this process may have changed it
    yield lambda: "\n".join(record.getMessage() for record in caplog.records)
    logger.propagate = before


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Iterator[None]:
    report = yield
    decisive = report.when == "call" or report.outcome != "passed"
    if decisive and not (report.when == "teardown" and report.outcome == "passed"):
        for marker in item.iter_markers("fault"):
            for name in marker.args:
                assert name in faults.FAULTS, f"no fault {name}"
                OUTCOMES[name].append((report.outcome, item.location[0]))
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if file := session.config.getoption("--faults"):
        import torch

        nightly = ", with the long ones" if os.environ.get("CVTRAIN_NIGHTLY") else ""
        about = (
            f"Python {platform.python_version()}, torch {torch.__version__}, "
            f"{len(os.sched_getaffinity(0))} cores{nightly}."
        )
        faults.write(Path(file), OUTCOMES, about)
