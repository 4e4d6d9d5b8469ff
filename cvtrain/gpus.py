"""Which GPUs a run takes where several run at once on one machine."""

import fcntl
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def taken(folder: Path, number: int) -> Iterator[tuple[int, ...]]:
    """So many GPUs, those on which fewest run; none where there is but one, or no CUDA.

    A place on a GPU is a locked file below `folder`: it is free again when the process ends,
    however it ends. Each GPU has one place before any has a second.
    """
    count, places = torch.cuda.device_count(), dict[int, int]()
    if count < 2:
        yield ()
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for turn, gpu in ((turn, gpu) for turn in itertools.count() for gpu in range(count)):
            if len(places) == number:
                break
            if gpu not in places:
                lock = os.open(folder / f"{gpu}_{turn}.lock", os.O_RDWR | os.O_CREAT, 0o644)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    places[gpu] = lock
                except BlockingIOError:
                    os.close(lock)
        yield tuple(places)
    finally:
        for lock in places.values():
            os.close(lock)
