"""Wall time, split by what a run was doing with it."""

import time

from cvtrain.engine.plan import Position


class Stopwatch:
    """Everything since the last lap goes to one name: nothing is counted twice, nothing is lost."""

    def __init__(self, position: Position) -> None:
        self.position, self.mark = position, time.perf_counter()

    def lap(self, name: str = "") -> None:
        """`data`, `compute`, `eval` or `save`; without a name the time is in the total alone."""
        now = time.perf_counter()
        self.position.seconds += now - self.mark
        if name:
            self.position.time[name] += now - self.mark
        self.mark = now
