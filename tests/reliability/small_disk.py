"""A disk that is really full: a tmpfs in a user namespace of its own, which needs no root."""

import shutil
import subprocess
from pathlib import Path

import pytest

MOUNT = 'mount -t tmpfs -o size="$1" none "$2" && echo mounted && exec cat'


class SmallDisk:
    """`path` leads to it from outside the namespace, through the process that keeps that alive."""

    def __init__(self, point: Path, *, size: int) -> None:
        point.mkdir()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        command = ["unshare", "-rm", "sh", "-c", MOUNT, "sh", str(size), str(point)]
        try:
            self._keeper = subprocess.Popen(command, text=True, **pipes)
        except OSError as error:
            pytest.skip(f"no disk to fill up: {error}")
        if (line := self._keeper.stdout.readline()) != "mounted\n":
            self.unmount()
            pytest.skip(f"no disk to fill up: {line.strip()}")
        self.path = Path(f"/proc/{self._keeper.pid}/root{point}")

    @property
    def free(self) -> int:
        return shutil.disk_usage(self.path).free

    def fill(self, *, leave: int) -> None:
        """Down to so many bytes, in whole pages."""
        with (self.path / "filler").open("wb") as file:
            file.write(bytes(max(0, self.free - leave)))

    def clear(self) -> None:
        (self.path / "filler").unlink()

    def unmount(self) -> None:
        self._keeper.communicate()
