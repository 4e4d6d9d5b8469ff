"""Reading ahead and writing behind: order, bounds, errors, ends."""

import threading
import time
from collections.abc import Generator

import pytest

from cvtrain.media.flow import Ahead, Behind


def test_order_and_bound() -> None:
    made: list[int] = []

    def numbers() -> Generator[int, None, None]:
        for number in range(40):
            made.append(number)
            yield number

    got = []
    for number in Ahead(numbers(), depth=3):
        time.sleep(0.002)
        got.append(number)
        assert len(made) - len(got) <= 3 + 2  # in the queue, in a hand, just made
    assert got == [*range(40)]


def test_an_error_comes_after_what_was_made_before_it() -> None:
    def breaks() -> Generator[int, None, None]:
        yield 1
        yield 2
        raise ValueError("torn")

    got: list[int] = []
    with pytest.raises(ValueError, match="torn"):
        got.extend(Ahead(breaks(), depth=8))
    assert got == [1, 2]


def test_whoever_leaves_early_ends_the_thread_and_closes_what_it_read() -> None:
    closed = threading.Event()

    def endless() -> Generator[int, None, None]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    ahead = Ahead(endless(), depth=2)
    going = iter(ahead)
    next(going)
    going.close()
    assert closed.is_set()
    assert not ahead.thread.is_alive()


def test_stop_ends_even_where_nothing_comes() -> None:
    stopped, over = threading.Event(), threading.Event()

    def silent() -> Generator[int, None, None]:
        over.wait(10)
        yield 1

    threading.Timer(0.2, stopped.set).start()
    threading.Timer(0.4, over.set).start()
    begun = time.perf_counter()
    assert [*Ahead(silent(), depth=1, stop=stopped.is_set)] == []
    assert time.perf_counter() - begun < 3


def test_a_live_source_keeps_the_newest() -> None:
    def fast() -> Generator[int, None, None]:
        for number in range(200):
            time.sleep(0.0005)
            yield number

    ahead, got = Ahead(fast(), depth=1, newest=True), []
    for number in ahead:
        time.sleep(0.01)
        got.append(number)
    assert got == sorted(got)
    assert ahead.lost > 50
    assert len(got) + ahead.lost == 200


def test_behind_works_in_order_and_leaving_waits_for_it() -> None:
    done: list[int] = []

    def slow(number: int) -> None:
        time.sleep(0.001)
        done.append(number)

    with Behind(slow, depth=2) as behind:
        for number in range(30):
            behind.put(number)
    assert done == [*range(30)]


def test_its_errors_come_to_whoever_puts_or_leaves() -> None:
    def refuses(number: int) -> None:
        raise OSError(f"no space for {number}")

    with pytest.raises(OSError, match="no space for 0"), Behind(refuses, depth=1) as behind:
        [behind.put(number) for number in range(1000)]  # never waits for a worker that is gone
    with pytest.raises(OSError, match="no space for 7"), Behind(refuses, depth=4) as behind:
        behind.put(7)
