"""`cvtrain why KEY ...`: the value of a key, what set it, and what it would be without.

Imports neither torch nor anything that does.
"""

import difflib
import os
import re
import textwrap
from typing import Any

from cvtrain.compose import Composed
from cvtrain.config import AUGMENT, config_dir
from cvtrain.errors import ConfigError
from cvtrain.origins import FOLLOW_WEIGHTS, Origin, origins

WIDTH = 100


def why(composed: Composed, overrides: list[str], names: str = "") -> None:
    """Print the named keys with all that set them, or every key in a table.

    Raises ConfigError for a key that there is not, with the nearest.
    """
    found = origins(composed, overrides)
    blocks = [_about(name, found, composed) for name in names.split()]
    print("\n\n".join(blocks) if blocks else _table(found))
    print(f"\nconfigs/ is {config_dir()}")


def _about(name: str, found: dict[str, Origin], composed: Composed) -> str:
    """A key with what set it; a group, or what has keys below it, with those."""
    below = {key: origin for key, origin in found.items() if key.startswith(f"{name}.")}
    if name == AUGMENT:
        below |= {key: o for key, o in found.items() if key.startswith(f"data.{AUGMENT}.")}
    if name not in found and not below:
        raise _unknown(name, found)
    parts = [_history(name, found[name], composed)] if name in found else []
    if below:
        parts.append(_table(below))
    return "\n".join(parts)


def _history(key: str, origin: Origin, composed: Composed) -> str:
    """The value, then every word on it; the last wins."""
    rows = [*origin.before, origin]
    values = [_short(row.written or row.value, 36) for row in rows]
    widths = max(map(len, values)), max(len(row.where) for row in rows)
    lines = [
        f"  {' >'[row is origin]} {value:<{widths[0]}}  {row.where:<{widths[1]}}  {row.kind}"
        for row, value in zip(rows, values, strict=True)
    ]
    head = textwrap.wrap(f"{key} = {_plain(origin.value)}", WIDTH, subsequent_indent="    ")
    return "\n".join([*head, *(line.rstrip() for line in lines), *_notes(key, origin, composed)])


def _notes(key: str, origin: Origin, composed: Composed) -> list[str]:
    """What the files and words do not say."""
    notes = []
    for name in re.findall(r"\$\{([\w.]+)\}", origin.written):
        notes.append(f"    it follows {name}: cvtrain why {name}")
    for name in re.findall(r"\$\{oc\.env:(\w+)", str(origin.value)):
        state = "is set" if name in os.environ else "is not set"
        notes.append(f"    the environment's {name} {state}")
    model = composed.config.model
    word = model.pretrained or model.pretrained_backbone
    if word and key in FOLLOW_WEIGHTS and origin.kind != "command line":
        notes.append(f"    the run may set it after the weights of {word}, which are not read here")
    return notes


def _table(found: dict[str, Origin]) -> str:
    """One line a key: its value, what set it last, and how."""
    rows = [(key, _short(o.value, 28), o.kind, o.where) for key, o in found.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    widths[0] = min(widths[0], 32)
    return "\n".join(
        "  ".join([*(f"{c:<{w}}" for c, w in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    )


def _short(value: Any, width: int) -> str:
    text = _plain(value)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _plain(value: Any) -> str:
    """As it would be typed."""
    if isinstance(value, list):
        return f"[{','.join(map(_plain, value))}]"
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _unknown(name: str, found: dict[str, Origin]) -> ConfigError:
    inner = (key.rsplit(".", depth)[0] for key in found for depth in range(key.count(".") + 1))
    close = difflib.get_close_matches(name, dict.fromkeys(inner), n=1, cutoff=0.5)
    ends = [key for key in found if key.endswith(f".{name}")]
    fix = f"type cvtrain why {(ends or close)[0]}" if ends or close else "cvtrain why shows all"
    return ConfigError(f"there is no key {name}", "", fix)
