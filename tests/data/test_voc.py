"""VOC's format: XML files as their makers write them, and as nobody should."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cvtrain.data.source import Augmentations
from cvtrain.data.voc import CLASSES, BadXml, Voc, read_xml
from cvtrain.errors import CvtrainError

GIVEN: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.25] * 3}

# As VOC2007's own: a part with a box of its own, fields in another order, fractions of pixels.
REAL = """<annotation>
	<folder>VOC2007</folder>
	<filename>000001.jpg</filename>
	<size><width>30</width><height>20</height><depth>3</depth></size>
	<segmented>0</segmented>
	<object>
		<name>person</name>
		<pose>Left</pose>
		<truncated>1</truncated>
		<difficult>0</difficult>
		<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>
		<part>
			<name>head</name>
			<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>
		</part>
	</object>
	<object>
		<bndbox><xmax>12.25</xmax><xmin>3</xmin><ymin>5</ymin><ymax>8</ymax></bndbox>
		<difficult>1</difficult>
		<name>dog</name>
	</object>
</annotation>
"""


def thing(name: str, *corners: object, extra: str = "") -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, corners, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{box}</bndbox></object>"


def write(folder: Path, sets: dict[str, dict[str, str]]) -> None:
    """Sets of names and what stands in their XML files; images are of 30x20 pixels."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, files in sets.items():
        (folder / f"ImageSets/Main/{name}.txt").write_text("\n".join(files) + "\n")
        for stem, xml in files.items():
            text = xml if xml.startswith("<annotation>") else wrap(xml)
            (folder / f"Annotations/{stem}.xml").write_text(text)
            Image.new("RGB", (30, 20), (90, 90, 90)).save(folder / f"JPEGImages/{stem}.jpg")


def wrap(xml: str) -> str:
    return f"<annotation>{xml}</annotation>"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    train = {"000001": REAL, "000002": wrap(""), "000003": thing("cat", 5, 5, 10, 10)}
    write(tmp_path / "VOC2007", {"trainval": train, "test": {"9": thing("dog", 2, 3, 4, 4)}})
    return tmp_path


def voc(root: Path, **options: Any) -> Voc:
    sets = {"train_sets": ["VOC2007/trainval"], "val_sets": ["VOC2007/test"]}
    return Voc(root=str(root), **{**GIVEN, **sets, **options})


def refused(build: Callable[[], object], name: str = "VOC", code: int = 3) -> str:
    begun = time.perf_counter()
    with pytest.raises(CvtrainError) as caught:
        build()
    assert time.perf_counter() - begun < 2
    assert (caught.value.code, caught.value.name) == (code, name)
    assert caught.value.line().isprintable()
    return caught.value.line()


def test_pixels_are_counted_from_one(root: Path) -> None:
    source = voc(root)
    split = source.train(20, Augmentations())
    image, target, truth, _ = split[0]
    assert image.shape == (3, 20, 30)
    assert truth["boxes"].tolist() == [[0, 0, 30, 20], [2, 4, 12.25, 8]]
    assert truth["difficult"].tolist() == [False, True]
    assert truth["crowd"].tolist() == [False, False]
    assert truth["area"].tolist() == [600, 41]
    assert truth["labels"].tolist() == [CLASSES.index("person") + 1, CLASSES.index("dog") + 1]
    # What is difficult is true, and not learnt.
    assert target["boxes"].tolist() == [[0, 0, 30, 20]]
    assert [len(split[i][1]["boxes"]) for i in range(3)] == [1, 0, 1]
    assert source.val(40)[0][1]["boxes"].tolist() == [[2, 4, 8, 8]]
    both = voc(root, difficult=True).train(20, Augmentations())
    assert len(both[0][1]["boxes"]) == 2


def test_classes(root: Path) -> None:
    source = voc(root)
    assert source.info.classes == CLASSES
    assert (len(CLASSES), CLASSES[0], CLASSES[14], CLASSES[19]) == (
        *(20, "aeroplane", "person", "tvmonitor"),
    )
    assert sum(source.info.counts) == 2
    assert source.info.image_size == 600
    write(
        root / "VOC2007", {"trainval": {"1": thing("yak", 1, 1, 4, 4) + thing("dog", 1, 1, 4, 4)}}
    )
    assert voc(root).info.classes == ("dog", "yak")
    write(root / "VOC2007", {"test": {"9": thing("gnu", 1, 1, 4, 4)}})
    line = refused(lambda: voc(root))
    assert "VOC2007/Annotations/9.xml object[0] is 'gnu', no class of the training sets" in line


def test_sets_of_two_years_and_of_no_year(root: Path) -> None:
    before = voc(root).info
    more = {"trainval": {"2008_1": thing("sofa", 1, 1, 9, 9)}, "sofa_train": {}}
    write(root / "VOC2012", more)
    (root / "VOC2012/ImageSets/Main/sofa_train.txt").write_text("2008_1  1\n\n")
    both = voc(root, train_sets=["VOC2007/trainval", "VOC2012/trainval"])
    assert len(both.train(20, Augmentations())) == 4
    assert both.name_of(3) == str(root / "VOC2012/JPEGImages/2008_1.jpg")
    assert both.info.fingerprint != before.fingerprint
    alone = voc(root / "VOC2012", train_sets=["trainval"], val_sets=["sofa_train"])
    assert len(alone.val(20)) == 1


def test_an_image_of_another_kind_is_found_by_what_the_xml_says(root: Path) -> None:
    folder = root / "VOC2007"
    write(folder, {"trainval": {"a": f"<filename>x/a.png</filename>{thing('dog', 1, 1, 9, 9)}"}})
    (folder / "JPEGImages/a.jpg").rename(folder / "JPEGImages/a.png")
    text = wrap(f"<filename>a.png</filename>{thing('dog', 1, 1, 9, 9)}")
    (folder / "Annotations/a.xml").write_text(text)
    assert voc(root).name_of(0).endswith("a.png")


def test_what_is_done_is_said(root: Path, said: Callable[[], str]) -> None:
    xml = "<size><width>99</width><height>20</height></size>" + thing("dog", 0, 1, 35, 10)
    write(root / "VOC2007", {"trainval": {"1": xml}})
    source = voc(root)
    assert source.train(20, Augmentations())[0][2]["boxes"].tolist() == [[0, 0, 30, 10]]
    assert "1 files give another size than their images have" in said()
    assert "1 boxes reach out of their images and are clipped" in said()
    assert "20 classes, 1 train images with 1 boxes, 1 val images with 1 boxes" in said()


@pytest.mark.parametrize(
    ("xml", "why"),
    [
        (thing("dog", 5, 5, 4, 9), "object[0] is 0 pixels wide"),
        (thing("dog", 5, 5, 9, 3), "object[0] is -1 pixels high"),
        (thing("dog", 31, 5, 40, 9), "object[0] lies outside its image, 30x20 pixels"),
        (thing("dog", 5, 5, 1e30, 9), "object[0] reaches far out"),
    ],
)
def test_bad_boxes(root: Path, xml: str, why: str, said: Callable[[], str]) -> None:
    write(root / "VOC2007", {"trainval": {"1": xml + thing("dog", 1, 1, 9, 9)}})
    line = refused(lambda: voc(root))
    assert f"a mistake: VOC2007/Annotations/1.xml {why}" in line
    assert "data.on_bad_boxes=drop" in line
    assert sum(voc(root, on_bad_boxes="drop").info.counts) == 1
    assert "1 bad boxes of 2 are left out" in said()


@pytest.mark.parametrize(
    ("xml", "why"),
    [
        ("", "is no XML: no element found"),
        ("I am no XML", "is no XML"),
        ("<annotation>", "is no XML"),
        ("<a>" * 50_000, "is no XML"),
        ("<annotation>\x00</annotation>", "is no XML"),
        ('<?xml version="1.0" encoding="klingon"?><a/>', "is no XML"),
        (wrap(thing("", 1, 1, 9, 9)), "object[0] has no name"),
        (wrap("<object><name>dog</name></object>"), "object[0].bndbox/xmin is '', no number"),
        (wrap(thing("dog", 1, "two", 9, 9)), "object[0].bndbox/ymin is 'two', no number"),
        (wrap(thing("dog", 1, 1, "nan", 9)), "object[0].bndbox/xmax is 'nan', no number"),
        (wrap(thing("dog", 1, 1, 9, "inf")), "object[0].bndbox/ymax is 'inf', no number"),
        (wrap("<size><width>wide</width></size>"), "size/width is 'wide', no number"),
    ],
    ids=range(12),
)
def test_bad_files(root: Path, xml: str, why: str) -> None:
    (root / "VOC2007/Annotations/000003.xml").write_text(xml)
    line = refused(lambda: voc(root))
    assert "a mistake: VOC2007/Annotations/000003.xml " in line
    assert why in line


BOMB = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
HOSTILE = {
    "bomb": f'<!DOCTYPE a [<!ENTITY e0 "boom">{BOMB}]><a><object><name>&e11;</name></object></a>',
    "file": '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><a><filename>&x;</filename></a>',
    "outside": '<!DOCTYPE a SYSTEM "http://127.0.0.1:1/a.dtd"><a/>',
    "empty": "<!DOCTYPE a><a/>",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused(root: Path, name: str, encoding: str) -> None:
    file = root / "VOC2007/Annotations/000003.xml"
    file.write_bytes(HOSTILE[name].encode(encoding))
    begun = time.perf_counter()
    with pytest.raises(BadXml, match="has a DOCTYPE"):
        read_xml(file)
    assert time.perf_counter() - begun < 1
    assert "000003.xml has a DOCTYPE" in refused(lambda: voc(root))


def test_what_is_not_there(root: Path) -> None:
    line = refused(lambda: voc(root, train_sets=["VOC2012/trainval"]), "NO-DATA")
    assert "VOC2012/ImageSets/Main/trainval.txt" in line
    assert (
        "type data.root=FOLDER or data.train_sets=[...] of VOC2007/test, VOC2007/trainval" in line
    )
    assert "NO-DATA" in refused(lambda: voc(root / "nowhere"), "NO-DATA")
    refused(lambda: voc(root, val_sets="VOC2007/test"), "CONFIG", 2)
    refused(lambda: voc(root, val_sets=[]), "CONFIG", 2)
    (root / "VOC2007/JPEGImages/9.jpg").unlink()
    line = refused(lambda: voc(root))
    assert "VOC2007/Annotations/9.xml is " in line
    assert "9.jpg, which is not there" in line
    (root / "VOC2007/Annotations/9.xml").unlink()
    assert "9.xml cannot be read: No such file" in refused(lambda: voc(root))
    (root / "VOC2007/ImageSets/Main/test.txt").write_text("\n")
    assert "lists no image" in refused(lambda: voc(root))


def test_no_box_to_learn(root: Path) -> None:
    hard = "<difficult>1</difficult>"
    write(root / "VOC2007", {"test": {"9": thing("dog", 1, 1, 9, 9, extra=hard)}})
    assert "not a single box to learn in 1 val images" in refused(lambda: voc(root))
    assert len(voc(root, difficult=True).val(20)) == 1
