"""What a user can meet, each with its exit code; `cli.py` alone turns one into a line."""

import difflib
from typing import Any


class CvtrainError(Exception):
    """`what` happened, `where` (a path, key or step) and the `fix`: what to type instead."""

    code = 1
    name = "ERROR"

    def __init__(self, what: str, where: str = "", fix: str = "", *, name: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        self.name = name or type(self).name
        super().__init__("; ".join(part for part in (what, where, fix) if part))

    def __reduce__(self) -> tuple[Any, ...]:
        """Whole also after it has come from another process."""
        return type(self), (self.what, self.where, self.fix), {"name": self.name}

    def line(self) -> str:
        """The last line on stderr, always a single one."""
        return f"cvtrain: error[{self.name}]: {' '.join(str(self).splitlines())}"


class ConfigError(CvtrainError):
    code, name = 2, "CONFIG"


class DataError(CvtrainError):
    code, name = 3, "DATA"


class CheckpointError(CvtrainError):
    code, name = 4, "CHECKPOINT"


class NonFiniteError(CvtrainError):
    code, name = 5, "NON-FINITE"


class MachineError(CvtrainError):
    """The machine, not the command: no CUDA, no space, no permission."""

    code, name = 6, "MACHINE"


class BusyError(CvtrainError):
    code, name = 7, "BUSY"


class SweepError(CvtrainError):
    """Jobs of a sweep failed; the code is that of the first."""

    name = "SWEEP"


class Stopped(CvtrainError):
    """Ended by a signal, in good order; the code is the shell's 128 + signal."""

    name = "STOPPED"

    def __init__(self, what: str, where: str = "", fix: str = "", *, signum: int = 15) -> None:
        super().__init__(what, where, fix)
        self.code = 128 + signum

    def line(self) -> str:
        return f"cvtrain: {' '.join(str(self).splitlines())}"


def nearest(word: str, names: list[str], value: str = "...") -> str:
    """What to type for a wrong key: the nearest valid one, else where to look."""
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"type {close[0]}={value}" if close else "see every key by --cfg job"


def refused_target(name: str, why: str) -> ConfigError:
    """A `_target_` that leads where no config may."""
    return ConfigError(
        f"_target_ {name} is refused: {why}",
        "",
        "name a class of an allowed package, or type trust=[your_package] for one of yours",
        name="TARGET",
    )
