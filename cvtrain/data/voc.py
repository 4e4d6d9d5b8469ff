"""PASCAL VOC (Everingham et al. 2010), and any data set in its format: an XML file for each image.

Below a folder (`VOC2007`) `ImageSets/Main/<set>.txt` lists names, for which there are
`JPEGImages/<name>.jpg` and `Annotations/<name>.xml`. Coordinates are pixels counted from 1, the
last one included.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from cvtrain.data.detection import DetectionSource
from cvtrain.data.images import shown
from cvtrain.data.objects import Corners, Mistakes, Rows, shorten
from cvtrain.data.scan import LISTED
from cvtrain.errors import ConfigError, DataError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


class BadXml(Exception):
    """Why a file is no annotation."""


@dataclass(frozen=True)
class VocObject:
    name: str
    box: Corners
    difficult: bool


@dataclass
class VocFile:
    xml: Path
    file_name: str = ""  # what it says of its image
    size: tuple[int, int] | None = None  # (width, height), where it says so
    objects: list[VocObject] = field(default_factory=list)


class _Builder(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Entities, which can grow without end or lead elsewhere, are declared in there."""
        raise BadXml("has a DOCTYPE, which annotations have no need of")


def read_xml(file: Path) -> VocFile:
    """Raises BadXml."""
    try:
        parser = ElementTree.XMLParser(target=_Builder())
        parser.feed(file.read_bytes())
        root = parser.close()
    except OSError as error:
        raise BadXml(f"cannot be read: {error.strerror}") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # as of an encoding
        raise BadXml(f"is no XML: {error}") from error
    size = tuple(_number(root, f"size/{key}", 0.0) for key in ("width", "height"))
    said = VocFile(file, (root.findtext("filename") or "").strip())
    if min(size) >= 1:
        said.size = int(size[0]), int(size[1])
    for number, node in enumerate(root.findall("object")):
        said.objects.append(_object(node, f"object[{number}]"))
    return said


def _object(node: ElementTree.Element, place: str) -> VocObject:
    name = (node.findtext("name") or "").strip()
    if not name:
        raise BadXml(f"{place} has no name")
    left, top, right, bottom = (
        _number(node, f"bndbox/{key}", place=place) for key in ("xmin", "ymin", "xmax", "ymax")
    )
    difficult = _number(node, "difficult", 0.0) != 0
    return VocObject(name, (left - 1, top - 1, right, bottom), difficult)


def _number(
    node: ElementTree.Element, path: str, default: float | None = None, place: str = ""
) -> float:
    text = (node.findtext(path) or "").strip()
    if not text and default is not None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadXml(f"{place}{'.' if place else ''}{path} is {shorten(text)}, no number")
    return value


class Voc(DetectionSource):
    """`train_sets` and `val_sets` are FOLDER/SET below `root`, or SET where `root` is the folder.

    Classes are the twenty of VOC in their usual order, or, if there are others, those of the
    training sets, sorted. What is marked as difficult is learnt only with `difficult`. Raises
    DataError: VOC, NO-DATA, BAD-IMAGE, IMAGE-TOO-LARGE.
    """

    native_size = 600  # pixels of the short side, as of Girshick 2015

    def __init__(
        self,
        *,
        train_sets: list[str],
        val_sets: list[str],
        difficult: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.difficult = difficult
        said = {
            "train": self._read("train_sets", train_sets),
            "val": self._read("val_sets", val_sets),
        }
        classes = _classes(said["train"])
        for split, files in said.items():
            self._gather(split, files, classes)
        self._describe(classes)

    def _read(self, key: str, sets: list[str]) -> dict[Path, VocFile]:
        """What is said of each image, by the image's file."""
        if not isinstance(sets, list) or not sets:
            raise ConfigError(
                f"data.{key}={sets} is no list of sets",
                "",
                f"type data.{key}=[VOC2007/trainval,VOC2012/trainval]",
            )
        mistakes = Mistakes(self.root, "VOC", self.on_bad_boxes)
        said: dict[Path, VocFile] = {}
        for name in map(str, sets):
            folder = self.root / Path(name).parent
            for stem in self._stems(folder, Path(name).name, key):
                xml = folder / "Annotations" / f"{stem}.xml"
                image = folder / "JPEGImages" / f"{stem}.jpg"
                try:
                    one = read_xml(xml)
                except BadXml as why:
                    mistakes.add(shown(xml.relative_to(self.root)), str(why))
                    continue
                if one.file_name and not image.exists():
                    image = image.with_name(Path(one.file_name).name)
                said[image] = replace(one, xml=xml.relative_to(self.root))
        mistakes.refuse()
        return said

    def _stems(self, folder: Path, name: str, key: str) -> list[str]:
        file = folder / "ImageSets" / "Main" / f"{name}.txt"
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "is no UTF-8"
            sets = sorted(self.root.glob("**/ImageSets/Main/*.txt"))[:LISTED]
            there = [f"{s.parents[2].relative_to(self.root) / s.stem}" for s in sets]
            raise DataError(
                f"no such set of images: {why}",
                shown(file.absolute()),
                f"type data.root=FOLDER or data.{key}=[...]"
                + (f" of {', '.join(map(shown, there))}" if there else ""),
                name="NO-DATA",
            ) from error
        # Of a set of one class the second column says whether the class is there.
        stems = [words[0] for line in lines if (words := line.split())]
        if not stems:
            raise DataError("lists no image", shown(file), f"type data.{key}=[...]", name="VOC")
        return stems

    def _gather(self, split: str, files: dict[Path, VocFile], classes: tuple[str, ...]) -> None:
        mistakes, rows = Mistakes(self.root, "VOC", self.on_bad_boxes), Rows()
        numbers = {name: number for number, name in enumerate(classes, 1)}
        said = list(files.values())
        found = self._look(list(files), mistakes, [shown(one.xml) for one in said])
        for image, header in zip(found.labels, found.headers, strict=True):
            one = said[image]
            other_size = one.size not in (None, (header.width, header.height))
            mistakes.notes["files give another size than their images have"] += other_size
            for number, thing in enumerate(one.objects):
                place = f"{shown(one.xml)} object[{number}]"
                if thing.name not in numbers:
                    mistakes.add(place, f"is {shorten(thing.name)}, no class of the training sets")
                elif box := mistakes.box(place, thing.box, header.width, header.height):
                    label = numbers[thing.name]
                    rows.add(image, box, label, difficult=thing.difficult)
        mistakes.refuse()
        objects = rows.sort(len(files), learn_difficult=self.difficult)
        if not objects.learnt.any():
            raise DataError(
                f"not a single box to learn in {len(files)} {split} images",
                shown(self.root.absolute()),
                f"type other data.{split}_sets",
                name="VOC",
            )
        self._keep(split, found, objects)


def _classes(files: dict[Path, VocFile]) -> tuple[str, ...]:
    names = {thing.name for said in files.values() for thing in said.objects}
    return CLASSES if names <= set(CLASSES) else tuple(sorted(names))
