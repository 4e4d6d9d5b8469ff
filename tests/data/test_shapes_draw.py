"""The drawn data set: reproducible, whole or absent, and told apart by outline alone."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cvtrain.data import shapes_draw
from cvtrain.data.shapes_draw import CLASSES, draw_folder, draw_mask, draw_scene, place_shape

TRAIN, VAL = 100, 50  # images per class, enough that chance is well told from a leak
CHANCE_LIMIT = 0.20  # accuracy; chance is 0.125 with a standard deviation of 0.017
SPAWN = multiprocessing.get_context("spawn")

Features = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "shapes"
    draw_folder(root, train_per_class=TRAIN, val_per_class=VAL)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def pixels(root: Path, split: str) -> NDArray[np.float64]:
    """All images of a split, (class, image, height, width, 3)."""
    folders = [sorted((root / split / name).iterdir()) for name in CLASSES]
    return np.array([[np.asarray(Image.open(path)) for path in paths] for paths in folders]) / 255


def test_it_has_the_promised_files(folder: Path) -> None:
    assert list(CLASSES) == sorted(set(CLASSES))
    assert len(CLASSES) == 8
    assert set(contents(folder)) == {
        f"{split}/{name}/{number:04d}.jpg"
        for split, count in (("train", TRAIN), ("val", VAL))
        for name in CLASSES
        for number in range(count)
    }


@pytest.mark.parametrize("size", [32, 64, 96])
def test_every_image_is_a_square_rgb_jpeg(tmp_path: Path, size: int) -> None:
    draw_folder(tmp_path / "shapes", size=size, train_per_class=1, val_per_class=1)
    for path in (tmp_path / "shapes").rglob("*.jpg"):
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (size, size))


def test_an_image_depends_on_its_own_seed_split_class_and_number_only(
    folder: Path, tmp_path: Path
) -> None:
    draw_folder(tmp_path / "few", train_per_class=3, val_per_class=2)
    few, many = contents(tmp_path / "few"), contents(folder)
    assert few == {name: many[name] for name in few}
    assert len(set(many.values())) == len(many)
    draw_folder(tmp_path / "other", train_per_class=3, val_per_class=2, seed=1)
    assert not set(contents(tmp_path / "other").values()) & set(many.values())


@pytest.mark.parametrize("name", CLASSES)
def test_shapes_lie_within_the_image(name: str) -> None:
    rng, size = np.random.default_rng(0), 64
    centres = (np.arange(size) + 0.5) / size
    for _ in range(50):
        shape = place_shape(rng, name)
        mask = draw_mask(shape, size)
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert border.max() == 0
        assert mask.max() == 1
        distance = np.hypot(centres - shape.x, centres[:, None] - shape.y)[mask > 0].max()
        assert distance == pytest.approx(shape.radius, abs=1.5 / size)
        assert 0.30 <= 2 * shape.radius <= 0.85


@pytest.mark.parametrize("name", CLASSES)
def test_the_image_shows_the_shape_where_the_mask_says(name: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        image, [mask] = draw_scene(rng, 64, [place_shape(rng, name)])
        grey = image @ np.array([0.299, 0.587, 0.114]) / 255
        assert abs(grey[mask == 1].mean() - grey[mask == 0].mean()) > 0.25
        assert grey[mask == 1].std() < 0.03


def mean_colour(images: NDArray[np.float64]) -> NDArray[np.float64]:
    return images.mean(axis=(2, 3))


def border_colour_and_texture(images: NDArray[np.float64]) -> NDArray[np.float64]:
    rows = np.concatenate([images[:, :, :2], images[:, :, -2:]], axis=2)
    return np.concatenate([rows.mean(axis=(2, 3)), rows.std(axis=(2, 3))], axis=-1)


def nearest_centroid_accuracy(train: NDArray[np.float64], val: NDArray[np.float64]) -> float:
    """Of features (class, image, feature), every feature brought to the same scale."""
    centroids = train.mean(axis=1) / train.std(axis=(0, 1))
    distances = np.linalg.norm(
        (val / train.std(axis=(0, 1)))[:, :, None] - centroids, axis=-1
    )  # (class, image, centroid)
    return float((distances.argmin(axis=-1) == np.arange(len(val))[:, None]).mean())


@pytest.mark.parametrize("features", [mean_colour, border_colour_and_texture])
def test_colour_and_texture_do_not_tell_the_class(folder: Path, features: Features) -> None:
    train, val = pixels(folder, "train"), pixels(folder, "val")
    assert nearest_centroid_accuracy(features(train), features(val)) < CHANCE_LIMIT
    # The check has power: it does find a background that is slightly lighter class by class.
    leak = np.linspace(0, 0.4, len(CLASSES))[:, None, None, None, None]
    leaky = nearest_centroid_accuracy(features(train + leak), features(val + leak))
    assert leaky > CHANCE_LIMIT


def test_a_draw_that_is_interrupted_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([draw_scene, draw_scene])
    monkeypatch.setattr(shapes_draw, "draw_scene", lambda *scene: next(answers)(*scene))
    with pytest.raises(RuntimeError, match="StopIteration"):  # what a signal would raise
        draw_folder(tmp_path / "deep" / "shapes")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_draw_leaves_no_data_set(tmp_path: Path) -> None:
    process = SPAWN.Process(
        target=draw_folder, args=(tmp_path / "shapes",), kwargs={"train_per_class": 9999}
    )
    process.start()
    deadline = time.monotonic() + 60
    while not any(tmp_path.rglob("*.jpg")):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())


def test_two_processes_may_draw_at_once(tmp_path: Path) -> None:
    root, counts = tmp_path / "shapes", {"train_per_class": 20, "val_per_class": 2}
    processes = [SPAWN.Process(target=draw_folder, args=(root,), kwargs=counts) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(contents(root)) == len(CLASSES) * 22
    assert list(tmp_path.iterdir()) == [root]


def test_whoever_finishes_first_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "shapes"

    def overtaken(*scene: Any) -> Any:
        monkeypatch.undo()
        draw_folder(root, train_per_class=2, val_per_class=1, seed=1)
        return draw_scene(*scene)

    monkeypatch.setattr(shapes_draw, "draw_scene", overtaken)
    draw_folder(root, train_per_class=1, val_per_class=1)
    assert len(contents(root)) == len(CLASSES) * 3
    assert list(tmp_path.iterdir()) == [root]


def test_another_folder_is_not_taken_for_the_data_set(tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").touch()
    before = contents(tmp_path)
    with pytest.raises(OSError, match="not empty"):
        draw_folder(tmp_path, train_per_class=1, val_per_class=1)
    assert contents(tmp_path) == before
