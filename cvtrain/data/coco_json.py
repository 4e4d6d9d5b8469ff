"""An instances json of COCO's format: read, and checked before anything is made of it.

Masks are passed over where nobody asks for them: not even kept.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvtrain.data.coco_masks import packed, read_mask
from cvtrain.data.images import shown
from cvtrain.data.masks import Mask
from cvtrain.data.objects import Corners, Mistakes, Objects, Rows, shorten
from cvtrain.errors import DataError

Node = dict[str, Any]


@dataclass(frozen=True)
class Instances:
    """What a json says; its categories are numbered from 1, in the order of `classes`."""

    file: Path
    classes: tuple[str, ...]
    ids: list[int]  # of the images
    names: list[str]  # of their files
    sizes: NDArray[np.int64]  # [images, 2]: height and width in pixels
    objects: Objects


def read_instances(
    file: Path,
    *,
    on_bad_boxes: str,
    classes: tuple[str, ...] | None = None,
    masks: bool = False,
) -> Instances:
    """Raises DataError (COCO). Without `classes` they are the json's own, in the order of its ids;
    with them its categories are found among these by name.
    """
    top = _load(file, masks=masks)
    mistakes = Mistakes(file, "COCO", on_bad_boxes)
    categories = _by_id(top, "categories", {"name": str}, mistakes)
    if classes is None:
        classes = tuple(str(node["name"]) for _, node in sorted(categories.items()))
        _check_names(categories, mistakes)
    numbers = {name: number for number, name in enumerate(classes, 1)}
    labels = {id_: numbers.get(node["name"], 0) for id_, node in categories.items()}
    images = _by_id(top, "images", {"file_name": str, "height": int, "width": int}, mistakes)
    _check_images(images, mistakes)
    annotations = _Annotations(images, categories, labels, mistakes, masks=masks)
    kinds: Node = {"image_id": int, "category_id": int, "bbox": None}
    nodes = _by_id(top, "annotations", kinds, mistakes)
    for node in nodes.values():
        annotations.add(node)
    mistakes.refuse()
    objects = annotations.rows.sort(len(images))
    if not objects.learnt.any():
        raise DataError(
            f"not a single box to learn among {len(nodes)} annotations of {len(images)} images",
            shown(file),
            "type the name of another json, or annotate the images",
            name="COCO",
        )
    sizes = [(node["height"], node["width"]) for node in images.values()]
    names = [node["file_name"] for node in images.values()]
    return Instances(file, classes, list(images), names, np.array(sizes, np.int64), objects)


def _load(file: Path, *, masks: bool) -> Node:
    """The object at the top of the file, its three lists there. Raises DataError (COCO)."""
    try:
        text = file.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror}",
            shown(file.absolute()),
            "type data.root=FOLDER, data.train_json=FILE and data.val_json=FILE below it",
            name="NO-DATA",
        ) from error
    # Of a file of gigabytes that is cut off this is known at once.
    end = text[-64:].rstrip()[-1:]
    if text.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{" and end != b"}":
        raise _none(file, "is cut off: it does not end with a brace")
    try:
        hook = _with_packed_masks if masks else _without_masks
        top = json.loads(text.decode("utf-8-sig"), object_hook=hook)
    except (ValueError, RecursionError) as error:
        raise _none(file, f"is no json: {str(error).partition(' while ')[0]}") from error
    if not isinstance(top, dict):
        raise _none(file, f"has a {type(top).__name__} at its top, no object")
    for key in ("images", "annotations", "categories"):
        if not isinstance(top.get(key), list):
            what = f"is a {type(top[key]).__name__}" if key in top else "is missing"
            raise _none(file, f"is no instances json: the list {key} {what}")
    return top


def _without_masks(node: Node) -> Node:
    """Nine tenths of a json are masks."""
    node.pop("segmentation", None)
    return node


def _with_packed_masks(node: Node) -> Node:
    if "segmentation" in node:
        node["segmentation"] = packed(node["segmentation"])
    return node


def _none(file: Path, what: str) -> DataError:
    fix = "type data.train_json=FILE and data.val_json=FILE for jsons of instances"
    return DataError(what, shown(file), fix, name="COCO")


def _by_id(top: Node, key: str, kinds: Node, mistakes: Mistakes) -> dict[int, Node]:
    """The nodes of a list by their ids, each with its `place`, less those that are wrong.

    `kinds` are the types of what each node must have; None for any.
    """
    nodes: dict[int, Node] = {}
    for number, node in enumerate(top[key]):
        place = f"{key}[{number}]"
        if not isinstance(node, dict):
            mistakes.add(place, f"is {shorten(node)}, no object")
        elif wrong := _wrong(node, {"id": int, **kinds}):
            mistakes.add(f"{place}.{wrong}", _why(node, wrong))
        elif (before := nodes.setdefault(node["id"], node)) is not node:
            mistakes.add(f"{place}.id", f"is {node['id']}, that of {before['place']}, too")
        else:
            node["place"] = place
    return nodes


def _wrong(node: Node, kinds: Node) -> str:
    """The first key that is missing or of another type; bools are no numbers."""
    for name, kind in kinds.items():
        if name not in node or (kind and type(node[name]) is not kind):
            return name
    return ""


def _why(node: Node, name: str) -> str:
    return f"is {shorten(node[name])}" if name in node else "is missing"


def _check_names(categories: dict[int, Node], mistakes: Mistakes) -> None:
    seen: dict[str, str] = {}
    for node in categories.values():
        if (before := seen.setdefault(node["name"], node["place"])) != node["place"]:
            mistakes.add(f"{node['place']}.name", f"is {shorten(node['name'])}, that of {before}")
        if not node["name"].strip():
            mistakes.add(f"{node['place']}.name", "is empty")


def _check_images(images: dict[int, Node], mistakes: Mistakes) -> None:
    seen: dict[str, str] = {}
    for number, node in enumerate(images.values()):
        node["number"] = number
        name, place = node["file_name"], node["place"]
        if (before := seen.setdefault(name, place)) != place:
            mistakes.add(f"{place}.file_name", f"is {shorten(name)}, that of {before}, too")
        if not name or "\0" in name:
            mistakes.add(f"{place}.file_name", f"is {shorten(name)}")
        for key in ("height", "width"):
            if not 0 < node[key] < 2**31:
                mistakes.add(f"{place}.{key}", f"is {shorten(node[key])}")


class _Annotations:
    """Rows of objects, from the nodes of a list that have what every annotation has."""

    def __init__(
        self,
        images: dict[int, Node],
        categories: dict[int, Node],
        labels: dict[int, int],
        mistakes: Mistakes,
        *,
        masks: bool,
    ) -> None:
        self.images, self.categories, self.labels = images, categories, labels
        self.mistakes, self.rows, self.masks = mistakes, Rows(), masks

    def add(self, node: Node) -> None:
        place, mistakes = node["place"], self.mistakes
        image, category = self.images.get(node["image_id"]), node["category_id"]
        if image is None:
            mistakes.add(f"{place}.image_id", f"is {node['image_id']}, no image's")
            return
        if not self.labels.get(category):
            known = self.categories.get(category)
            what = f"{category}, no category's"
            if known:
                what = f"{shorten(known['name'])}, no category of the training json"
            mistakes.add(f"{place}.category_id", f"is {what}")
            return
        crowd, area = node.get("iscrowd"), node.get("area")
        mistakes.notes["annotations without iscrowd count as single objects"] += crowd is None
        mistakes.notes["annotations without area have that of their boxes"] += area is None
        if crowd not in (None, 0, 1):
            mistakes.add(f"{place}.iscrowd", f"is {shorten(crowd)}, not 0 or 1")
        if area is not None and not (_number(area) and 0 <= area < math.inf):
            mistakes.add(f"{place}.area", f"is {shorten(area)}")
            return
        box = self._box(f"{place}.bbox", node["bbox"], image)
        mask = self._mask(node, image) if self.masks else None
        if box is not None and (mask is not None or not self.masks):
            label = self.labels[category]
            self.rows.add(image["number"], box, label, area=area, crowd=bool(crowd), mask=mask)

    def _mask(self, node: Node, image: Node) -> Mask | None:
        """None, and noted, where it is no mask of the image."""
        place = f"{node['place']}.segmentation"
        if "segmentation" not in node:
            self.mistakes.add(place, "is missing")
            return None
        try:
            return read_mask(node["segmentation"], image["height"], image["width"])
        except ValueError as error:
            # Polygons may be left out as boxes may: by slips of the hand no run lengths are wrong.
            polygons = isinstance(node["segmentation"], list)
            (self.mistakes.bad_box if polygons else self.mistakes.add)(place, str(error))
            return None

    def _box(self, place: str, bbox: Any, image: Node) -> Corners | None:
        """From left, top, width, height to left, top, right, bottom."""
        if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_number, bbox)):
            self.mistakes.boxes += 1
            self.mistakes.bad_box(place, f"is {shorten(bbox)}, not four numbers")
            return None
        left, top, width, height = bbox
        corners = (left, top, left + width, top + height)
        return self.mistakes.box(place, corners, image["width"], image["height"])


def _number(value: Any) -> bool:
    """Of JSON; larger than any float an int is none."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)
