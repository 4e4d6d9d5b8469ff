"""Draws the `shapes` data sets: one geometric shape per image over a textured background.

The first is an ordinary image folder, `ROOT/{train,val}/CLASS/NNNN.jpg`.  Only the outline tells
the classes apart: size, place, rotation, colours and texture are drawn alike for all of them.  The
others are `ROOT/{train,val}/NNNN.jpg` with a table each, `ROOT/{train,val}.csv`, of several labels
or of a class and a box.

`draw_scene` renders any number of placed shapes and returns their masks with the image.
"""

import csv
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

FloatArray = NDArray[np.float64]

VERSION = 1  # of the pictures: another one never meets images that this one drew
_OVERSAMPLING = 4  # masks are drawn this much larger, then averaged down: smooth edges
_RADIUS = (0.22, 0.42)  # of the circumscribed circle, as a fraction of the image side
# The same in four steps, each nearly half as large again, of shapes that fill three fifths of their
# circle or more: what is larger in extent is so in area, too.
_LEVELS = ((0.115, 0.125), (0.18, 0.195), (0.285, 0.305), (0.445, 0.465))
_LEVELLED = ("circle", "cross", "hexagon", "ring", "square")
_MARGIN = 0.02  # kept free along the image border, as a fraction of the image side
_TEXTURE = 0.12  # largest deviation of the background from its own mean, intensities being 0..1
_CONTRAST = 0.4  # least difference in lightness between a shape and the background's mean
_NOISE = 0.02  # standard deviation of the noise of every pixel
_LIGHTNESS = np.array([0.299, 0.587, 0.114])  # of R, G, B (ITU-R BT.601, as in JPEG)


def _ellipse(n: int, height: float = 1.0) -> FloatArray:
    """`n` corners (n, 2) evenly around the unit circle, flattened to `height`."""
    turn = 2 * np.pi * np.arange(n) / n
    return np.stack([np.cos(turn), height * np.sin(turn)], axis=1)


def _star(points: int, inner: float) -> FloatArray:
    """A star (2 * points, 2) whose notches lie at radius `inner`."""
    corners = _ellipse(2 * points)
    corners[1::2] *= inner
    return corners


def _cross(width: float) -> FloatArray:
    """An upright cross (12, 2) with arms 2 * `width` wide."""
    length = np.sqrt(1 - width**2)
    arm = np.array([[length, -width], [length, width], [width, width]])
    quarter_turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([arm @ np.linalg.matrix_power(quarter_turn, k) for k in range(4)])


# Every shape reaches exactly the unit circle: an outline, then the holes in it.
_OUTLINES: dict[str, tuple[FloatArray, ...]] = {
    "circle": (_ellipse(64),),
    "cross": (_cross(0.3),),
    "diamond": (_ellipse(4, height=0.35),),
    "hexagon": (_ellipse(6),),
    "ring": (_ellipse(64), 0.6 * _ellipse(64)),
    "square": (_ellipse(4),),
    "star": (_star(5, inner=0.45),),
    "triangle": (_ellipse(3),),
}
CLASSES: tuple[str, ...] = tuple(sorted(_OUTLINES))


@dataclass(frozen=True)
class PlacedShape:
    """A shape and where it lies; lengths are fractions of the image side."""

    name: str  # one of CLASSES
    x: float  # of the centre, from the left
    y: float  # of the centre, from the top
    radius: float  # of the circumscribed circle
    angle: float  # radians


def place_shape(rng: Generator, name: str, reach: tuple[float, float] = _RADIUS) -> PlacedShape:
    """A shape of random size (a radius within `reach`), rotation and place, wholly inside."""
    radius = rng.uniform(*reach)
    x, y = rng.uniform(radius + _MARGIN, 1 - radius - _MARGIN, size=2)
    return PlacedShape(name, x, y, radius, angle=rng.uniform(0, 2 * np.pi))


def outlines(shape: PlacedShape) -> list[FloatArray]:
    """Its corners (n, 2) as fractions of the image side, then those of the holes in it."""
    cos, sin = np.cos(shape.angle), np.sin(shape.angle)
    turned = np.array([[cos, sin], [-sin, cos]])
    return [(shape.x, shape.y) + shape.radius * o @ turned for o in _OUTLINES[shape.name]]


def draw_mask(shape: PlacedShape, size: int) -> FloatArray:
    """The fraction (size, size) of every pixel that `shape` covers, 0 to 1."""
    fine = size * _OVERSAMPLING
    canvas = Image.new("L", (fine, fine))
    pen = ImageDraw.Draw(canvas)
    for n, corners in enumerate(outlines(shape)):
        # Pillow counts from the centre of the first pixel, the fractions from its corner.
        pen.polygon((corners * fine - 0.5).ravel().tolist(), fill=0 if n else 255)
    return np.asarray(canvas.reduce(_OVERSAMPLING), dtype=np.float64) / 255


def draw_scene(
    rng: Generator, size: int, shapes: Sequence[PlacedShape]
) -> tuple[NDArray[np.uint8], list[FloatArray]]:
    """Paints `shapes` in random colours, later ones over earlier ones, on a random background.

    Returns the RGB image (size, size, 3) and for each shape its whole mask as from `draw_mask`.
    """
    ground = _colour(rng)
    tint = rng.uniform(-_TEXTURE, _TEXTURE, size=3)
    image = ground + _texture(rng, size)[..., None] * tint
    masks = [draw_mask(shape, size) for shape in shapes]
    for mask in masks:
        image += mask[..., None] * (_contrasting_colour(rng, ground) - image)
    image += rng.normal(scale=_NOISE, size=image.shape)
    return (image.clip(0, 1) * 255).round().astype(np.uint8), masks


def _colour(rng: Generator) -> FloatArray:
    """A random colour (3,) in 0..1 of random saturation, from grey to vivid."""
    colour = rng.random(3)
    return colour + rng.random() * (colour.mean() - colour)


def _contrasting_colour(rng: Generator, ground: FloatArray) -> FloatArray:
    """A random colour (3,) that stands out in lightness from the colour `ground`."""
    while True:
        colour = _colour(rng)
        if abs((colour - ground) @ _LIGHTNESS) >= _CONTRAST:
            return colour


def _texture(rng: Generator, size: int) -> FloatArray:
    """A random blend (size, size) of a gradient, stripes and smooth noise, within -1..1."""
    angles = rng.uniform(0, 2 * np.pi, size=2)
    axis = np.linspace(-1, 1, size)
    gradient, across = (
        (axis * np.cos(angle) + axis[:, None] * np.sin(angle)) / np.sqrt(2) for angle in angles
    )
    stripes = np.sin(np.pi * rng.uniform(2, 16) * across + rng.uniform(0, 2 * np.pi))
    cells = int(rng.integers(3, 17))
    grid = Image.fromarray(rng.uniform(-1, 1, size=(cells, cells)).astype(np.float32))
    clouds = np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC)).clip(-1, 1)
    # A concentration below one: mostly one of the three rules, sometimes they mix.
    share = rng.dirichlet([0.5, 0.5, 0.5])
    return share[0] * gradient + share[1] * stripes + share[2] * clouds


def draw_folder(
    root: Path,
    *,
    size: int = 64,
    train_per_class: int = 250,
    val_per_class: int = 50,
    seed: int = 0,
) -> None:
    """Writes the data set, images of `size` x `size` pixels, as the new directory `root`.

    `root` appears whole or not at all.  If another process has drawn it in the meantime, that one
    is kept.  `seed` is not negative.

    Raises OSError if `root` cannot be written or is something other than a data set.
    """
    with appearing(root) as draft:
        for split, count in (("train", train_per_class), ("val", val_per_class)):
            for name in CLASSES:
                folder = draft / split / name
                folder.mkdir(parents=True)
                for number, image in enumerate(_images(size, seed, split, name, count)):
                    image.save(folder / f"{number:04d}.jpg", quality=90)


@contextmanager
def appearing(root: Path) -> Iterator[Path]:
    """A folder to draw in, which then becomes `root` at once, unless there is a data set by now."""
    # Beside the first folder that is to be made, so that nothing is left of a draw that ends early.
    place = next(folder for folder in root.absolute().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=place) as scratch:
        # One level down, since the scratch directory itself is readable by its owner only.
        draft = Path(scratch) / root.name
        yield draft
        root.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.rename(root)
        except OSError:
            if not any((root / name).is_dir() for name in ("val", "annotations")):
                raise


def _images(size: int, seed: int, split: str, name: str, count: int) -> Iterator[Image.Image]:
    """The images of one class; each has its own generator, so none depends on the others."""
    for number in range(count):
        rng = np.random.default_rng([seed, number, *f"{split}/{name}".encode()])
        yield Image.fromarray(draw_scene(rng, size, [place_shape(rng, name)])[0])


# Tables: a picture and the cells that follow its path

Sample = tuple[NDArray[np.uint8], list[object]]


def _labelled(rng: Generator, number: int, size: int) -> Sample:
    """Whether a shape is there, and its size; every fifth image is ground alone."""
    level = number % 5 - 1
    if level < 0:
        return draw_scene(rng, size, [])[0], [0, ""]
    shape = place_shape(rng, str(rng.choice(_LEVELLED)), _LEVELS[level])
    return draw_scene(rng, size, [shape])[0], [1, level]


def _boxed(rng: Generator, number: int, size: int) -> Sample:
    """The class, and the pixels that the shape touches: left, top, right, bottom."""
    name = CLASSES[number % len(CLASSES)]
    image, [mask] = draw_scene(rng, size, [place_shape(rng, name)])
    across, down = (np.flatnonzero(mask.any(axis)).tolist() for axis in (0, 1))
    return image, [name, across[0], down[0], across[-1] + 1, down[-1] + 1]


TABLES: dict[str, tuple[tuple[str, ...], Callable[[Generator, int, int], Sample]]] = {
    "labels": (("path", "main", "level"), _labelled),
    "box": (("path", "class", "x1", "y1", "x2", "y2"), _boxed),
}


def draw_table(root: Path, *, kind: str, size: int, train: int, val: int, seed: int = 0) -> None:
    """Writes the data set `kind` of TABLES, of so many images, as `draw_folder` does."""
    columns, sample = TABLES[kind]
    with appearing(root) as draft:
        for split, count in (("train", train), ("val", val)):
            (draft / split).mkdir(parents=True)
            with (draft / f"{split}.csv").open("w", newline="") as file:
                rows = csv.writer(file, lineterminator="\n")
                rows.writerow(columns)
                for number in range(count):
                    rng = np.random.default_rng([seed, number, *f"{split}/{kind}".encode()])
                    image, cells = sample(rng, number, size)
                    path = f"{split}/{number:04d}.jpg"
                    Image.fromarray(image).save(draft / path, quality=90)
                    rows.writerow([path, *cells])
