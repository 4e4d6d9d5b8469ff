"""What was run: the command, every value and what set it, the machine, the state of git."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cvtrain.report import words
from cvtrain.report.page import Details, Part, Table, Text
from cvtrain.report.record import Record

CHOSEN = ("default", "")  # what nobody asked for


def configuration(record: Record) -> Sequence[Part]:
    """The command as typed; what differs from the defaults; every value."""
    parts: list[Part] = []
    if record.starts:
        start = record.starts[-1]
        parts.append(Text(f"$ {command(start)}\nin {start.get('cwd')}", "code"))
    if not record.origins:
        rows = [(key, written(value)) for key, value in record.config.items()]
        return [*parts, Details(f"all {len(rows)} values", [Table(["key", "value"], rows)])]
    head = ["key", "value", "set by", "where", "instead of"]
    rows_ = [row(key, found) for key, found in record.origins.items()]
    set_ = [row for row in rows_ if row[2] not in CHOSEN]
    if set_:
        parts.append(Table(head, set_, "Not the defaults:"))
    return [*parts, Details(f"all {len(rows_)} values", [Table(head, rows_)])]


def command(start: dict[str, Any]) -> str:
    """As it was typed, but for where the program lies."""
    program, *typed = shlex.split(str(start.get("command"))) or ["cvtrain"]
    ours = Path(program).name in ("cvtrain", "__main__.py")
    return shlex.join(["cvtrain" if ours else program, *typed])


def row(key: str, found: list[dict[str, Any]]) -> tuple[str, str, str, str, str]:
    last = found[-1]
    before = ", ".join(f"{written(o['value'])} ({o['kind']})" for o in found[-2::-1])
    return key, written(last["value"]), str(last["kind"]), str(last["where"]), before


def written(value: Any) -> str:
    """As YAML has it."""
    plain = value is None or isinstance(value, bool)
    return json.dumps(value) if plain else str(value)


def environment(record: Record) -> Sequence[Part]:
    """The last start's machine and packages; git; the starts before."""
    if not record.starts:
        return []
    start = record.starts[-1]
    gpus = ", ".join(start.get("gpus") or [])
    memory = start.get("memory_bytes")
    rows = {
        "host": start.get("host"),
        "device": start.get("device"),
        "GPUs": gpus or None,
        "processor": start.get("cpu"),
        "cores": start.get("cores"),
        "threads of torch": start.get("threads"),
        "memory": words.size(memory) if memory else None,
        "platform": start.get("platform"),
        "python": start.get("python"),
        "CUDA": start.get("cuda"),
        "GPU driver": start.get("gpu_driver"),
        **{f"${name}": value for name, value in (start.get("environment") or {}).items()},
    }
    machine = [(name, str(value)) for name, value in rows.items() if value]
    packages = [(name, version) for name, version in (start.get("versions") or {}).items()]
    return [
        Table(["machine", ""], machine, wide=False),
        Table(["package", "version"], packages, wide=False),
        *git(record, start),
        *starts(record),
    ]


def git(record: Record, start: dict[str, Any]) -> list[Part]:
    """Of the code, and of the current directory where that is another."""
    parts: list[Part] = []
    for key, what in (("git", "the code"), ("git_cwd", "the current directory")):
        if not (state := start.get(key)):
            continue
        changes = "with changes" if state.get("dirty") else "without changes"
        text = f"git, {what}: {state.get('revision')} ({state.get('branch')}), {changes}"
        parts.append(Text(text))
        if (name := state.get("diff")) and (diff := record.text(str(name))):
            parts.append(Details(f"{name}: the changes", diff))
    return parts or [Text("The code was in no git repository.")]


def starts(record: Record) -> list[Part]:
    """Of a run that was resumed."""
    if len(record.starts) < 2:
        return []
    rows = [(s.get("started"), s.get("host"), s.get("command")) for s in record.starts]
    return [Details(f"started {len(rows)} times", [Table(["started", "host", "command"], rows)])]
