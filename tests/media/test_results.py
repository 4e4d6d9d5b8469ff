"""Results as they are read back: by json, by csv."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from cvtrain.errors import MachineError
from cvtrain.media.results import Results

NAME = 'a "b",\nc \udcff.jpg'  # a quote, a comma, a newline, a byte that is no letter
TOP = [
    {"class": "ant", "index": 0, "probability": 0.75},
    {"class": "bee, big", "index": 1, "probability": 0.25},
]
CAR = {"class": "car", "index": 2, "score": 0.5, "box": [1.0, 2.0, 3.5, 4.0]}


def written(folder: Path, kind: str, *records: dict[str, Any]) -> Path:
    results = Results(folder / "out", kind)
    for record in records:
        results.write({"source": NAME, "width": 4, "height": 3, **record})
    results.close()
    return results.path


def test_json_lines(tmp_path: Path) -> None:
    path = written(tmp_path, "jsonl", {"top": TOP}, {"frame": 1, "time": 0.04, "objects": [CAR]})
    first, second = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    assert first == {"source": NAME, "width": 4, "height": 3, "top": TOP}
    assert second["objects"] == [CAR]


def test_a_table(tmp_path: Path) -> None:
    columns = [{"column": "kind", **TOP[0]}]
    path = written(
        *(tmp_path, "csv", {"top": TOP, "box": [0, 0, 2, 2]}, {"frame": 0, "objects": [CAR]}),
        *({"objects": []}, {"columns": columns}),
    )
    with path.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [row["rank"] for row in rows] == ["1", "2", "1", "0", "1"]
    assert [row["class"] for row in rows] == ["ant", "bee, big", "car", "", "ant"]
    assert rows[0]["score"] == "0.75"
    assert (rows[1]["right"], rows[2]["right"]) == ("2", "3.5")
    assert (rows[2]["frame"], rows[0]["frame"]) == ("0", "")
    assert rows[4]["column"] == "kind"
    assert rows[0]["source"].startswith('a "b",\nc ')


def test_every_line_is_there_at_once(tmp_path: Path) -> None:
    results = Results(tmp_path, "jsonl")
    results.write({"source": "a"})
    assert json.loads(results.path.read_text()) == {"source": "a"}
    results.close()


def test_a_place_where_nothing_can_be_written() -> None:
    with pytest.raises(MachineError, match="type out=FOLDER"):
        Results(Path("/proc/nowhere"), "jsonl")
