"""Writes the instances json that `data=coco` reads, from annotations of another format.

    python scripts/to_coco.py voc train.json --images JPEGImages --labels Annotations
    python scripts/to_coco.py yolo train.json --images images --labels labels --classes names.txt
    python scripts/to_coco.py labelme train.json --images photos --labels photos

`--list ImageSets/Main/train.txt` takes the XML files of a set of VOC only. Image files are named
relative to `--images`, which `data.train_dir` is to name. `--classes` lists a class in each line;
without it (not for YOLO) they are those found, sorted. What is marked as difficult in VOC becomes a
crowd: neither learnt nor counted as missed. Whatever is broken is said in a line for each file, and
then nothing is written; exit code 3.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cvtrain.data.images import BadImage, Header, probe, shown
from cvtrain.data.objects import Corners, flaw
from cvtrain.data.scan import SUFFIXES
from cvtrain.data.voc import BadXml, read_xml
from cvtrain.errors import CvtrainError
from cvtrain.files import write_atomic


class Broken(Exception):
    """Why a file is not converted."""


@dataclass
class Thing:
    name: str
    box: Corners
    crowd: bool = False
    polygons: list[list[float]] = field(default_factory=list)


@dataclass
class Picture:
    file: Path
    header: Header
    things: list[Thing]


def voc(labels: Path, images: Path) -> Picture:
    said = read_xml(labels)
    file = _image(images, labels.stem, said.file_name)
    things = [Thing(o.name, o.box, crowd=o.difficult) for o in said.objects]
    return Picture(file, _header(file, said.size), things)


def labelme(labels: Path, images: Path) -> Picture:
    try:
        top = json.loads(labels.read_text(encoding="utf-8"))
        file = _image(images, labels.stem, Path(top["imagePath"].replace("\\", "/")).name)
        size = (top["imageWidth"], top["imageHeight"]) if "imageWidth" in top else None
        shapes = [(s["label"], s.get("shape_type", "polygon"), s["points"]) for s in top["shapes"]]
        things = [_shape(*shape) for shape in shapes]
    except KeyError as error:
        raise Broken(f"has no key {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise Broken(f"is no labelme json: {error}") from error
    return Picture(file, _header(file, size), things)


def _shape(label: Any, kind: str, points: list[list[float]]) -> Thing:
    if not isinstance(label, str):
        raise Broken(f"has a label {label!r}, no text")
    if kind not in ("rectangle", "polygon", "circle"):
        raise Broken(f"has a {kind}, which has no box")
    across, down = zip(*((float(x), float(y)) for x, y in points), strict=True)
    if kind == "circle":  # its centre, and a point on it
        radius = math.dist(*zip(across, down, strict=True))
        across, down = ((v[0] - radius, v[0] + radius) for v in (across, down))
    box = min(across), min(down), max(across), max(down)
    polygon = [value for point in zip(across, down, strict=True) for value in point]
    return Thing(label, box, polygons=[polygon] if kind == "polygon" else [])


def yolo(image: Path, labels: Path, classes: list[str]) -> Picture:
    """`class x y width height` in each line, centre and size as shares; no file, no objects."""
    header = _header(image, None)
    try:
        lines = labels.read_text(encoding="utf-8").splitlines() if labels.exists() else []
    except (OSError, ValueError) as error:
        raise Broken(f"cannot be read: {error}") from error
    things = []
    for number, line in enumerate(lines, 1):
        try:
            word, *numbers = line.split() or ["0"]
            values = [float(value) for value in numbers]
            index = int(word)
        except ValueError as error:
            raise Broken(f"line {number}: {error}") from error
        if not values and not line.strip():
            continue
        if len(values) != 4 or not 0 <= index < len(classes):
            limit = f"class 0 to {len(classes) - 1} and four numbers"
            raise Broken(f"line {number} is {line!r}, not {limit}")
        if max(values) > 2:
            raise Broken(f"line {number}: these are no shares of the image, but pixels")
        x, y, width, height = (v * s for v, s in zip(values, _sides(header) * 2, strict=True))
        box = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        things.append(Thing(classes[index], box))
    return Picture(image, header, things)


def _sides(header: Header) -> tuple[int, int]:
    return header.width, header.height


def _image(images: Path, stem: str, said: str) -> Path:
    """What the annotation names, else the image that is called as it is."""
    named = images / said if said else images / stem
    if said and named.is_file():
        return named
    found = [f for f in sorted(images.glob(f"{stem}.*")) if f.suffix.lower() in SUFFIXES]
    if not found:
        raise Broken(f"has no image {shown(named)}")
    return found[0]


def _header(file: Path, said: tuple[int, int] | None) -> Header:
    header = probe(file, max_pixels=2**31)
    if said not in (None, _sides(header)):
        raise Broken(f"says {said[0]}x{said[1]} pixels, {shown(file)} has {_sides(header)}")
    return header


def pictures(arguments: argparse.Namespace, broken: list[str]) -> Iterator[Picture]:
    """Of each file of annotations (for YOLO, each image); a line for each that is broken."""
    images, labels = arguments.images, arguments.labels
    suffixes = {"voc": {".xml"}, "labelme": {".json"}, "yolo": SUFFIXES}[arguments.format]
    files = sorted(f for f in (images if arguments.format == "yolo" else labels).iterdir())
    files = [f for f in files if f.suffix.lower() in suffixes and f.name[0] != "."]
    if arguments.list:
        wanted = [line.split()[0] for line in arguments.list.read_text().splitlines() if line]
        files = [labels / f"{stem}.xml" for stem in wanted]
    for file in files:
        try:
            if arguments.format == "yolo":
                text = labels / f"{file.stem}.txt"
                picture = yolo(file, text, arguments.classes)
            else:
                picture = {"voc": voc, "labelme": labelme}[arguments.format](file, images)
            for thing in picture.things:
                if why := flaw(thing.box, *_sides(picture.header)):
                    raise Broken(f"the box of a {thing.name!r} {why}")
                if arguments.classes and thing.name not in arguments.classes:
                    raise Broken(f"{thing.name!r} is not in --classes")
            yield picture
        except (Broken, BadXml, BadImage) as why:
            broken.append(f"{shown(file)}: {why}")


def _area(polygon: list[float]) -> float:
    """Of what it encloses, by the shoelace formula."""
    x, y = polygon[::2], polygon[1::2]
    turns = (x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))
    return abs(sum(turns)) / 2


def to_json(found: list[Picture], images: Path, classes: list[str]) -> dict[str, Any]:
    numbers = {name: number for number, name in enumerate(classes, 1)}
    annotations = []
    for number, picture in enumerate(found, 1):
        for thing in picture.things:
            left, top, right, bottom = thing.box
            width, height = right - left, bottom - top
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": numbers[thing.name],
                    "bbox": [round(value, 3) for value in (left, top, width, height)],
                    "area": round(
                        _area(thing.polygons[0]) if thing.polygons else width * height, 3
                    ),
                    "iscrowd": int(thing.crowd),
                    "segmentation": thing.polygons,
                }
            )
    return {
        "images": [
            {
                "id": number,
                "file_name": picture.file.relative_to(images).as_posix(),
                "width": picture.header.width,
                "height": picture.header.height,
            }
            for number, picture in enumerate(found, 1)
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("format", choices=("voc", "yolo", "labelme"))
    parser.add_argument("out", type=Path, help="the json to write")
    parser.add_argument("--images", type=Path, required=True, help="the folder of images")
    parser.add_argument("--labels", type=Path, required=True, help="the folder of annotations")
    parser.add_argument("--classes", type=Path, help="a file with a class in each line")
    parser.add_argument("--list", type=Path, help="of VOC: a file with a name in each line")
    arguments = parser.parse_args()
    broken: list[str] = []
    try:
        if arguments.classes:
            lines = arguments.classes.read_text(encoding="utf-8").splitlines()
            arguments.classes = [line.strip() for line in lines if line.strip()]
        if arguments.format == "yolo" and not arguments.classes:
            parser.error("yolo numbers its classes: give --classes FILE")
        found = list(pictures(arguments, broken))
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"to_coco: {error}")
    if not found and not broken:
        broken = [f"{shown(arguments.labels)}: no annotations of {arguments.format}"]
    if broken:
        print(*broken, f"to_coco: {len(broken)} broken, nothing written", sep="\n", file=sys.stderr)
        sys.exit(3)
    names = {thing.name for picture in found for thing in picture.things}
    top = to_json(found, arguments.images, arguments.classes or sorted(names))
    try:
        write_atomic(arguments.out, json.dumps(top))
    except CvtrainError as error:
        sys.exit(error.line())
    print(f"{arguments.out}: {len(found)} images, {len(top['annotations'])} boxes")


if __name__ == "__main__":
    main()
