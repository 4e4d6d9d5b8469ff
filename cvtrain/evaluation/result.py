"""What an evaluation came to: its figures with their intervals, against another's, into files."""

import csv
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvtrain.engine.pictures import write_png
from cvtrain.engine.summary import report_of
from cvtrain.errors import CheckpointError, ConfigError
from cvtrain.evaluation.measured import Measured
from cvtrain.files import whole, write_atomic, writing
from cvtrain.metrics.resample import (
    bootstrap,
    interval,
    mcnemar,
    paired_p,
    resamples_for,
)
from cvtrain.tasks.base import Evaluator, Showing
from cvtrain.tasks.rows import DetectionRows, Rows

log = logging.getLogger(__name__)

SIGNIFICANT = 0.05


@dataclass
class Result:
    """Of one run, or of an ensemble, whose members' figures are `members`."""

    runs: list[str]
    measured: Measured  # of an ensemble the first one
    evaluator: Evaluator
    figures: dict[str, float]
    rows: Rows | None
    seconds: float
    stored: str = ""  # what came of the stored figures
    error: CheckpointError | None = None  # if they are others
    members: "list[Result]" = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.runs[0] if len(self.runs) == 1 else f"{len(self.runs)} runs"

    @property
    def report(self) -> dict[str, Any]:
        return report_of(self.evaluator, self.measured.source)

    @property
    def primary(self) -> str:
        return self.measured.task.primary.name

    def draws(self) -> dict[str, NDArray[np.float64]]:
        """By figure, of each resample of the samples; the same resamples for every run."""
        if self.rows is None or not self.rows.ids:
            return {}
        rows = self.rows
        drawn = bootstrap(rows, len(rows.ids), resamples_for(rows.size))
        return {name: drawn[:, place] for place, name in enumerate(rows.names)}


Interval = tuple[float, float]


def intervals(draws: dict[str, NDArray[np.float64]]) -> dict[str, Interval]:
    """Without those of figures that resampling does not move, as an error of 0."""
    found = {name: interval(column) for name, column in draws.items()}
    return {name: (low, high) for name, (low, high) in found.items() if low < high}


@dataclass(frozen=True)
class Comparison:
    """Of the primary figure: first minus second."""

    figure: str
    first: float
    second: float
    interval: Interval
    p: float
    test: str
    alone: tuple[int, int] | None  # samples that one network alone has wrong: first, second

    @property
    def difference(self) -> float:
        return self.first - self.second

    @property
    def sentence(self) -> str:
        points = f"the difference of {_points(abs(self.difference))} points"
        p = f"p = {self.p:.2g}" if self.p >= 1e-4 else f"p = {self.p:.1e}"
        if self.difference == 0:
            return f"there is no difference ({p})"
        if self.p < SIGNIFICANT:
            return f"{points} is more than chance makes ({p})"
        return f"{points} is within chance ({p})"


def _points(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"


def compare(first: Result, second: Result) -> Comparison:
    """On the same samples. Raises ConfigError where they are not, or nothing is known of each."""
    if first.rows is None or second.rows is None:
        kind = type(first.measured.task).__name__
        raise ConfigError(f"{kind} has no results by sample", "compare", "leave compare= out")
    check_same_samples(first.measured, second.measured, "compare")
    if first.rows.ids != second.rows.ids or first.primary != second.primary:
        raise ConfigError("the runs were not measured on the same samples", "compare")
    figure = first.primary
    place, of_second = first.rows.names.index(figure), second.rows.names.index(figure)
    samples = len(first.rows.ids)
    count = resamples_for(max(first.rows.size, second.rows.size))
    drawn = (
        bootstrap(first.rows, samples, count)[:, place],
        bootstrap(second.rows, samples, count)[:, of_second],
    )
    differences = drawn[0] - drawn[1]
    p, test, alone = paired_p(differences), f"paired bootstrap, {count} resamples", None
    wrong = first.rows.wrong, second.rows.wrong
    if wrong[0] is not None and wrong[1] is not None:
        alone = int((wrong[0] & ~wrong[1]).sum()), int((wrong[1] & ~wrong[0]).sum())
        p, test = mcnemar(*alone), "McNemar's, exact"
    values = first.figures[figure], second.figures[figure]
    return Comparison(figure, *values, interval(differences), p, test, alone)


def check_same_samples(first: Measured, second: Measured, key: str) -> None:
    """Raises ConfigError where two runs are not measured on the same split of the same data."""
    infos = first.source.info, second.source.info
    same = infos[0].fingerprint == infos[1].fingerprint and first.split == second.split
    if not same or first.whole_data != second.whole_data:
        what = f"{first.run} and {second.run} were not trained on the same data"
        raise ConfigError(what, key, "type data= for what to measure both on")


def write_results(folder: Path, result: Result, summary: dict[str, Any]) -> list[str]:
    """`samples.csv`, `summary.json`, `detections.json`, pictures. Raises MachineError."""
    with writing(folder, key="out"):
        folder.mkdir(exist_ok=True)
    files = ["summary.json"]
    write_atomic(folder / files[0], json.dumps(summary, indent=1) + "\n")
    if result.rows is not None:
        _write_table(folder / "samples.csv", result)
        files.append("samples.csv")
    if isinstance(result.rows, DetectionRows):
        write_atomic(folder / "detections.json", json.dumps(_coco_results(result)) + "\n")
        files.append("detections.json")
    if isinstance(result.evaluator, Showing):
        try:
            drawn = result.evaluator.pictures(result.measured.source, result.measured.split)
            for name, picture in drawn.items():
                write_png(folder / f"{name}.png", picture)
                files.append(f"{name}.png")
        except Exception as error:  # an evaluation does not end for a picture
            log.warning("warning: pictures left out: %s: %s", type(error).__name__, error)
    return files


def _write_table(path: Path, result: Result) -> None:
    """A row for each sample; what is not known is an empty cell."""
    assert result.rows is not None
    measured, rows = result.measured, result.rows
    source, split = measured.source, measured.split
    name_of = getattr(source, "file_of", source.name_of)
    table = {
        "id": rows.ids,
        "name": [str(name_of(index, split)) for index in rows.ids],
        **rows.columns(source.info.shown),
    }
    with (
        whole(path, key="out") as temporary,
        # A path may be of bytes that are no UTF-8: as they are.
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))


def _coco_results(result: Result) -> list[dict[str, Any]]:
    """As COCO's results: ids of images and categories as the data's json has them, if it is one."""
    measured, rows = result.measured, result.rows
    assert isinstance(rows, DetectionRows)
    names = measured.network.source.info.classes
    categories = _category_ids(measured) or {name: n for n, name in enumerate(names, 1)}
    found = []
    for number, image in zip(rows.ids, _image_ids(measured, rows.ids), strict=True):
        record = rows.detections.images[number]
        for box, score, label in zip(
            record.found_boxes.tolist(),
            record.scores.tolist(),
            record.found_labels.tolist(),
            strict=True,
        ):
            left, top, right, bottom = box
            found.append(
                {
                    "image_id": image,
                    "category_id": categories.get(names[label - 1], label),
                    "bbox": [round(side, 3) for side in (left, top, right - left, bottom - top)],
                    "score": round(score, 6),
                }
            )
    return found


def _image_ids(measured: Measured, numbers: list[int]) -> list[int | str]:
    """As a json has them; the numbers themselves where the data have none."""
    part = getattr(measured.source, "_splits", {}).get(measured.split)
    return [*numbers] if part is None else [part.ids[number] for number in numbers]


def _category_ids(measured: Measured) -> dict[str, int]:
    """By name, of the json that was evaluated."""
    key = "train_json" if measured.split == "train" else "val_json"
    file = Path(getattr(measured.source, "root", "")) / str(measured.config.data.args.get(key, ""))
    if not file.is_file():
        return {}
    nodes = json.loads(file.read_text(encoding="utf-8"))["categories"]
    return {str(node["name"]): int(node["id"]) for node in nodes}
