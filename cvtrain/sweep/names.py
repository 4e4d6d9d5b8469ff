"""What a sweep and its jobs are called: the same words lead to the same places."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

ROOT = Path("outputs/sweep")
LONGEST = 80  # characters of a name


@dataclass(frozen=True)
class Typed:
    """A command line of a sweep: `axes` are the keys that vary, `fixed` the words of every job."""

    axes: list[str]
    fixed: list[str]
    fixed_keys: list[str]
    hydra: list[str]  # about how jobs are made and run: hydra/launcher=joblib
    jobs: list[list[str]]  # the words of each, as Hydra will give them; of its grids alone

    @classmethod
    def parse(cls, words: list[str]) -> "Typed":
        """Raises Hydra's errors."""
        parser = OverridesParser.create()
        own = {word for word in words if word.lstrip("+~").startswith(("hydra.", "hydra/"))}
        rest = [word for word in words if word not in own]
        parsed = parser.parse_overrides(rest)
        grid = not any(word.startswith("hydra/sweeper=") for word in own)
        same = [not one.is_sweep_override() for one in parsed]
        keys = [one.get_key_element() for one in parsed]
        return cls(
            axes=[key for key, fixed in zip(keys, same, strict=True) if not fixed],
            fixed=[word for word, fixed in zip(rest, same, strict=True) if fixed],
            fixed_keys=[key for key, fixed in zip(keys, same, strict=True) if fixed],
            hydra=[word for word in words if word in own],
            jobs=BasicSweeper.split_arguments(parsed, None)[0] if grid else [],
        )

    @property
    def name(self) -> str:
        """Of the axes' keys and the fixed words, so that a sweep with further values goes on."""
        keys = [key.rpartition(".")[2] for key in sorted(self.axes)] or ["sweep"]
        return shortened("_".join(keys), [*sorted(self.axes), *sorted(self.fixed)])


def job_name(words: list[str], swept: dict[str, str]) -> str:
    """`lenet5-lr_0.1-seed_0-1a2b3c`: the values that vary; the rest is in the digits."""
    parts = []
    for key, value in sorted(swept.items()):
        group = "." not in key and key != "seed"
        parts.append(value if group else f"{key.rpartition('.')[2]}_{value}")
    return shortened("-".join(parts) or "job", sorted(words))


def shortened(text: str, words: list[str]) -> str:
    """A name that any file system takes, its last digits those of `words`."""
    digits = hashlib.sha256("\n".join(words).encode()).hexdigest()[:6]
    return f"{re.sub(r'[^A-Za-z0-9._+-]+', '_', text)[:LONGEST].strip('_-')}-{digits}"
