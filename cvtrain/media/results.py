"""What was said, one line for each picture or frame (JSON lines), or one for each thing (CSV)."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from cvtrain.files import writing

FORMATS = ("jsonl", "csv")
ABOUT = ("source", "width", "height", "frame", "time", "drawn")
# Probabilities, too, are scores there. `rank` counts from 1; 0 is that of a picture with nothing.
ROW = ("rank", "column", "class", "index", "score", "left", "top", "right", "bottom", "mask")


class Results:
    """`write` a record; each is in the file at once. Raises MachineError."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.path, self.kind = folder / f"predictions.{kind}", kind
        with writing(self.path, key="out"):
            folder.mkdir(parents=True, exist_ok=True)
            # A name may hold bytes that are no letters; lines are whole after every picture.
            self.file: TextIO = self.path.open(
                "w", encoding="utf-8", errors="backslashreplace", newline="", buffering=1
            )
        self.table = csv.DictWriter(self.file, (*ABOUT, *ROW), restval="")
        if kind == "csv":
            self._put(self.table.writeheader)

    def write(self, record: dict[str, Any]) -> None:
        if self.kind == "csv":
            self._put(self.table.writerows, rows(record))
        else:
            self._put(self.file.write, json.dumps(record, allow_nan=False) + "\n")

    def _put(self, how: Any, *what: Any) -> None:
        with writing(self.path, key="out"):
            how(*what)

    def close(self) -> None:
        with writing(self.path, key="out"):
            self.file.close()


def rows(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A record as rows of a table: one for each object, each column, each of the likeliest."""
    about = {key: record[key] for key in ABOUT if key in record}
    kind = next((key for key in ("objects", "columns", "top") if key in record), "")
    things: list[dict[str, Any]] = record.get(kind, [])
    for rank, thing in enumerate(things, start=1):
        box = thing.get("box") or record.get("box") or []
        row: dict[str, Any] = {key: thing[key] for key in ROW if key in thing and key != "mask"}
        row |= dict(zip(("left", "top", "right", "bottom"), box, strict=False))
        if "mask" in thing:
            row["mask"] = thing["mask"]["counts"]
        yield {**about, "rank": rank, **row, "score": thing.get("score", thing.get("probability"))}
    if not things:
        yield {**about, "rank": 0, "class": record.get("prediction", "")}
