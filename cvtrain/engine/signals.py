"""SIGTERM and SIGINT ask for an end; the step under way is finished and saved first."""

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

    def __bool__(self) -> bool:
        return bool(self.signum)

    def check(self) -> None:
        """Raise Stopped where nothing has been trained yet."""
        if self.signum:
            raise Stopped(f"stopped by {self.name} before the first step", signum=self.signum)

    @property
    def name(self) -> str:
        return signal.Signals(self.signum).name

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum

    @contextmanager
    def listening(self) -> Iterator["StopFlag"]:
        """Handlers only set the flag; the old ones come back at the end (a sweep goes on)."""
        old = {s: signal.signal(s, self._receive) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for signum, handler in old.items():
                signal.signal(signum, handler)
