"""What lies in the directory of a run, whatever is missing of it; neither data nor weights."""

import fcntl
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from cvtrain.config import flat

LONGEST_TEXT = 100_000  # characters of a file on the page
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, in a tenth of the time


@dataclass
class Record:
    """The files of one run, read; empty where there is none, or none that can be read."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)  # flat: dotted keys
    summary: dict[str, Any] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)  # of metrics.jsonl
    status: dict[str, Any] = field(default_factory=dict)
    starts: list[dict[str, Any]] = field(default_factory=list)  # of environment.json
    origins: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    held: bool = False  # by a process that runs

    @classmethod
    def read(cls, path: Path) -> "Record":
        environment, status = read_json(path / "environment.json"), read_json(path / "status.json")
        starts = [start for start in environment.get("starts", []) if isinstance(start, dict)]
        return cls(
            path=path,
            config=_config(path / "config.yaml"),
            summary=read_json(path / "summary.json"),
            lines=_lines(path / "metrics.jsonl"),
            status=status,
            starts=starts,
            origins=read_json(path / "origins.json"),
            # Asked only where it counts: who asks is for a moment in the way of who takes it.
            held=status.get("state") == "running" and is_held(path),
        )

    @property
    def is_run(self) -> bool:
        return bool(self.config or self.status)

    @property
    def state(self) -> str:
        """`done`, `failed`, `preempted`, `running`; `killed` if it only says that it runs."""
        state = str(self.status.get("state", "unknown"))
        return "killed" if state == "running" and not self.held else state

    @property
    def choices(self) -> tuple[str, str]:
        """The names of the model and of the data."""
        names = []
        for group in ("model", "data"):
            last = self.origins.get(group, [{}])[-1].get("value")
            target = str(self.config.get(f"{group}._target_", "")).rpartition(".")[2]
            names.append(str(self.summary.get(group) or last or target or "?"))
        return names[0], names[1]

    @property
    def primary(self) -> str:
        """The figure that the task is about; empty where nothing says it."""
        return str(self.summary.get("primary", ""))

    def figures(self) -> dict[str, float]:
        """The last evaluation's, by name without `val/`."""
        found = self.summary or next((line for line in self.lines[::-1] if _evaluated(line)), {})
        return {
            name.removeprefix("val/"): float(value)
            for name, value in found.items()
            if name.startswith("val/") and isinstance(value, int | float)
        }

    def picture(self, name: str) -> np.ndarray | None:
        """uint8 `[H, W, 3]` of a PNG beside; None where it is missing or broken."""
        try:
            with Image.open(self.path / name) as image:
                return np.array(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None

    def pictures(self) -> list[str]:
        return sorted(file.name for file in self.path.glob("*.png"))

    def text(self, name: str) -> str:
        """Of a file beside, its beginning if it is long; empty without one."""
        try:
            with (self.path / name).open(encoding="utf-8", errors="replace") as file:
                text = file.read(LONGEST_TEXT + 1)
        except OSError:
            return ""
        return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}\n… and more in {name}"


def _evaluated(line: dict[str, Any]) -> bool:
    return any(name.startswith("val/") for name in line)


def read_json(file: Path) -> dict[str, Any]:
    """Empty where there is none, or none that can be read."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def _lines(file: Path) -> list[dict[str, Any]]:
    """Whole lines: the last may be cut off, or be written now."""
    try:
        texts = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    lines = []
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:
            break
        if isinstance(line, dict) and {"step", "epoch"} <= line.keys():
            lines.append(line)
    return lines


def _config(file: Path) -> dict[str, Any]:
    """As it stands: what refers to the environment is not looked up here."""
    try:
        read = yaml.load(file.read_text(encoding="utf-8"), Loader=LOADER)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return flat(read) if isinstance(read, dict) else {}


def is_held(path: Path) -> bool:
    """Whether a process of this machine holds the directory of a run, or of a sweep."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
