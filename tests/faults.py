"""The faults that a run has to answer for: what is done to it, and the behaviour that is owed.

A test proves a row by `@pytest.mark.fault("P1")`. The table in README.md beside this file is made
of the results of a test run: `python -m pytest --faults tests/README.md`.
"""

from collections import defaultdict
from pathlib import Path

import yaml

FILE = Path(__file__).with_suffix(".yaml")
FAULTS: dict[str, dict[str, str]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))


def table(outcomes: dict[str, list[tuple[str, str]]]) -> str:
    """Markdown of every row; `outcomes` are (outcome, where) of the tests of each."""
    rows = ["| | done to a run | owed | tests |", "|---|---|---|---|"]
    for name, fault in FAULTS.items():
        verdict = _verdict(outcomes.get(name, []))
        rows.append(f"| {name} | {fault['done']} | {fault['owed']} | {verdict} |")
    return "\n".join(rows)


def _verdict(results: list[tuple[str, str]]) -> str:
    if not results:
        return "no test yet"
    counts: dict[str, int] = defaultdict(int)
    for outcome, _ in results:
        counts[outcome] += 1
    files = ", ".join(sorted({f"`{Path(where).name}`" for _, where in results}))
    said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    return f"{said}: {files}"


def write(path: Path, outcomes: dict[str, list[tuple[str, str]]], about: str) -> None:
    """Replace what stands between the two marks of `path`."""
    begin, end = "<!-- faults: begin -->", "<!-- faults: end -->"
    text = path.read_text(encoding="utf-8")
    head, tail = text.split(begin)[0], text.split(end)[1]
    path.write_text(f"{head}{begin}\n{about}\n\n{table(outcomes)}\n{end}{tail}", encoding="utf-8")
