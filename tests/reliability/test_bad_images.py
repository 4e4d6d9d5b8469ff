"""Folders of images with something wrong in them: refused before anything is trained, or trained
without, and never changed.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from harness import EVERY_STEP, FAULTY, Case, Process, Result, result
from PIL import Image

import cvtrain

NOBODY = 65534
BAD = r"error\[BAD-IMAGE\]: "
CLASSES = r"error\[CLASSES\]: "
LABELS = ("ants", "bees", "moths")


def draw(root: Path, *, train: int = 16, val: int = 4) -> Path:
    """JPEGs of three classes, each with a colour of its own."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(LABELS):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (20, 24, 3), dtype=np.uint8)
                pixels[..., label] += 130
                Image.fromarray(pixels).save(folder / f"{i:03}.jpg")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return draw(tmp_path / "photos")


def folder_case(folder: Path, root: Path, *, inputs: bool = True) -> Case:
    """Six steps an epoch, 12 in all."""
    return Case(
        folder,
        *("data=folder", f"data.root={root}", "data.image_size=16", "data.batch_size=8"),
        *("model=cnn", "model.widths=[8]", "optimizer.lr=0.02", "trainer.duration=2ep"),
        *("trainer.checkpoint_every=2st", *EVERY_STEP, *FAULTY),
        inputs=(root,) if inputs else (),
    )


def nothing_trained(case: Case, process: Process) -> None:
    assert not (case.run_dir / "metrics.jsonl").exists()
    assert not (case.run_dir / "checkpoints").exists()
    assert process.err.count("error[") == 1


def spoil(root: Path) -> dict[str, str]:
    """Four bad files, and a part of the reason for each."""
    photo = root / "train/ants/003.jpg"
    photo.write_bytes(photo.read_bytes()[:400])
    (root / "train/bees/empty.jpg").write_bytes(b"")
    (root / "train/bees/text.jpg").write_text("I am no photograph\n")
    (root / "train/moths/link.jpg").symlink_to("nowhere.jpg")
    return {
        "train/ants/003.jpg": "truncated",
        "train/bees/empty.jpg": "is empty, 0 bytes",
        "train/bees/text.jpg": "cannot identify image file",
        "train/moths/link.jpg": "a link to nothing",
    }


@pytest.mark.fault("D1")
def test_refused_before_the_first_step(tmp_path: Path, root: Path) -> None:
    bad = spoil(root)
    case = folder_case(tmp_path / "case", root)
    process = case.run(code=3, last=BAD + "4 of 51 images are bad: .*data.on_bad=skip")
    nothing_trained(case, process)
    for path, why in bad.items():
        reason = process.last_line.partition(f"{root}/{path} (")[2].partition(")")[0]
        assert why in reason.lower(), process.last_line


@pytest.mark.fault("D1")
def test_twenty_are_named(tmp_path: Path, root: Path) -> None:
    for i in range(25):
        (root / f"train/ants/bad{i:02}.jpg").write_bytes(b"")
    process = folder_case(tmp_path / "case", root).run(code=3, last=BAD + "25 of 73 images are bad")
    named = [f"bad{i:02}.jpg (is empty" in process.last_line for i in range(25)]
    assert named == [True] * 20 + [False] * 5
    assert "and 5 more" in process.last_line


@pytest.mark.fault("D1")
def test_skip(tmp_path: Path, root: Path) -> None:
    """The same result as without the file, which is named in the run directory."""
    bad = root / "train/bees/new\nline.jpg"
    bad.write_text("I am no photograph\n")
    case = folder_case(tmp_path / "case", root)
    process = case.run("data.on_bad=skip")
    assert "warning: 1 of 49 images are bad and left out; bad_images.txt names them" in process.err
    lines = (case.run_dir / "bad_images.txt").read_text().splitlines()
    shown = str(bad).replace("\n", r"\n")
    assert lines == [f"{shown}\tcannot identify image file"]
    clean = shutil.copytree(root, tmp_path / "clean/photos")
    (clean / bad.relative_to(root)).unlink()
    without = folder_case(tmp_path / "without", clean)
    without.run()
    assert result(case) == result(without)
    assert not (without.run_dir / "bad_images.txt").exists()


@pytest.mark.fault("D1")
def test_too_many_to_skip(tmp_path: Path, root: Path) -> None:
    spoil(root)
    case = folder_case(tmp_path / "case", root)
    last = BAD + "4 of 51 images are bad: .*more than 1% is too much to leave out"
    nothing_trained(case, case.run("data.on_bad=skip", code=3, last=last))


@pytest.mark.fault("D1")
def test_a_class_emptied_by_skipping(tmp_path: Path, root: Path) -> None:
    (root / "train/wasps").mkdir()
    (root / "train/wasps/1.jpg").write_bytes(b"")
    shutil.copytree(root / "val/bees", root / "val/wasps")
    case = folder_case(tmp_path / "case", root)
    last = BAD + "1 of 49 images are bad: .*class wasps would be empty"
    nothing_trained(case, case.run("data.on_bad=skip", code=3, last=last))


def fail_midway(case: Case, file: Path, content: bytes | None, *options: str) -> None:
    """In the fourth step the file is deleted, or has another content from then on."""
    process = case.start(*options, fault="losses 4 SIGSTOP")
    process.pause()
    file.unlink() if content is None else file.write_bytes(content)
    process.send(signal.SIGCONT)
    case.end(process, code=3, last=rf"{BAD}cannot be read: .*; {file}; ")
    assert process.err.count("error[") == 1
    assert 3 <= case.steps[-1] <= 12
    assert case.status()["last_checkpoint"]  # which `end` has seen to be whole


@pytest.mark.fault("D1")
@pytest.mark.parametrize(("split", "workers"), [("train", 0), ("val", 0), ("val", 2)])
def test_gone_in_the_middle_of_an_epoch(
    tmp_path: Path, root: Path, split: str, workers: int
) -> None:
    case = folder_case(tmp_path / "case", root, inputs=False)
    fail_midway(case, root / split / "bees/002.jpg", None, f"trainer.workers={workers}")


@pytest.mark.fault("D1")
def test_the_file_comes_back(
    tmp_path: Path, root: Path, uninterrupted: Callable[[Case], Result]
) -> None:
    """The run goes on from its last checkpoint, as if nothing had been."""
    case = folder_case(tmp_path / "case", root, inputs=False)
    file = root / "train/bees/002.jpg"
    content = file.read_bytes()
    fail_midway(case, file, content[: len(content) // 2], "trainer.workers=2")
    file.write_bytes(content)
    case.run("resume=auto")
    assert result(case) == uninterrupted(case)


# Classes and names


@pytest.mark.fault("D4")
@pytest.mark.parametrize(
    ("change", "line", "key"),
    [
        (
            "mkdir train/wasps val/wasps",
            "1 of 4 class folders hold no image: wasps",
            "data.allow_empty=true",
        ),
        (
            "mv val/moths val/flies",
            "the classes of train and val differ, only in train: moths; only in val: flies",
            "data.allow_other_classes=true",
        ),
        (
            "cp -r train/moths train/Moths; cp -r val/moths val/Moths",
            "classes that differ by case, space or Unicode form alone: 'Moths' and 'moths'",
            "",
        ),
        ("mv val/bees/000.jpg .; rm -r val/*; mv 000.jpg val", "no class folders in .*/val", ""),
    ],
)
def test_classes(tmp_path: Path, root: Path, change: str, line: str, key: str) -> None:
    assert os.system(f"cd {root} && {change}") == 0
    case = folder_case(tmp_path / "case", root)
    nothing_trained(case, case.run(code=3, last=f"{CLASSES}{line}.*{key}"))


@pytest.mark.fault("D5")
def test_odd_names(tmp_path: Path) -> None:
    """Trained on like others, by workers too, and by a root with an odd name."""
    root = draw(tmp_path / "my photos (1), 犬 & 'more'")
    names = ["a b", "new\nline", 'it\'s "so"', "-rf", "ü犬", os.fsdecode(b"caf\xe9"), "x" * 251]
    photos = sorted((root / "train/ants").iterdir())
    for photo, name in zip(photos, names, strict=False):
        photo.rename(photo.with_name(f"{name}.jpg"))
    (root / "train/ants/Thumbs.db").write_text("")
    (root / "train/bees/._x.jpg").write_text("")
    (root / "train/bees/.hidden.jpg").write_text("")
    case = folder_case(tmp_path / "case", root)
    case.overrides[1] = f"data.root={root}"
    process = case.run("trainer.duration=6st", "trainer.workers=2")
    assert "3 classes, 48 train, 12 val images" in process.err
    assert "ignored what is no image: 2 hidden, 1 .db" in process.err


@pytest.mark.fault("D6")
def test_links_in_a_circle(tmp_path: Path, root: Path) -> None:
    (root / "train/ants/up").symlink_to("..")
    (root / "train/bees/top").symlink_to(root)
    (root / "val/loop").symlink_to("../val")
    process = folder_case(tmp_path / "case", root).run("trainer.duration=1st")
    assert "3 classes, 48 train, 12 val images" in process.err


@pytest.fixture
def readable() -> Iterator[Path]:
    """A folder that everyone may enter; pytest's are private."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.fault("D6")
@pytest.mark.parametrize(
    ("place", "mode"),
    [("train/ants/003.jpg", 0o000), ("train/bees", 0o000), ("train/bees", 0o444)],
)
def test_not_readable(readable: Path, place: str, mode: int) -> None:
    """Never silently left out."""
    if os.getuid() == 0 and not all(
        folder.stat().st_mode & 0o001 for folder in Path(cvtrain.__file__).parents
    ):
        pytest.skip("another user cannot enter the folder that cvtrain is in")
    root = draw(readable / "photos")
    for path in (root, *root.rglob("*")):
        path.chmod(0o755)
    case = folder_case(readable / "case", root, inputs=False)
    case.folder.chmod(0o777)
    (root / place).chmod(mode)
    user = NOBODY if os.getuid() == 0 else None  # no permission counts for root
    process = case.run(user=user, code=3, last=BAD + ".*Permission denied")
    assert str(root / place) in process.last_line
    nothing_trained(case, process)
    (root / place).chmod(0o755)
