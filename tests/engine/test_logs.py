"""One truth: the event files say what metrics.jsonl says, also over a resume."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cvtrain.engine.logs import Logs


def write(logs: Logs, steps: range, *, shift: float = 0.0, validate: int = 0) -> None:
    for step in steps:
        values = {"train/loss": 1 / step + shift, "train/lr": 0.1 * step}
        logs.scalars(values, step=step, epoch=step / 10)
        if validate and step % validate == 0:
            logs.scalars({"val/top1_err": 50 / step + shift}, step=step, epoch=step / 10)


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """As TensorBoard shows them."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def expected_curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    points: dict[str, list[tuple[int, float]]] = {}
    for line in lines(run):
        for name, value in line.items():
            if name not in ("step", "epoch"):
                points.setdefault(name, []).append((line["step"], float(np.float32(value))))
    return points


def started(run: Path, **position: int) -> Logs:
    """In a later second than before: TensorBoard reads the files of one second by their names, in
    which 10 comes before 9. (A run that is resumed is another process.)
    """
    seconds = [int(file.name.split(".")[3]) for file in run.glob("events.*")]
    while int(time.time()) <= max(seconds, default=0):
        time.sleep(0.02)
    logs = Logs(run)
    logs.open(**{"step": 0, "evaluated_at": 0, "total": 100, **position})
    return logs


def test_events_equal_the_lines(tmp_path: Path) -> None:
    logs = started(tmp_path)
    write(logs, range(1, 21), validate=5)
    logs.close()
    assert len(lines(tmp_path)) == 24
    assert lines(tmp_path)[5] == {"step": 5, "epoch": 0.5, "val/top1_err": 10.0}
    assert curves(tmp_path) == expected_curves(tmp_path)
    assert curves(tmp_path).keys() == {"train/loss", "train/lr", "val/top1_err"}


def test_a_resume_drops_what_is_done_anew(tmp_path: Path) -> None:
    logs = started(tmp_path)
    write(logs, range(1, 21), validate=5)
    logs.close()
    # Killed after step 20; the checkpoint to go on from is of step 12.
    logs = started(tmp_path, step=12, evaluated_at=10)
    assert max(line["step"] for line in lines(tmp_path)) == 12
    assert [line["step"] for line in lines(tmp_path) if "val/top1_err" in line] == [5, 10]
    write(logs, range(13, 26), shift=7.0, validate=5)
    logs.close()
    steps = [line["step"] for line in lines(tmp_path) if "train/loss" in line]
    assert steps == list(range(1, 26))
    assert curves(tmp_path) == expected_curves(tmp_path)  # no step twice, none of the old values


def test_a_validation_that_is_still_owed_is_dropped(tmp_path: Path) -> None:
    """Saved at step 10 before its validation was over: the figures come again."""
    logs = started(tmp_path)
    write(logs, range(1, 11), validate=5)
    logs.close()
    logs = started(tmp_path, step=10, evaluated_at=5)
    assert [line["step"] for line in lines(tmp_path) if "val/top1_err" in line] == [5]
    logs.scalars({"val/top1_err": 5.0}, step=10, epoch=1.0)
    logs.close()
    assert [line["step"] for line in lines(tmp_path) if "val/top1_err" in line] == [5, 10]
    assert [step for step, _ in expected_curves(tmp_path)["train/loss"]] == list(range(1, 11))


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_half_written_last_line_is_dropped(tmp_path: Path, cut: int) -> None:
    logs = started(tmp_path)
    write(logs, range(1, 11))
    logs.close()
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    assert len(Logs(tmp_path).read()) == (10 if cut == 1 else 9)  # only the line's end is gone
    logs = started(tmp_path, step=10)
    write(logs, range(11, 13))
    logs.close()
    steps = [line["step"] for line in lines(tmp_path)]
    assert steps == [*range(1, 11 if cut == 1 else 10), 11, 12]


def test_another_process_writes_nothing(tmp_path: Path) -> None:
    logs = Logs(tmp_path, active=False)
    logs.open(step=0, evaluated_at=0, total=None)
    write(logs, range(1, 3))
    logs.line("hidden")
    logs.progress({"train/loss": 1.0})
    logs.close()
    assert not list(tmp_path.iterdir())


def test_without_tensorboard_the_lines_go_on(tmp_path: Path) -> None:
    class Broken:
        def add_scalar(self, *_: object) -> None:
            raise OSError("no space left")

        def flush(self) -> None: ...

        def close(self) -> None: ...

    logs = started(tmp_path)
    logs.tensorboard.close()
    logs.tensorboard = Broken()
    write(logs, range(1, 6))
    logs.close()
    assert len(lines(tmp_path)) == 5
