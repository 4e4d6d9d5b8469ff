"""The images of data that no source could be made of: as much as can be told without one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cvtrain.checks.parts import CLASS, Found, Part
from cvtrain.data.coco import Coco
from cvtrain.data.csv import CsvSource
from cvtrain.data.image_folder import ImageFolder
from cvtrain.data.images import BadImage, probe
from cvtrain.data.objects import Rows, flaw, shorten
from cvtrain.data.scan import SUFFIXES, class_folders
from cvtrain.data.table import read_table
from cvtrain.data.voc import BadXml, Voc, VocFile, read_xml
from cvtrain.errors import DataError

SPLITS = ("train", "val")


def listed(
    kind: type, arguments: dict[str, Any]
) -> tuple[list[Part], list[Found], list[DataError]]:
    """Splits by the arguments of a source's class, bad labels, and what cannot be read at all."""
    root = Path(str(arguments.get("root", "")))
    found: list[Found] = []
    errors: list[DataError] = []
    parts: list[Part] = []
    if issubclass(kind, ImageFolder):
        folders = {name: root / str(arguments.get(f"{name}_dir", name)) for name in SPLITS}
        there = {name: folder for name, folder in folders.items() if folder.is_dir()}
        parts = [_of_folder(name, folder) for name, folder in (there or {"all": root}).items()]
    for name in SPLITS:
        try:
            if issubclass(kind, CsvSource) and arguments.get(f"{name}_csv"):
                parts.append(_of_table(name, root, arguments, found))
            if issubclass(kind, Coco):
                parts.append(_of_json(name, root, arguments, found))
            if issubclass(kind, Voc):
                parts.append(_of_sets(name, root, arguments, found))
        except DataError as error:
            errors.append(error)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # of a json or a list that is none: the source has said so
    return [part for part in parts if part.count], found, errors


def _of_folder(name: str, folder: Path) -> Part:
    try:
        classes = tuple(class_folders(folder))
    except DataError:
        return _part(name, sorted(_images(folder)))
    pairs = [
        (file, label) for label, own in enumerate(classes) for file in sorted(_images(folder / own))
    ]
    labels = np.array([label for _, label in pairs], np.int64)
    return _part(name, [f for f, _ in pairs], labels={CLASS: labels}, classes={CLASS: classes})


def _images(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.suffix.lower() in SUFFIXES and not hidden and not file.is_dir():
            yield file


def _part(name: str, files: list[Path], **more: Any) -> Part:
    return Part(name, len(files), files=files, **more)


def _of_table(name: str, root: Path, arguments: dict[str, Any], found: list[Found]) -> Part:
    """Every column is one of labels, but those of the path and of a box. Raises DataError."""
    path = str(arguments.get("path", "path"))
    file = root / str(arguments[f"{name}_csv"])
    if not file.exists():
        return Part(name, 0)
    table = read_table(file, path=path)
    own = arguments.get("labels") or ([arguments["label"]] if "label" in arguments else None)
    columns = [c for c in table.columns if c != path and (own is None or c in own)]
    classes = {c: tuple(sorted(set(table.columns[c]) - {""})) for c in columns}
    labels = {
        c: np.array([classes[c].index(cell) if cell else -1 for cell in table.columns[c]])
        for c in columns
    }
    rows = [number for number, cell in enumerate(table.columns[path]) if cell]
    files = [root / table.columns[path][number] for number in rows]
    sides = [table.columns.get(side, []) for side in arguments.get("box") or ()]
    if len(sides) == 4 and all(sides):
        cells = [[column[number] for column in sides] for number in rows]
        found += [*_bad_boxes(files, cells, [table.rows[number] for number in rows])]
    return _part(name, files, labels={c: v[rows] for c, v in labels.items()}, classes=classes)


def _bad_boxes(files: list[Path], cells: list[list[str]], rows: list[int]) -> Iterator[Found]:
    for file, sides, row in zip(files, cells, rows, strict=True):
        try:
            header = probe(file, max_pixels=2**62)
            left, top, right, bottom = map(float, sides)
        except BadImage:
            continue  # which is found with all the others
        except ValueError:
            yield Found("bad box", str(file), f"row {row}: {','.join(sides)} is no box")
            continue
        if why := flaw((left, top, right, bottom), header.width, header.height):
            yield Found("bad box", str(file), f"row {row}: {why}")


def _of_json(name: str, root: Path, arguments: dict[str, Any], found: list[Found]) -> Part:
    """Images and good boxes of a json in COCO's format, however bad the rest of it is."""
    file = root / str(arguments.get(f"{name}_json", ""))
    folder = root / str(arguments.get(f"{name}_dir", ""))
    top = json.loads(file.read_bytes())
    images = {node["id"]: (i, node) for i, node in enumerate(top["images"])}
    names = {node["id"]: str(node["name"]) for node in top["categories"]}
    order = {id_: number for number, id_ in enumerate(sorted(names), 1)}
    rows = Rows()
    for number, node in enumerate(top["annotations"]):
        bbox, area, where = node.get("bbox"), node.get("area"), f"annotations[{number}]"
        image, label = images.get(node.get("image_id")), order.get(node.get("category_id"))
        if image is None or label is None:
            key = "category_id" if image else "image_id"
            found.append(
                Found("bad label", str(file), f"{where}.{key} is {shorten(node.get(key))}, of none")
            )
            continue
        try:
            left, top_, width, height = map(float, bbox)
        except (TypeError, ValueError):
            found.append(
                Found("bad box", str(file), f"{where} is {shorten(bbox)}, not four numbers")
            )
            continue
        box = (left, top_, left + width, top_ + height)
        if why := flaw(box, image[1]["width"], image[1]["height"]):
            found.append(
                Found("bad box", str(folder / str(image[1]["file_name"])), f"{where} {why}")
            )
            continue
        area = area if isinstance(area, int | float) else None
        rows.add(image[0], box, label, area=area, crowd=bool(node.get("iscrowd")))
    files = [folder / str(node["file_name"]) for _, node in images.values()]
    classes = {CLASS: tuple(names[id_] for id_ in order)}
    return _part(name, files, classes=classes, objects=rows.sort(len(files)))


def _of_sets(name: str, root: Path, arguments: dict[str, Any], found: list[Found]) -> Part:
    """Images and good boxes of VOC's sets, however bad the rest of them are."""
    files: list[Path] = []
    said: list[VocFile] = []
    for chosen in arguments.get(f"{name}_sets") or ():
        folder, stem = root / Path(chosen).parent, Path(chosen).name
        lines = (folder / "ImageSets" / "Main" / f"{stem}.txt").read_text().splitlines()
        for one in (words[0] for line in lines if (words := line.split())):
            files.append(folder / "JPEGImages" / f"{one}.jpg")
            xml = folder / "Annotations" / f"{one}.xml"
            try:
                said.append(read_xml(xml))
            except BadXml as bad:
                said.append(VocFile(xml))
                found.append(Found("bad label", str(xml), str(bad)))
    names = sorted({thing.name for file in said for thing in file.objects})
    rows = Rows()
    for image, file in enumerate(said):
        width, height = file.size or (2**31, 2**31)
        for number, thing in enumerate(file.objects):
            if why := flaw(thing.box, width, height):
                found.append(Found("bad box", str(file.xml), f"object[{number}] {why}"))
            else:
                rows.add(image, thing.box, names.index(thing.name) + 1, difficult=thing.difficult)
    classes = {CLASS: tuple(names)}
    return _part(name, files, classes=classes, objects=rows.sort(len(files)))
