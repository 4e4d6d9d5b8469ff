"""What a scan holds of its files, in columns: objects would take ten times the memory.

They are plain numbers and bytes, so that workers that are forked go on sharing their pages.
"""

import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cvtrain.data.images import Header

T = TypeVar("T")

ELSEWHERE = b"\0"  # before a path that is not below the root: no path has this byte


def int32() -> "array[int]":
    return array("i")


def int64() -> "array[int]":
    return array("q")


def taken(column: "array[int]", chosen: NDArray[np.int64]) -> "array[int]":
    return array(column.typecode, np.asarray(column)[chosen].tobytes())


class Column(Sequence[T]):
    """Made anew at each look; a slice is a list."""

    def at(self, row: int) -> T:
        raise NotImplementedError

    def __getitem__(self, index: Any) -> Any:
        rows = range(len(self))[index]
        return [self.at(row) for row in rows] if isinstance(rows, range) else self.at(rows)

    def __iter__(self) -> Iterator[T]:
        return map(self.at, range(len(self)))


class Files(Column[Path]):
    """Paths: what each has below `root`, as bytes, one behind the other."""

    def __init__(self, root: Path) -> None:
        self.root, self._before = root, os.path.join(root, "")
        self.buffer: Any = bytearray()
        self.ends: Any = array("I", [0])  # [files + 1]: file i is buffer[ends[i] : ends[i + 1]]

    def __len__(self) -> int:
        return len(self.ends) - 1

    def append(self, file: Path) -> None:
        text = str(file)
        below = text.startswith(self._before)
        encoded = os.fsencode(text[len(self._before) :] if below else text)
        self.append_below(encoded if below else ELSEWHERE + encoded)

    def append_below(self, name: bytes) -> None:
        """A path below the root."""
        self.buffer += name
        self.ends.append(len(self.buffer))

    def name(self, row: int) -> bytes:
        return bytes(self.buffer[self.ends[row] : self.ends[row + 1]])

    def at(self, row: int) -> Path:
        name = self.name(row)
        if name.startswith(ELSEWHERE):
            return Path(os.fsdecode(name[1:]))
        return self.root / os.fsdecode(name)

    def names(self) -> Iterator[str]:
        """What each has below the root, or all of a path elsewhere."""
        for row in range(len(self)):
            name = self.name(row)
            if not name.startswith(ELSEWHERE):
                yield os.fsdecode(name)
            else:  # or below it after all, as `a` is below `.`
                file = self.at(row)
                below = file.is_relative_to(self.root)
                yield str(file.relative_to(self.root) if below else file)

    def part(self, chosen: NDArray[np.int64]) -> "Files":
        part = Files(self.root)
        for row in chosen:
            part.append_below(self.name(row))
        return part


class Headers(Column[Header]):
    def __init__(self) -> None:
        self.width: Any = array("I")  # Pillow's own sides have no more than 32 bits
        self.height: Any = array("I")
        self.size: Any = int64()
        self.plain: Any = array("b")

    def __len__(self) -> int:
        return len(self.plain)

    def append(self, header: Header) -> None:
        self.width.append(header.width)
        self.height.append(header.height)
        self.size.append(header.size)
        self.plain.append(header.plain)

    def at(self, row: int) -> Header:
        plain = bool(self.plain[row])
        return Header(self.width[row], self.height[row], plain, self.size[row])

    def part(self, chosen: NDArray[np.int64]) -> "Headers":
        part = Headers()
        for name, column in vars(self).items():
            setattr(part, name, taken(column, chosen))
        return part
