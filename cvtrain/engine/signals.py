"""SIGTERM and SIGINT ask for an end: at once before the first step, later after the step's save."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cvtrain.errors import Stopped

PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


class StopFlag:
    """`signum` is 0 until a signal arrives. A second signal exits at once."""

    echo = 0.0  # seconds in which a second one is still the first

    def __init__(self) -> None:
        self.signum = 0
        self._training = False
        self._received = 0.0

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
            if time.monotonic() > self._received + self.echo:
                os._exit(128 + signum)
            return
        self.signum, self._received = signum, time.monotonic()
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


def end_with_parent() -> None:
    """If the process that started this one is killed, a run here saves and ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        StopFlag.echo = 0.5  # Linux tells of the death of each thread of the parent
