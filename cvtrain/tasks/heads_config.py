"""`task.heads`, checked against the columns of the data."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from cvtrain.errors import ConfigError, nearest

KEYS = ("classes", "weight", "when", "hidden", "pretrained")
TAKEN = ("loss", "err", "lr", "grad_norm", "images_per_sec")  # figures of every run
PUBLISHED = 1000  # classes of ImageNet, for which the published weights are


@dataclass(frozen=True)
class Column:
    """A column of the labels, the head that learns it and how samples count."""

    number: int  # among the columns
    classes: tuple[str, ...]
    outputs: int  # 1: a logit of class 1 against class 0
    weight: float = 1.0
    hidden: int = 0  # units
    when: int | None = None  # the column whose label must be class 1

    def targets(self, labels: Tensor) -> Tensor:
        """int64 `[N]` of labels `[N, columns]`: -1 for a sample that does not count."""
        targets = labels[:, self.number]
        return targets if self.when is None else targets.where(labels[:, self.when] == 1, -1)

    def count(self, targets: Tensor) -> Tensor:
        return (targets >= 0).sum().float()

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """float32 `[N]`, not weighted; 0 for a sample that does not count."""
        if self.outputs > 1:
            return F.cross_entropy(logits, targets, ignore_index=-1, reduction="none")
        shares = targets.clamp(min=0).to(logits.dtype)
        losses = F.binary_cross_entropy_with_logits(logits[:, 0], shares, reduction="none")
        return losses.where(targets >= 0, 0.0)

    def predicted(self, logits: Tensor) -> Tensor:
        """int64 `[N]`: classes."""
        return logits.argmax(1) if self.outputs > 1 else (logits[:, 0] > 0).long()

    def wrong(self, logits: Tensor, targets: Tensor) -> Tensor:
        """bool `[N]`; a score that is not finite is wrong."""
        right = (self.predicted(logits) == targets) & logits.isfinite().all(1)
        return ~right & (targets >= 0)


Columns = dict[str, Column]


def read_heads(
    heads: dict[str, Any] | None, columns: dict[str, tuple[str, ...]]
) -> tuple[Columns, dict[str, int]]:
    """The heads that learn a column, and the classes of one that is kept as it is, by name.

    None is a head for each column. Raises ConfigError.
    """
    if not columns:
        what, fix = "of the data no columns of labels are known", "type data=csv or run=DIR"
        raise ConfigError(what, "task=heads", fix)
    if heads is None:
        heads = {name: {} for name in columns}
    if not isinstance(heads, dict):
        what = f"task.heads={heads} has no names of heads"
        raise ConfigError(what, "", f"type task.heads={{{next(iter(columns))}: {{weight: 1}}}}")
    options = {str(name): _options(str(name), given) for name, given in heads.items()}
    kept = {name: _kept(name, of) for name, of in options.items() if of.get("pretrained")}
    learnt: Columns = {}
    for name, of in options.items():
        if name not in kept:
            learnt[name] = _column(name, of, columns)
    for name, of in options.items():
        if "when" in of:
            _check_when(name, str(of["when"]), learnt)
    if not any(column.weight for column in learnt.values()):
        raise ConfigError("no head learns anything", "task.heads", "give one a weight above 0")
    for name in learnt:
        if name in TAKEN or name.removesuffix("_err") in learnt.keys() - {name}:
            what = f"the figures of head {name} would be taken for others"
            raise ConfigError(what, f"task.heads.{name}", "rename the column")
    return learnt, kept


def _options(name: str, given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ConfigError(
            f"task.heads.{name}={given} is no head", "", f"type {name}: {{weight: 1}}"
        )
    for key in given:
        if key not in KEYS:
            what = f"there is no key {key} of a head"
            raise ConfigError(what, f"task.heads.{name}", nearest(str(key), list(KEYS)))
    return {key: value for key, value in given.items() if value is not None}


def _kept(name: str, of: dict[str, Any]) -> int:
    """The classes of the network's own head."""
    where = f"task.heads.{name}"
    if of["pretrained"] != "keep":
        raise ConfigError(f"pretrained: {of['pretrained']}", where, "type pretrained: keep")
    if others := sorted(of.keys() - {"pretrained", "classes"}):
        what = f"a head that is kept learns nothing and has no {others[0]}"
        raise ConfigError(what, where, f"leave out {others[0]}")
    return int(_number(name, of, "classes", PUBLISHED, low=1))


def _column(name: str, of: dict[str, Any], columns: dict[str, tuple[str, ...]]) -> Column:
    where = f"task.heads.{name}"
    if name not in columns:
        fix = nearest(name, list(columns)).removesuffix("=...")
        if not fix.startswith("type"):
            fix = f"type one of {', '.join(columns)}"
        raise ConfigError(f"the data have no column {name}", where, fix)
    classes = columns[name]
    own = 1 if len(classes) <= 2 else len(classes)
    outputs = int(_number(name, of, "classes", own, low=1))
    if max(outputs, 2) < len(classes):
        what = f"{outputs} classes, but the column has {len(classes)}: {', '.join(classes[:8])}"
        raise ConfigError(what, where, f"type classes: {len(classes)}")
    when = str(of["when"]) if "when" in of else None
    unmet = map(str, range(len(classes), max(outputs, 2)))  # classes that no sample has
    return Column(
        number=list(columns).index(name),
        classes=(*classes, *unmet),
        outputs=outputs,
        weight=_number(name, of, "weight", 1.0, low=0),
        hidden=int(_number(name, of, "hidden", 0, low=0)),
        when=list(columns).index(when) if when in columns else None,
    )


def _check_when(name: str, when: str, learnt: Columns) -> None:
    where = f"task.heads.{name}.when={when}"
    binary = [key for key, column in learnt.items() if len(column.classes) == 2 and key != name]
    if when in binary:
        return
    what = "that head is not binary" if when in learnt else f"there is no head {when}"
    what = "a head cannot wait for itself" if when == name else what
    fix = nearest(when, binary).removesuffix("=...") if binary else "leave out when"
    fix = fix if fix.startswith(("type", "leave")) else f"type one of {', '.join(binary)}"
    raise ConfigError(what, where, fix)


def _number(name: str, of: dict[str, Any], key: str, default: float, *, low: int) -> float:
    """A whole one, but for a weight."""
    value = of.get(key, default)
    kinds = (int, float) if key == "weight" else (int,)
    fine = isinstance(value, kinds) and not isinstance(value, bool)
    if not fine or not low <= value < math.inf:
        kind = "a number" if key == "weight" else "a whole number"
        raise ConfigError(
            f"{key}: {value}", f"task.heads.{name}", f"type {key}: and {kind} from {low} on"
        )
    return value
