"""Tables of labels and of boxes, as spreadsheets write them; what is refused, in which line."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import command, write_data, write_images
from torchvision.transforms import v2

from cvtrain.build import build_parts
from cvtrain.compose import compose_config
from cvtrain.data.augment import Affine, BatchTransform, HorizontalFlip, PadCrop
from cvtrain.data.crops import RandomResizedCrop, ScaleJitter
from cvtrain.data.csv import CsvImages, CsvSource
from cvtrain.data.csv_boxes import CsvBoxes
from cvtrain.data.image_folder import ImageFolder
from cvtrain.data.loader import FileLoader, Order
from cvtrain.data.source import Augmentations
from cvtrain.engine.distributed import Ranks
from cvtrain.errors import ConfigError, CvtrainError

GIVEN: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.25] * 3}
LABELS = "path,kind,large\n1.png,cat,1\n2.png,dog,0\n3.png,cat,\n4.png,ant,0\n"
BOXES = "path,class,x1,y1,x2,y2\n1.png,cat,1,2,9,7\n2.png,dog,0,0,12,10\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Forty images of 12x10 pixels, each of its own grey, and a table of four of them."""
    for number in range(1, 41):
        Image.new("L", (12, 10), number).save(tmp_path / f"{number}.png")
    return write(tmp_path, LABELS)


def write(root: Path, text: str | bytes, name: str = "train.csv") -> Path:
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def images(root: Path, **options: Any) -> CsvImages:
    return CsvImages(root=str(root), **{"val_csv": "train.csv", **GIVEN, **options})


def boxes(root: Path, text: str = "", **options: Any) -> CsvBoxes:
    """With an evaluation that sees the largest square."""
    if text:
        write(root, text)
    given = {"val_csv": "train.csv", "crop_fraction": 1.0, **GIVEN, **options}
    return CsvBoxes(root=str(root), **given)


def refused(build: Callable[[], object], code: int = 3) -> str:
    with pytest.raises(CvtrainError) as caught:
        build()
    assert caught.value.code == code
    line = caught.value.line()
    assert line.isprintable()
    return line


def learnt(source: CsvSource) -> list[Any]:
    return source._splits["train"].labels


# Labels


def test_labels(root: Path) -> None:
    source = images(root)
    assert source.info.classes == ("kind", "large")
    assert source.info.columns == {"kind": ("ant", "cat", "dog"), "large": ("0", "1")}
    assert source.info.counts == ()
    split = source.val(8)
    batch = split.collate([split[i] for i in (3, 0, 2)])
    assert batch.labels.tolist() == [[0, 0], [1, 1], [1, -1]]
    assert batch.labels.dtype == torch.int64
    assert batch.ids.tolist() == [3, 0, 2]
    assert batch.images.shape == (3, 3, 8, 8)
    assert batch.images.amax((1, 2, 3)).tolist() == [4, 1, 3]  # each its own file
    assert [source.name_of(i) for i in range(4)] == [f"{root}/{i}.png" for i in (1, 2, 3, 4)]
    assert source.image_of(1, "train").unique().tolist() == [2]


def test_the_images_are_those_of_a_folder(tmp_path: Path) -> None:
    """The same files, read and cropped the same, in training and evaluation."""
    write_images(tmp_path, count=3, size=(96, 70))
    folder = ImageFolder(root=str(tmp_path), **GIVEN)
    names = [folder.name_of(i, "val") for i in range(6)]
    rows = [f"{name},{i},{i % 2}" for i, name in enumerate(names)]  # absolute
    write(tmp_path, "\n".join(["path,a,b", *rows]))
    table = images(tmp_path)
    assert [table.name_of(i, "val") for i in range(6)] == names
    shutil.copytree(tmp_path / "val", tmp_path / "copy/train")
    shutil.copytree(tmp_path / "val", tmp_path / "copy/val")
    copy = ImageFolder(root=str(tmp_path / "copy"), **GIVEN)
    given = Augmentations(ScaleJitter(), [v2.ColorJitter(0.5)], [HorizontalFlip()])
    for mine, theirs in (
        (table.val(32), copy.val(32)),
        (table.train(32, given), copy.train(32, given)),
    ):
        order = Order(samples=6, batch_size=6, train=mine.augment is not None, seed=3)
        ((here,),) = FileLoader(mine, order).epoch(1)
        ((there,),) = FileLoader(theirs, order).epoch(1)
        assert torch.equal(here.images, there.images)
        assert torch.equal(here.ids, there.ids)


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (["10", "9", "-1", "9"], ("-1", "9", "10")),
        (["0", "1", "", "1"], ("0", "1")),
        (["true", "false", "true", "true"], ("false", "true")),
        (["no", "yes", "no", "yes"], ("no", "yes")),
        (["TRUE", "FALSE", "", ""], ("FALSE", "TRUE")),
        (["b", "A", "10", "c"], ("10", "A", "b", "c")),
        (["0.5", "1e1", "2", "2"], ("0.5", "2", "1e1")),
    ],
)
def test_classes_of_a_column(root: Path, cells: list[str], classes: tuple[str, ...]) -> None:
    write(root, "path,x\n" + "".join(f"{i}.png,{cell}\n" for i, cell in enumerate(cells, 1)))
    source = images(root)
    assert source.info.columns == {"x": classes}
    wanted = [(classes.index(cell),) if cell else (-1,) for cell in cells]
    assert learnt(source) == wanted


PLAIN = "path,kind,note\n1.png,cat,a\n2.png,dog,b\n"


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.rstrip(),
        b"\xef\xbb\xbf" + PLAIN.encode(),
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace(",", " , "),
        PLAIN.replace("cat", '"cat"').replace("path", '"path"'),
        "\n".join(f"{i},{line}" for i, line in enumerate(PLAIN.split("\n")[:3])).replace(
            "0,", ",", 1
        ),
        PLAIN.replace("2.png", ",,\n\n2.png"),
        PLAIN.replace("\n", ",\n").rstrip(",\n") + ",",
    ],
    ids=[
        *("plain", "crlf", "cr", "no end", "bom", "semicolon", "tab", "space", "quotes"),
        *("data frame", "blank rows", "comma at the end"),
    ],
)
def test_ways_to_write_a_table(root: Path, text: str | bytes) -> None:
    source = images(write(root, text))
    assert source.info.columns == {"kind": ("cat", "dog"), "note": ("a", "b")}
    assert learnt(source) == [(0, 0), (1, 1)]
    assert source.info.fingerprint == images(write(root, PLAIN)).info.fingerprint


def test_quoted_commas_and_odd_names(root: Path) -> None:
    name = 'a "b", 犬\nc.png'
    shutil.copy(root / "7.png", root / name)
    quoted = name.replace('"', '""')
    write(root, f'path,"kind,\nof ant"\n"{quoted}","red, small"\n2.png,blue\n')
    source = images(root)
    assert source.info.columns == {"kind,\nof ant": ("blue", "red, small")}
    assert source.image_of(0).unique().tolist() == [7]
    assert source.name_of(0).isprintable()


def test_chosen_columns_and_places(root: Path) -> None:
    (root / "deep").mkdir()
    inside = write(root / "deep", f"file,a,b\n../1.png,1,2\n{root}/2.png,2,3\n")
    source = images(inside, path="file", labels=["b"])
    assert source.info.columns == {"b": ("2", "3")}
    assert [int(source.image_of(i).amax()) for i in (0, 1)] == [1, 2]


def test_a_table_of_validation(root: Path) -> None:
    """Its columns and classes are found by name; more columns are no matter."""
    write(root, "more,large,path,kind\nx,1,5.png,dog\ny,,6.png,ant\n", "val.csv")
    source = images(root, val_csv="val.csv")
    assert source._splits["val"].labels == [(2, 1), (0, -1)]
    assert source.name_of(1, "val") == f"{root}/6.png"


def many(columns: str = "kind", count: int = 40) -> str:
    rows = [f"{i}.png,{'ab'[i % 10 == 0]}" for i in range(1, count + 1)]
    more = ",".join([""] + [str(count % 2) for count in range(columns.count(","))])
    return "\n".join([f"path,{columns}", *(row + more.rstrip(",") for row in rows)])


def test_a_table_is_split_class_by_class(root: Path, said: Callable[[], str]) -> None:
    """Of each its share, from the seed and the class's name, whatever the order of the rows."""
    text = many()
    splits = images(write(root, text), val_csv="none.csv")._splits
    assert "no table none.csv, train.csv is split" in said()
    assert "kind of 2, 30 train, 6 val, 4 test images" in said()
    files = {name: {file.name for file in found.files} for name, found in splits.items()}
    assert set.union(*files.values()) == {f"{i}.png" for i in range(1, 41)}
    assert {name: sum(found.labels, ()).count(1) for name, found in splits.items()} == {
        **{"train": 3, "val": 1, "test": 0}  # of four: three quarters, and to the nearest
    }
    head, *rows = text.split()
    write(root, "\n".join([head, *sorted(rows)]))
    again = images(root, val_csv=None, split_seed=0)._splits
    assert sum(again["train"].labels, ()).count(1) == 3
    other = images(write(root, text), val_csv=None, split_seed=1)._splits
    assert {file.name for file in other["val"].files} != files["val"]


def test_a_rare_class_is_not_lost(root: Path) -> None:
    """Of several columns the rarest class of an image decides: a single one is trained on."""
    for seed in range(5):
        rows = [f"{i}.png,{i % 2},{i % 4 if i < 39 else i}" for i in range(1, 41)]
        write(root, "\n".join(["path,a,b", *rows]))
        splits = images(root, val_csv=None, split=[0.75, 0.25], split_seed=seed)._splits
        assert {f.name for f in splits["train"].files} >= {"39.png", "40.png"}
        assert {b for _, b in splits["val"].labels} == {0, 1, 2, 3}
        assert sum(len(found.files) for found in splits.values()) == 40


def test_shares_of_what_is_split(root: Path) -> None:
    assert "type data.split=null" in refused(lambda: images(root, split=[0.5, 0.5]), 2)
    assert "no shares" in refused(lambda: images(root, split=[0.5], val_csv=None), 2)


def test_fingerprint(root: Path) -> None:
    """Of paths, sizes and labels, wherever the folder is."""
    seen = [images(root).info.fingerprint]
    copy = shutil.copytree(root, root / "copy")
    assert images(copy).info.fingerprint == seen[0]
    for old, new in (
        ("1.png,cat", "1.png,dog"),
        ("3.png", "5.png"),
        ("large", "big"),
        (",1", ",2"),
    ):
        seen.append(images(write(root, LABELS.replace(old, new))).info.fingerprint)
    write(root, LABELS)
    Image.new("L", (11, 10)).save(root / "1.png")
    seen.append(images(root).info.fingerprint)
    Image.new("L", (12, 10)).save(root / "1.png")
    seen.append(boxes(root, BOXES).info.fingerprint)
    seen.append(boxes(root, BOXES.replace("9,7", "9,8")).info.fingerprint)
    seen.append(boxes(root, BOXES.replace("dog", "eel")).info.fingerprint)
    assert len(set(seen)) == len(seen)


def test_nothing_is_changed(root: Path) -> None:
    def contents() -> dict[Path, tuple[bytes, int]]:
        return {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in sorted(root.iterdir())}

    before = contents()
    split = images(root, val_csv=None).train(4, Augmentations())
    assert [split[i] for i in range(len(split))]
    assert contents() == before


def test_mixed_images_have_no_columns(root: Path) -> None:
    """Torchvision would take a row of classes for the shares of a single label."""
    with pytest.raises(ConfigError, match=r"CutMix.*type augment="):
        images(root).train(8, Augmentations(mixes=[v2.CutMix(num_classes=2)]))


# Refused tables


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"", "the table is empty"),
        (b"\xef\xbb\xbf \r\n", "the table is empty"),
        ("path,a\n", "no row below its header"),
        (b"path,a\n1.png,caf\xe9\n", "not UTF-8: byte 0xe9 in line 2"),
        (PLAIN.encode("utf-16"), "not UTF-8: byte 0xff in line 1"),
        (
            "file,kind\n1.png,a\n",
            "has no column path; it has file, kind; TABLE/train.csv; type data.path=",
        ),
        ("Path;kind\n1.png;a\n", "no column path, nearest Path; it has Path, kind"),
        ("\npath,a\n1.png,1\n", "no column path; it has none in its first row"),
        ('"path"x,a\n1.png,1\n', "no column path"),
        (f"{'x' * 99_000};{'y' * 99_000};path\n", "no row below its header"),
        ("path,a,a\n1.png,1,2\n", "two columns called a"),
        ("path,a\n1.png,1\n2.png\n", "row 3 has 1 cells, the header 2"),
        ("path,a\n\n1.png,1,5\n", "row 3 has 3 cells, the header 2"),
        ('path,a\n1.png,1\n2.png,"2\n', "row after row 2 is no CSV"),
        ("path,a\n1.png,1\n,2\n", "there is no path; TABLE/train.csv, row 3, column path"),
        ("path,a\n1.png,1\n2.png,2\n1.png,2\n", "1.png is listed twice; TABLE/train.csv, row 4"),
        ("path,a\n1.png,1\n2.png,1\n", "column a: there is one class only, 1"),
        ("path,a,b\n1.png,1,\n2.png,2,\n", "column b: every cell is empty"),
        ("path,a\n1.png,Cat\n2.png,cat\n3.png,dog\n", "two ways: 'Cat' and 'cat'"),
        ("path,a\n1.png,1.0\n2.png,2\n3.png,1\n", "two ways: 1 and 1.0"),
        ("path\n1.png\n", "the column path holds paths, and is no label"),
        ("path,a\n1.png,1\nnone.png,2\n", "1 of 2 images are bad: TABLE/none.png (is not there"),
        ("path,a\n1.png,1\n../,2\n", "(Is a directory)"),
        ("path,a\n1.png,1\ntrain.csv,2\n", "TABLE/train.csv (cannot identify image file)"),
        ("path,a\n1.png,1\n2\0.png,2\n", r"2\x00.png (embedded null byte)"),
    ],
)
def test_refused_tables(root: Path, text: str | bytes, wanted: str) -> None:
    line = refused(lambda: images(write(root, text)))
    assert wanted.replace("TABLE", str(root)) in line


def test_refused_columns(root: Path) -> None:
    line = refused(lambda: images(root, labels=["kind", "lrge"]))
    assert f"no column lrge, nearest large; it has path, kind, large; {root}/train.csv" in line
    assert "type data.labels=" in line
    write(root, "path,kind\n5.png,dog\n", "val.csv")
    line = refused(lambda: images(root, val_csv="val.csv"))
    assert f"no column large; it has path, kind; {root}/val.csv" in line
    assert "is no label" in refused(lambda: images(root, labels=["path"]))
    for labels in ("kind", []):
        assert "no list" in refused(lambda typed=labels: images(root, labels=typed), 2)


def test_an_unknown_class_in_validation(root: Path) -> None:
    write(root, "path,kind,large\n5.png,dog,1\n6.png,emu,0\n", "val.csv")
    line = refused(lambda: images(root, val_csv="val.csv"))
    assert "emu is no class of the training table, which has ant, cat, dog" in line
    assert f"{root}/val.csv, row 3, column kind" in line


def test_a_table_that_is_not_there(root: Path) -> None:
    line = refused(lambda: images(root, train_csv="labels.csv"))
    assert "error[NO-DATA]: no table labels.csv beside train.csv" in line
    assert "NO-DATA" in refused(lambda: images(root / "nowhere"))
    (root / "folder.csv").mkdir()
    assert "cannot be read: Is a directory" in refused(lambda: images(root, train_csv="folder.csv"))


def test_missing_images_are_listed(root: Path) -> None:
    rows = [f"{i}.png,{i % 2}" for i in range(1, 71)]
    line = refused(lambda: images(write(root, "\n".join(["path,a", *rows]))))
    assert "30 of 70 images are bad" in line
    assert line.count("is not there") == 20
    assert "and 10 more" in line


def test_left_out_files(root: Path) -> None:
    """One bad file is left out with its row, unless it is the last of its class."""
    text = "path,a,b\n1.png,0,0\n2.png,1,0\n3.png,0,1\n4.png,1,0\n"
    (root / "1.png").write_bytes(b"")
    source = images(write(root, text), on_bad="skip")
    assert learnt(source) == [(1, 0), (0, 1), (1, 0)]
    assert source.bad == (f"{root}/1.png\tis empty, 0 bytes",)
    write(root, text.replace("0,1", "0,0").replace("0,0", "0,1", 1))
    assert "class 1 of column b would be empty" in refused(lambda: images(root, on_bad="skip"))


def test_a_class_without_training_images(root: Path) -> None:
    write(root, "\n".join(["path,a", *(f"{i}.png,{i == 1}" for i in range(1, 41))]))
    line = refused(lambda: images(root, val_csv=None, split=[0.4, 0.6]))
    assert "column a has classes without a training image: True" in line


# Boxes


def seen(source: CsvBoxes, size: int, index: int = 0) -> list[float]:
    split = source.val(size)
    return split.collate([split[index]]).boxes[0].tolist()


def test_boxes(root: Path) -> None:
    source = boxes(root, BOXES.replace("dog", "cat", 1) + "3.png,emu,2.5,0,4,10\n")
    assert source.info.classes == ("cat", "emu")
    assert source.info.counts == (2, 1)
    assert source.info.columns == {}
    split = source.val(5)
    batch = split.collate([split[i] for i in (2, 0)])
    assert batch.labels.tolist() == [1, 0]
    assert split.labels.tolist() == [0, 0, 1]
    assert batch.boxes.dtype == torch.float32
    # The middle 10x10 of 12x10: a column is lost on each side.
    assert batch.boxes.tolist() == [
        pytest.approx([0.15, 0, 0.3, 1]),
        pytest.approx([0, 0.2, 0.8, 0.7]),
    ]


@pytest.mark.parametrize(
    ("box", "wanted"),
    [
        ("80,30,100,50", [0.25, 0.25, 0.5, 0.5]),  # sees 60..140 x 10..90 of 200x100
        ("60,10,140,90", [0, 0, 1, 1]),
        ("0,0,100,50", [0, 0, 0.5, 0.5]),
        ("100,50,200,100", [0.5, 0.5, 1, 1]),
        ("0,0,50,5", [0, 0, 0, 0]),  # nothing of it
        ("-20,-5,100,50", [0, 0, 0.5, 0.5]),
    ],
)
def test_a_box_through_a_crop(root: Path, box: str, wanted: list[float]) -> None:
    for name in ("1.png", "2.png"):
        Image.new("L", (200, 100)).save(root / name)
    text = f"path,class,x1,y1,x2,y2\n1.png,a,{box}\n2.png,b,1,1,2,2\n"
    assert seen(boxes(root, text, crop_fraction=0.8), 40) == pytest.approx(wanted)


def frame(image: torch.Tensor) -> list[float]:
    """Left, top, right, bottom of what is bright in uint8 `[C, H, W]`, as shares."""
    bright = image.amax(0) > 127
    (rows,), (columns,) = (bright.any(axis).nonzero(as_tuple=True) for axis in (1, 0))
    height, width = bright.shape
    edges = (columns[0] / width, rows[0] / height, (columns[-1] + 1) / width)
    return [*map(float, edges), float((rows[-1] + 1) / height)]


@pytest.mark.parametrize("crop", [None, "resized", "jitter"])
def test_boxes_stay_around_their_objects(tmp_path: Path, crop: str | None) -> None:
    """Bright rectangles on black, some turned by EXIF, through crops and flips: their pixels."""
    rng = np.random.default_rng(0)
    rows = ["path,class,x1,y1,x2,y2"]
    for number in range(24):
        width, height = rng.integers(150, 260, 2).tolist()
        x1, y1 = rng.integers(30, 70, 2).tolist()
        x2, y2 = x1 + int(rng.integers(30, 70)), y1 + int(rng.integers(30, 70))
        pixels = np.zeros((height, width), np.uint8)
        pixels[y1:y2, x1:x2] = 255
        image, exif = Image.fromarray(pixels), Image.Exif()
        if number % 3 == 0:  # stored lying on its side
            image, exif[0x0112] = image.transpose(Image.Transpose.ROTATE_90), 6
        image.save(tmp_path / f"{number}.jpg", quality=95, exif=exif)
        rows.append(f"{number}.jpg,{number % 2},{x1},{y1},{x2},{y2}")
    source = boxes(tmp_path, "\n".join(rows))
    made = {
        None: None,
        "resized": RandomResizedCrop(scale=[0.5, 1.0], ratio=[0.75, 1.33]),
        "jitter": ScaleJitter(low=1.0, high=1.3),
    }
    split = source.train(128, Augmentations(made[crop], [], [HorizontalFlip()]))
    order = Order(samples=24, batch_size=24, train=True, seed=1)
    ((batch,),) = FileLoader(split, order).epoch(0)
    checked = 0
    for image, box in zip(batch.images, batch.boxes, strict=True):
        left, top, right, bottom = box.tolist()
        if right - left > 0.05 and bottom - top > 0.05:  # else hardly anything is seen of it
            assert frame(image) == pytest.approx(box.tolist(), abs=2.5 / 128)
            checked += 1
    assert checked > 16


def test_clipped_boxes_are_counted(root: Path, said: Callable[[], str]) -> None:
    text = BOXES.replace("0,0,12,10", "-1,0,13.5,10") + "3.png,cat,0,0,1,2\n4.png,dog,5,5,6,11\n"
    source = boxes(root, text)
    assert "train.csv: 2 boxes reach out of their images and are clipped" in said()
    assert learnt(source)[1:] == [(1, (0, 0, 12, 10)), (0, (0, 0, 1, 2)), (1, (5, 5, 6, 10))]


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        ("cat,1,2,1,7", "the box ends at 1 and begins at 1; ROW, column x2"),
        ("cat,1,8,9,7", "the box ends at 7 and begins at 8; ROW, column y2"),
        ("cat,nan,2,9,7", "nan is no pixel; ROW, column x1"),
        ("cat,1,2,inf,7", "inf is no pixel; ROW, column x2"),
        ('cat,1,2,"9,5",7', "9,5 is no pixel; ROW, column x2"),
        ("cat,1,,9,7", "an empty cell is no pixel; ROW, column y1"),
        ("cat,12,2,19,7", "from 12 to 19 lies outside 1.png, 12x10 pixels; ROW, column x1"),
        ("cat,1,-5,9,0", "from -5 to 0 lies outside 1.png, 12x10 pixels; ROW, column y1"),
        (",1,2,9,7", "there is no class; ROW, column class"),
    ],
)
def test_refused_boxes(root: Path, cells: str, wanted: str) -> None:
    text = BOXES + "3.png,cat,1,2,3,4\n"
    line = refused(lambda: boxes(root, text.replace("cat,1,2,9,7", cells)))
    assert wanted.replace("ROW", f"{root}/train.csv, row 2") in line


def test_shares_are_no_pixels(root: Path) -> None:
    text = "path,class,x1,y1,x2,y2\n1.png,a,0,0,0.5,1\n2.png,b,0.1,0.1,0.9,0.8\n"
    assert "boxes are in pixels, these are shares" in refused(lambda: boxes(root, text))


def test_refused_box_columns(root: Path) -> None:
    write(root, BOXES.replace("x2", "right"))
    line = refused(lambda: boxes(root))
    assert "no column x2" in line
    assert "it has path, class, x1, y1, right, y2" in line
    assert "type data.box=" in line
    assert boxes(root, box=["x1", "y1", "right", "y2"]).info.counts == (1, 1)
    assert "type data.label=" in refused(lambda: boxes(root, BOXES, label="kind"))
    assert "four columns" in refused(lambda: boxes(root, box=["x1"]), 2)


@pytest.mark.parametrize(
    "given",
    [
        Augmentations(batches=[HorizontalFlip(), PadCrop()]),
        Augmentations(batches=[Affine(degrees=5)]),
        Augmentations(images=[v2.ColorJitter(0.1), v2.RandomRotation(5)]),
        Augmentations(images=[v2.RandAugment()]),
        Augmentations(mixes=[v2.MixUp(num_classes=2)]),
        Augmentations(batches=[BatchTransform()]),  # of a user's own, that says nothing
    ],
)
def test_what_would_lose_the_boxes_is_refused(root: Path, given: Augmentations) -> None:
    source = boxes(root, BOXES)
    *_, last = [*given.images, *given.batches, *given.mixes]
    with pytest.raises(ConfigError, match=f"{type(last).__name__} does not say where"):
        source.train(8, given)


# Through the builder and the command


@pytest.mark.parametrize("name", ["csv", "csv_box", "shapes_labels", "shapes_box"])
def test_the_parts_take_a_step(name: str, tmp_path: Path) -> None:
    typed = [f"data={name}", "model=cnn", *write_data(name, tmp_path), "data.batch_size=8"]
    config = compose_config([*typed, "data.image_size=16"]).config
    parts = build_parts(config, device=torch.device("cpu"), ranks=Ranks())
    (batch,) = next(parts.train.epoch(0))
    pairs = parts.task.losses(parts.model, parts.transform(batch))
    assert all(torch.isfinite(total) for total, _ in pairs.values())
    assert parts.train.peek(4).ids.shape == (4,)


def parts_of(root: Path, *typed: str) -> Any:
    words = ["data=csv", "model=cnn", f"data.root={root}", "data.batch_size=8", "data.image_size=8"]
    return build_parts(
        compose_config([*words, *typed]).config, device=torch.device("cpu"), ranks=Ranks()
    )


def test_a_balanced_sampler(root: Path) -> None:
    """Of a single column without gaps; four of forty are of the class b."""
    write(root, many())
    parts = parts_of(root, "data.sampler=balanced", "data.val_csv=train.csv")
    drawn = [
        int(label)
        for epoch in range(8)
        for (batch,) in parts.train.epoch(epoch)
        for label in batch.labels[:, 0]
    ]
    assert len(drawn) == 320
    assert 120 < sum(drawn) < 200  # 160 +- 4 standard deviations; 32 without
    for text in (many().replace("1.png,a", "1.png,", 1), many("kind,b").replace(",0", ",1", 5)):
        write(root, text)
        with pytest.raises(ConfigError, match="samples of one label each"):
            parts_of(root, "data.sampler=balanced", "data.val_csv=train.csv")


def test_one_view_of_each(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"type eval\.views=one_crop"):
        parts_of(root, "eval.views=ten_crop", "data.val_csv=train.csv", "data.batch_size=2")


def test_a_refusal_through_the_command(root: Path) -> None:
    words = ["data=csv_box", "model=cnn", f"data.root={write(root, BOXES)}", "debug=smoke"]
    more = ["data.val_csv=train.csv", "augment=[flip,pad_crop]", f"hydra.run.dir={root}/run"]
    done = command(*words, *more, cwd=root)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "error[CONFIG]: PadCrop does not say where" in done.stderr.splitlines()[-1]
