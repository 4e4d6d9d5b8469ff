"""SIGTERM and SIGINT ask for an end: at once before the first step, later after the step's save."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cvtrain.errors import Stopped


class StopFlag:
    """`signum` is 0 until a signal arrives. A second signal exits at once."""

    def __init__(self) -> None:
        self.signum = 0
        self._training = False

    def __bool__(self) -> bool:
        return bool(self.signum)

    def finish_the_step(self) -> None:
        """From here on a signal only sets the flag, which the loop reads between two steps."""
        self._training = True

    @property
    def name(self) -> str:
        return signal.Signals(self.signum).name

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum
        if not self._training:  # reading data, building: there is nothing to save
            raise Stopped(f"stopped by {self.name} before the first step", signum=signum)

    @contextmanager
    def listening(self) -> Iterator["StopFlag"]:
        """Handlers only set the flag; the old ones come back at the end (a sweep goes on)."""
        old = {s: signal.signal(s, self._receive) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for signum, handler in old.items():
                signal.signal(signum, handler)
