"""All that a check has found, and the files that tell of it."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvtrain.checks.look import Facts
from cvtrain.checks.parts import Found, Part
from cvtrain.files import whole

PICTURES = ("check_samples.png", "check_images.png", "check_duplicates.png", "check_odd.png")


@dataclass
class Result:
    title: str  # the data set's
    root: str
    parts: list[Part]
    facts: Facts
    figures: dict[str, Any]
    errors: list[str]  # for which training would end
    found: list[Found]
    notes: list[str]  # that the source has made
    pictures: dict[str, NDArray[np.uint8]] = field(default_factory=dict)  # by name of the file

    def of_kind(self) -> dict[str, list[Found]]:
        """What was found, by kind."""
        kinds: dict[str, list[Found]] = {}
        for one in self.found:
            kinds.setdefault(one.kind, []).append(one)
        return kinds

    def write(self, folder: Path) -> list[str]:
        """Data and pictures. Returns the names of the files; MachineError where none can be."""
        top = {
            "data": self.title,
            "root": self.root,
            "would_train": not self.errors,
            "errors": self.errors,
            **self.figures,
            "notes": self.notes,
            "found": {
                kind: [
                    {k: v for k, v in one._asdict().items() if v and k != "kind"} for one in all_
                ]
                for kind, all_ in self.of_kind().items()
            },
        }
        with whole(folder / "check.json", key="out") as file:
            file.write_text(json.dumps(top, indent=1))
        with (
            whole(folder / "check.csv", key="out") as file,
            file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as rows,
        ):
            writer = csv.writer(rows)
            writer.writerow(["kind", "path", "other", "what"])
            writer.writerows([one.kind, one.where, one.other, one.what] for one in self.found)
        for name in set(PICTURES) - self.pictures.keys():  # of an earlier check
            (folder / name).unlink(missing_ok=True)
        for name, picture in self.pictures.items():
            with whole(folder / name, key="out") as file:
                Image.fromarray(picture).save(file, format="PNG")
        return ["check.json", "check.csv", *self.pictures]
