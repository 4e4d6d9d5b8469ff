"""The classes of data and those that a network knows, joined by name."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cvtrain.data.batch import DataInfo, LabelsBatch
from cvtrain.data.images import shown
from cvtrain.errors import DataError

LISTED = 10  # names that an error gives


def joined(
    data: DataInfo, known: DataInfo, *, allow: bool = False
) -> tuple[DataInfo, Callable[[Any], Any]]:
    """The info of the data in the network's order, and what brings a batch's labels into it.

    Raises DataError (CLASSES) with the names that only one has; with `allow` the data need not
    have all.
    """
    if known.columns:
        return _joined_columns(data, known)
    order = places(data.classes, known.classes, allow=allow)
    if list(order) == list(range(len(known.classes))):
        return data, lambda batch: batch
    table = torch.tensor(order)

    def join(batch: Any) -> Any:
        if hasattr(batch, "truths"):
            targets, truths = (
                [{**one, "labels": _moved(one["labels"], table)} for one in each]
                for each in (batch.targets, batch.truths)
            )
            return batch._replace(targets=targets, truths=truths)
        return batch._replace(labels=table.to(batch.labels.device)[batch.labels])

    at = {place: number for number, place in enumerate(order)}
    names = tuple(
        data.shown[at[place]] if place in at else name for place, name in enumerate(known.classes)
    )
    counts = tuple(
        data.counts[at[place]] if place in at else 0 for place in range(len(known.classes))
    )
    info = replace(data, classes=known.classes, names=names, counts=data.counts and counts)
    return info, join


def _moved(labels: Tensor, table: Tensor) -> Tensor:
    """Of objects, from 1 on."""
    return table.to(labels.device)[labels - 1] + 1


def places(
    data: Sequence[str], known: Sequence[str], *, allow: bool = False, of: str = "classes"
) -> list[int]:
    """Of each name in `data` its place in `known`. Raises DataError (CLASSES)."""
    only_data = [name for name in data if name not in set(known)]
    only_known = [name for name in known if name not in set(data)]
    if only_data or (only_known and not allow):
        sides = (("the data", only_data), ("the run", only_known))
        parts = [f"only {who} have {_listed(names)}" for who, names in sides if names]
        text = "; ".join(parts).replace("the run have", "the run has")
        fix = "rename them in the data, or type data= for others"
        raise DataError(f"the {of} differ: {text}", "", fix, name="CLASSES")
    numbers = {name: number for number, name in enumerate(known)}
    return [numbers[name] for name in data]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(shown, names[:LISTED])) + more


def _joined_columns(data: DataInfo, known: DataInfo) -> tuple[DataInfo, Callable[[Any], Any]]:
    """Of several labels: the columns by name, and the classes of each."""
    columns = list(data.columns)
    places(columns, list(known.columns), of="columns")
    order = [columns.index(name) for name in known.columns]
    tables = []
    for name, classes in known.columns.items():
        # A column may lack classes that its head knows; -1, a missing label, stays.
        row = places(data.columns[name], classes, allow=True, of=f"classes of column {shown(name)}")
        tables.append(torch.tensor([*row, -1]))

    def join(batch: LabelsBatch) -> LabelsBatch:
        moved = [
            table.to(batch.labels.device)[batch.labels[:, place]]
            for place, table in zip(order, tables, strict=True)
        ]
        return batch._replace(labels=torch.stack(moved, 1))

    return replace(data, classes=known.classes, columns=known.columns), join
