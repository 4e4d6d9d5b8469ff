"""Weights into a network of other classes: the body whole, the head's rows by name."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cvtrain.errors import CheckpointError
from cvtrain.pretrained.files import corrupt
from cvtrain.pretrained.read import Pretrained

COUNTER = "num_batches_tracked"  # of batch norm; only its momentum=None reads it
SHOWN = 5  # of a long list
# Layers of torchvision's one-stage detectors that hold the classes of one anchor after another.
BY_ANCHOR = ("cls_logits", "classification_head")


def fit(
    model: nn.Module,
    weights: Pretrained,
    *,
    head: Mapping[str, int],
    classes: Sequence[str],
    names: Sequence[str] = (),
) -> list[str]:
    """Load in place, all or nothing. Returns lines to say: what is loaded, new and left.

    `head` are the names of the tensors whose shape goes by the number of classes, each with the
    rows of one class; `names` is how `classes` are shown. Of a detector the first class is the
    background. Raises CheckpointError (CKPT-MISMATCH, CKPT-CORRUPT).
    """
    own: dict[str, Tensor] = model.state_dict()
    left = _left(own, weights)
    _check(own, weights, set(head), left)
    rows = _rows(weights.classes, classes, names or classes)
    loaded, said = 0, dict[str, str]()  # of a head's tensor, what becomes of it
    with torch.no_grad():
        for name, tensor in own.items():
            theirs = weights.tensors.get(name)
            if name not in head:
                if theirs is not None:
                    tensor.copy_(theirs)
                    loaded += 1
            elif theirs is None or theirs.shape[1:] != tensor.shape[1:]:
                said[name] = "new"
            elif _fits(tensor, classes, head[name]) and _fits(theirs, weights.classes, head[name]):
                if rows:
                    new = _by_class(theirs, name, head[name])[list(rows.values())]
                    _by_class(tensor, name, head[name])[list(rows)] = new.to(tensor)
                said[name] = _by_name(rows, classes)
            elif not weights.classes and theirs.shape == tensor.shape:
                tensor.copy_(theirs)
                said[name] = "kept whole (of which classes is not known)"
            else:
                said[name] = "new"
    model.load_state_dict(own)  # a network on two devices gives copies
    return _lines(weights, loaded, said, own, left, set(head))


def _fits(tensor: Tensor, classes: Sequence[str], rows: int) -> bool:
    return bool(classes) and len(tensor) == rows * len(classes)


def _by_class(tensor: Tensor, name: str, rows: int) -> Tensor:
    """The same values as `[classes, rows, ...]`."""
    if any(word in name for word in BY_ANCHOR):
        return tensor.view(rows, -1, *tensor.shape[1:]).transpose(0, 1)
    return tensor.view(-1, rows, *tensor.shape[1:])


def _rows(known: Sequence[str], classes: Sequence[str], names: Sequence[str]) -> dict[int, int]:
    """A class's row to the row of its name in the weights; of equal names the first free one."""
    free: dict[str, list[int]] = {}
    for row, name in enumerate(known):
        free.setdefault(_plain(name), []).append(row)
    rows = {}
    for row, (stored, shown) in enumerate(zip(classes, names, strict=True)):
        # ImageNet's are shown as "tench (n01440764)".
        for name in map(_plain, (stored, shown.removesuffix(f"({stored})"))):
            if free.get(name):
                rows[row] = free[name].pop(0)
                break
    return rows


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _left(own: dict[str, Tensor], weights: Pretrained) -> list[str]:
    """What the network has not and need not have: auxiliary heads, a head that it replaces."""
    lacking = {name: value for name, value in weights.tensors.items() if name not in own}
    heads = {
        name.rpartition(".")[0]
        for name, value in lacking.items()
        if value.dim() == 2 and len(value) == len(weights.classes)  # linear, a row for each class
    }
    return [
        name
        for name in lacking
        if name.lower().startswith("aux")
        or name.endswith(COUNTER)
        or name.rpartition(".")[0] in heads
    ]


def _check(own: dict[str, Tensor], weights: Pretrained, head: set[str], left: list[str]) -> None:
    theirs = weights.tensors
    wrong = [
        f"{name} is {list(theirs[name].shape) if name in theirs else 'missing'}, "
        f"the network has {list(tensor.shape)}"
        for name, tensor in own.items()
        if name not in head
        and (name in theirs or not name.endswith(COUNTER))
        and (name not in theirs or theirs[name].shape != tensor.shape)
    ]
    wrong += [
        f"{n} {list(t.shape)} is not in the network"
        for n, t in theirs.items()
        if n not in own and n not in left
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        what = f"another network's weights: {wrong[0]}{more}"
        fix = "type the model it was trained as, with its arguments"
        raise CheckpointError(what, weights.name, fix, name="CKPT-MISMATCH")
    for name, value in theirs.items():
        if name in own and not value.float().isfinite().all():
            raise corrupt(weights.name, f"{name} is not finite", "type other weights")


def _by_name(rows: dict[int, int], classes: Sequence[str]) -> str:
    new = len(classes) - len(rows)
    if not new:
        return "all kept by name"
    kept = f"{len(rows)} kept by name ({_short([classes[row] for row in rows])}), "
    return f"{kept if rows else ''}{new} new"


def _short(items: list[str]) -> str:
    more = f", and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more


def _lines(
    weights: Pretrained,
    loaded: int,
    said: dict[str, str],
    own: dict[str, Tensor],
    left: list[str],
    head: set[str],
) -> list[str]:
    parts = [f"{loaded} tensors loaded"]
    for what in dict.fromkeys(said.values()):
        tensors = [name for name in said if said[name] == what]
        layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name in tensors))
        parts.append(f"head {_short(layers)} ({len(own[tensors[0]])} rows): {what}")
    lines = [f"pretrained {weights.name}: {'; '.join(parts)}"]
    counts = Counter(COUNTER if name.endswith(COUNTER) else name.partition(".")[0] for name in left)
    if counts:
        tops = _short([f"{top} ({count})" for top, count in counts.items()])
        lines.append(f"pretrained {weights.name}: tensors left in the file: {tops}")
    missing = len(own.keys() - weights.tensors.keys() - head)
    if missing:
        lines.append(f"pretrained {weights.name}: without {COUNTER} ({missing}), which start at 0")
    return lines
