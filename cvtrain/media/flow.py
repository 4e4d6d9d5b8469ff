"""Three things at once: what is read ahead, what is done, and what is written behind.

Order is kept, queues are bounded, and an error anywhere comes to whoever asks next.
"""

import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from queue import Empty, Full, Queue
from typing import Any, Generic, TypeVar

T = TypeVar("T")
TICK = 0.1  # seconds between two looks at whether it is to end
NICE = 10  # how far the other threads, and those of their codecs, stand back for the network's
SWITCH = 5e-4  # seconds until a thread that waits for Python's lock gets it
PATIENCE = 2.0  # seconds that a thread gets to end; one that waits for a stream is left behind


class Ahead(Generic[T]):
    """Iterates over `items`, at most `depth` of which are made before they are asked for.

    `newest`: what is not asked for in time makes room, and is counted in `lost`. Ends early once
    `stop` is true.
    """

    def __init__(
        self,
        items: Generator[T, None, None],
        *,
        depth: int,
        stop: Callable[[], bool] = lambda: False,
        newest: bool = False,
    ) -> None:
        self.items, self.stop, self.newest = items, stop, newest
        self.waiting: Queue[tuple[str, Any]] = Queue(depth)
        self.over, self.lost = threading.Event(), 0
        self.thread = threading.Thread(target=self._make, daemon=True)

    def _make(self) -> None:
        stand_back()
        try:
            with closing(self.items):
                for item in self.items:
                    if not self._put("item", item):
                        return
            self._put("end", None)
        except BaseException as error:
            self._put("error", error)

    def _put(self, kind: str, value: Any) -> bool:
        while not self.over.is_set():
            try:
                self.waiting.put((kind, value), timeout=0 if self.newest else TICK)
                return True
            except Full:
                if self.newest and kind == "item":
                    with suppress(Empty):
                        self.waiting.get_nowait()
                        self.lost += 1
        return False

    def __iter__(self) -> Generator[T, None, None]:
        self.thread.start()
        try:
            while not self.stop():
                with suppress(Empty):
                    kind, value = self.waiting.get(timeout=TICK)
                    if kind == "end":
                        return
                    if kind == "error":
                        raise value
                    yield value
        finally:
            self.over.set()
            self.thread.join(PATIENCE)


class Behind(Generic[T]):
    """`work` on what is `put`, in a thread of its own; leaving waits for all of it."""

    def __init__(self, work: Callable[[T], None], *, depth: int) -> None:
        self.work = work
        self.error: BaseException | None = None
        self.waiting: Queue[tuple[T] | None] = Queue(depth)
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        stand_back()
        while (item := self.waiting.get()) is not None:
            if self.error is None:  # after one, the rest is let go: nobody waits for ever
                try:
                    self.work(*item)
                except BaseException as error:
                    self.error = error

    def put(self, item: T) -> None:
        """Waits for room. Raises what `work` raised."""
        self._check()
        self.waiting.put((item,))

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    def __enter__(self) -> "Behind[T]":
        self.thread.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.waiting.put(None)
        self.thread.join()
        if error is None:
            self._check()


def stand_back() -> None:
    """The thread that calls it runs where the others leave a core; on Linux, where threads may."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


@contextmanager
def in_turns() -> Iterator[None]:
    """Threads take turns often: the network's is back at work in time for its next operation."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
