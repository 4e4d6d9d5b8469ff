"""Where the time goes: every second to one name, and what to turn when it goes to waiting."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_accumulation import micro_batches, trainer, whole_batch
from torch import nn

from cvtrain.data.loader import FileLoader
from cvtrain.engine.plan import Position
from cvtrain.engine.stopwatch import Stopwatch
from cvtrain.engine.summary import time_lines
from cvtrain.engine.window import Window
from cvtrain.tasks.classification import Classification

WAIT = {"data": 0.02, "compute": 0.01, "eval": 0.05}  # seconds, each time


class SlowLoader:
    steps = 5

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, ...]]:
        for _ in range(start, self.steps):
            time.sleep(WAIT["data"])
            yield micro_batches(whole_batch(), [11])


class OneBatch:
    steps = 1

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, ...]]:
        yield (_with_ids(),)


def _with_ids() -> Any:
    from cvtrain.data.batch import ClassificationBatch

    batch = whole_batch()
    return ClassificationBatch(batch.images, batch.labels, batch.labels)


class SlowTask(Classification):
    def losses(self, model: nn.Module, batch: Any) -> Any:
        time.sleep(WAIT["compute"])
        return super().losses(model, batch)

    def predict(self, model: nn.Module, batch: Any) -> Any:
        time.sleep(WAIT["eval"])
        return super().predict(model, batch)


def test_each_second_goes_to_its_name(tmp_path: Path) -> None:
    run = trainer(SlowTask(num_classes=4), tmp_path)
    run.parts.train, run.parts.val = SlowLoader(), OneBatch()
    begin = time.perf_counter()
    run.fit()
    whole = time.perf_counter() - begin
    spent, steps = run.position.time, run.position.step
    assert steps == 10
    for name, count in (("data", steps), ("compute", steps), ("eval", 1)):
        assert count * WAIT[name] <= spent[name], name
    assert sum(spent.values()) <= run.position.seconds <= whole
    # The speed is that of training: evaluation and saving do not slow it.
    trained = spent["data"] + spent["compute"]
    assert run.images_per_sec == pytest.approx(11 * steps / trained, rel=0.5)
    assert 11 * steps / run.position.seconds < run.images_per_sec <= 11 / 0.03
    # A resumed run goes on counting.
    again = trainer(SlowTask(num_classes=4), tmp_path)
    again.load(run.state(), source="")
    assert again.position.time == spent
    again.parts.val = OneBatch()  # it is at its end, and only evaluates for the pictures
    again.fit()
    assert again.position.time["eval"] >= spent["eval"] + WAIT["eval"]
    assert again.position.time["compute"] == spent["compute"]


def test_a_lap_without_a_name_is_in_the_total_alone() -> None:
    position = Position(seconds=5.0)
    watch = Stopwatch(position)
    time.sleep(0.01)
    watch.lap()
    assert position.seconds >= 5.01
    assert not any(position.time.values())
    watch.lap("eval")
    assert 0 < position.time["eval"] < position.seconds - 5


def test_a_window_counts_steps_and_their_seconds_only() -> None:
    position = Position(step=30, time={"data": 1.0, "compute": 4.0, "eval": 9.0, "save": 9.0})
    assert Window(step=10, seconds=1.0).steps_per_second(position) == 20 / 4


def summary(data: float, compute: float) -> dict[str, Any]:
    return {"seconds": 10.0, "time": {"data": data, "compute": compute, "eval": 1, "save": 0.04}}


def test_the_line_and_the_knob() -> None:
    files = FileLoader.__new__(FileLoader)
    files.workers = 0
    [line] = time_lines(summary(1.2, 7.1), files)
    assert line == "  time     data 12 %, compute 71 %, evaluation 10 %, saving 0 %"
    line, advice = time_lines(summary(4.0, 4.0), files)
    assert "50 % of training was waiting for data: type trainer.workers=" in advice
    assert int(advice.rpartition("=")[2]) > 0
    assert len(time_lines(summary(4.0, 4.0), object())) == 1  # in memory: no process would help
    nothing = {"seconds": 0.0, "time": dict.fromkeys(summary(0, 0)["time"], 0)}
    assert len(time_lines(nothing, files)) == 1
