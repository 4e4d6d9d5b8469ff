"""How long: `164ep`, `64000st` or `30min`."""

import re
from dataclasses import dataclass
from enum import StrEnum

from cvtrain.errors import ConfigError


class Unit(StrEnum):
    epochs = "ep"
    steps = "st"
    minutes = "min"


@dataclass(frozen=True)
class Duration:
    """`164ep`, `64000st` or `30min`: the one way to say how long."""

    value: float
    unit: Unit

    @classmethod
    def parse(cls, text: object, key: str, *, units: tuple[Unit, ...] = tuple(Unit)) -> "Duration":
        """Raises ConfigError for what is no duration, or is not in one of `units`."""
        names = " or ".join(f"{key}=20{unit}" for unit in units)
        duration = cls.match(str(text))
        if duration is None:
            raise ConfigError(f"{key}={text} is not a duration", "", f"type a unit: {names}")
        if duration.unit not in units:
            unit = duration.unit.name
            raise ConfigError(f"{key}={text} cannot be in {unit} here", "", f"type {names}")
        return duration

    @classmethod
    def match(cls, text: str) -> "Duration | None":
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(ep|st|min)", text.strip())
        return cls(float(found[1]), Unit(found[2])) if found else None

    def steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps; a duration in minutes has none."""
        assert self.unit is not Unit.minutes
        return round(self.value * (steps_per_epoch if self.unit is Unit.epochs else 1))


STEP_UNITS = (Unit.epochs, Unit.steps)
