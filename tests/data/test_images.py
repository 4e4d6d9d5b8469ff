"""One image file to RGB: every mode and format as a real file, held against the pixels it was made
of; boxes against decoding everything; what is broken or too large.
"""

import io
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from tiny import PEAK
from torchvision.transforms.v2 import functional as F

from cvtrain.data.image_folder import ImageFolder
from cvtrain.data.images import BadImage, Header, probe, read_box, shown
from cvtrain.errors import DataError

LIMIT = 100_000_000
WIDE, HIGH = 48, 32
JPEG = 2  # levels that its compression may change a pixel by, on average; a wrong turn is 40
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def photo(width: int = WIDE, height: int = HIGH, *, noise: float = 4, seed: int = 0) -> np.ndarray:
    """uint8 `[H, W, 3]`: soft blobs under noise, in which no two directions are alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(width, height)
    image = np.stack([60 + 150 * x, 40 + 160 * y, 200 - 120 * x * y], -1)
    for _ in range(6):
        cx, cy, radius = rng.random(3) * [1, height / width, 0.2] + [0, 0, 0.1]
        blob = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / radius**2)
        image += blob[..., None] * rng.uniform(-70, 70, 3)
    return (image + rng.normal(0, noise, image.shape)).clip(0, 255).astype(np.uint8)


def whole(path: Path) -> np.ndarray:
    """uint8 `[H, W, 3]`, put together from boxes that are not resized."""
    header = probe(path, max_pixels=LIMIT)
    side = np.gcd(header.width, header.height)
    rows = [
        [
            read_box(path, header, (x, y, x + side, y + side), int(side)).numpy()
            for x in range(0, header.width, side)
        ]
        for y in range(0, header.height, side)
    ]
    return np.concatenate([np.concatenate(row, 1) for row in rows])


def error(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    assert found.shape == wanted.shape
    return np.abs(found.astype(int) - wanted)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png(
    rows: np.ndarray, *, bits: int, colour: int, extra: bytes = b"", late: bytes = b""
) -> bytes:
    """A PNG of raw rows uint8 `[H, bytes]`, as its specification puts it together."""
    height = len(rows)
    width = rows.shape[1] * 8 // bits // {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    header = np.array([width, height], ">u4").tobytes() + bytes([bits, colour, 0, 0, 0])
    filtered = np.concatenate([np.zeros((height, 1), np.uint8), rows], 1)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(filtered.tobytes(), 1))
        + late
        + chunk(b"IEND", b"")
    )


def chunk(name: bytes, data: bytes) -> bytes:
    length, check = (np.array(n, ">u4").tobytes() for n in (len(data), zlib.crc32(name + data)))
    return length + name + data + check


# Modes


RGB = photo()
GREY = RGB[..., 1]
ALPHA = np.tile(np.linspace(0, 255, WIDE).round().astype(np.uint8), (HIGH, 1))
SIXTEEN = (np.arange(HIGH * WIDE).reshape(HIGH, WIDE) * 42).astype(np.uint16)  # 0..64470
INDEX = (np.arange(HIGH * WIDE).reshape(HIGH, WIDE) // 7 % 4).astype(np.uint8)
PALETTE = np.array([[255, 0, 0], [0, 200, 0], [30, 60, 90], [0, 0, 0]], np.uint8)


def repeated(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, -1)


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return (colours * share + 255 * (1 - share)).round()


def palette_image(mode: str = "P") -> Image.Image:
    image = Image.fromarray(INDEX)
    image.putpalette(PALETTE.tobytes())
    if mode == "PA":
        image = image.convert("PA")
        image.putalpha(Image.fromarray(ALPHA))
    return image


def bytes_of(values: np.ndarray) -> np.ndarray:
    """16-bit values `[H, ...]` as rows of big-endian bytes."""
    return np.frombuffer(values.astype(">u2").tobytes(), np.uint8).reshape(len(values), -1)


MODES: dict[str, tuple[Callable[[], bytes], np.ndarray, int]] = {
    # What is written; what is seen; the largest difference of a pixel.
    "RGB png": (lambda: encoded(Image.fromarray(RGB), "PNG"), RGB, 0),
    "RGB bmp": (lambda: encoded(Image.fromarray(RGB), "BMP"), RGB, 0),
    "RGB ppm": (lambda: encoded(Image.fromarray(RGB), "PPM"), RGB, 0),
    "RGB tif": (lambda: encoded(Image.fromarray(RGB), "TIFF", compression="tiff_lzw"), RGB, 0),
    "RGB webp": (lambda: encoded(Image.fromarray(RGB), "WEBP", lossless=True), RGB, 0),
    "L png": (lambda: encoded(Image.fromarray(GREY), "PNG"), repeated(GREY), 0),
    "LA png": (
        lambda: encoded(Image.fromarray(np.stack([GREY, ALPHA], -1), "LA"), "PNG"),
        over_white(repeated(GREY), ALPHA),
        1,
    ),
    "RGBA png": (
        lambda: encoded(Image.fromarray(np.concatenate([RGB, ALPHA[..., None]], -1)), "PNG"),
        over_white(RGB, ALPHA),
        1,
    ),
    "RGBA webp": (
        lambda: encoded(
            Image.fromarray(np.concatenate([RGB, ALPHA[..., None]], -1)),
            *("WEBP",),
            lossless=True,
            exact=True,
        ),
        over_white(RGB, ALPHA),
        1,
    ),
    "P png": (lambda: encoded(palette_image(), "PNG"), PALETTE[INDEX], 0),
    "P png, a transparent colour": (
        lambda: encoded(palette_image(), "PNG", transparency=2),
        np.where((INDEX == 2)[..., None], 255, PALETTE[INDEX]),
        0,
    ),
    "P png, alpha for each colour": (
        lambda: encoded(palette_image(), "PNG", transparency=bytes([0, 128, 255, 64])),
        over_white(PALETTE[INDEX], np.array([0, 128, 255, 64])[INDEX]),
        1,
    ),
    "P gif, a transparent colour": (
        lambda: encoded(palette_image(), "GIF", transparency=1),
        np.where((INDEX == 1)[..., None], 255, PALETTE[INDEX]),
        0,
    ),
    "PA tif": (
        lambda: encoded(palette_image("PA"), "TIFF"),
        over_white(PALETTE[INDEX], ALPHA),
        1,
    ),
    "RGB png, a transparent colour": (
        lambda: encoded(Image.fromarray(PALETTE[INDEX]), "PNG", transparency=(30, 60, 90)),
        np.where((INDEX == 2)[..., None], 255, PALETTE[INDEX]),
        0,
    ),
    "1 png": (
        lambda: encoded(Image.fromarray(GREY > 120), "PNG"),
        repeated(np.where(GREY > 120, 255, 0)),
        0,
    ),
    "16-bit grey png": (
        lambda: png(bytes_of(SIXTEEN), bits=16, colour=0),
        repeated(SIXTEEN >> 8),
        1,
    ),
    "16-bit grey png, a transparent level": (
        lambda: png(bytes_of(SIXTEEN), bits=16, colour=0, extra=chunk(b"tRNS", b"\x00\x2a")),
        repeated(np.where(SIXTEEN == 42, 255, SIXTEEN >> 8)),
        1,
    ),
    "16-bit grey tif": (
        lambda: encoded(Image.fromarray(SIXTEEN), "TIFF"),
        repeated(SIXTEEN >> 8),
        1,
    ),
    "16-bit grey tif, big-endian": (
        lambda: encoded(Image.frombytes("I;16B", (WIDE, HIGH), bytes_of(SIXTEEN)), "TIFF"),
        repeated(SIXTEEN >> 8),
        1,
    ),
    "16-bit grey pgm": (
        lambda: b"P5\n%d %d\n65535\n" % (WIDE, HIGH) + bytes_of(SIXTEEN).tobytes(),
        repeated(SIXTEEN >> 8),
        1,
    ),
    "16-bit RGB png": (
        lambda: png(bytes_of(RGB.astype(np.uint16) * 256 + 99), bits=16, colour=2),
        RGB,
        1,
    ),
}


@pytest.mark.fault("D2")
@pytest.mark.parametrize("mode", MODES)
def test_mode(tmp_path: Path, mode: str) -> None:
    made, wanted, most = MODES[mode]
    path = tmp_path / f"image.{mode.split(',')[0].split()[-1]}"
    path.write_bytes(made())
    assert error(whole(path), wanted).max() <= most


@pytest.mark.fault("D2")
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("grey", [False, True])
def test_jpeg(tmp_path: Path, options: dict[str, bool], grey: bool) -> None:
    path = tmp_path / "image.jpg"
    image = Image.fromarray(GREY if grey else RGB)
    path.write_bytes(encoded(image, "JPEG", quality=98, subsampling=0, **options))
    assert probe(path, max_pixels=LIMIT) == Header(WIDE, HIGH, plain=True)
    assert error(whole(path), repeated(GREY) if grey else RGB).mean() < JPEG


def cmyk(kind: str) -> tuple[bytes, np.ndarray]:
    """A JPEG of four inks, and what is printed with them."""
    if kind == "CMYK":
        inks = np.concatenate([RGB, photo(seed=1)[..., :1] // 3], -1)
        printed = (255 - inks[..., :3].astype(int)) * (255 - inks[..., 3:]) / 255
        data = encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=98, subsampling=0)
        return data, printed.round()
    # The inks are the inverse of an RGB image, stored as its Y, Cb and Cr: Adobe's transform 2.
    # Adobe's levels are stored inverted, and Pillow inverts what it is given to store.
    planes = 255 - np.asarray(Image.fromarray(RGB).convert("YCbCr"))
    inks = np.concatenate([planes, np.zeros((HIGH, WIDE, 1), np.uint8)], -1)
    data = encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=98, subsampling=0)
    at = data.index(b"Adobe") + 11
    assert data[at] == 0
    return data[:at] + b"\x02" + data[at + 1 :], 255 - RGB.astype(int)


@pytest.mark.fault("D2")
@pytest.mark.parametrize("kind", ["CMYK", "YCCK"])
def test_jpeg_of_four_inks(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image.jpg"
    data, printed = cmyk(kind)
    path.write_bytes(data)
    assert error(whole(path), printed).mean() < JPEG


# Formats


UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    # EXIF 2.3, table of Orientation: where the stored row 0 and column 0 are.
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


def turned(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


@pytest.mark.fault("D2")
@pytest.mark.parametrize("turn", UPRIGHT)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation(tmp_path: Path, form: str, turn: int) -> None:
    """The header speaks of the upright image too: crops are drawn for it."""
    path = tmp_path / f"image.{form.lower()}"
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}
    data = encoded(Image.fromarray(RGB), form, exif=turned(turn), **options.get(form, {}))
    path.write_bytes(data)
    found = whole(path)
    assert error(found, UPRIGHT[turn](RGB)).mean() <= (JPEG if form == "JPEG" else 0)
    if form != "TIFF":  # Pillow turns TIFF by itself
        oracle = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        assert error(found, oracle).max() <= 2


@pytest.mark.fault("D2")
def test_orientation_behind_the_pixels(tmp_path: Path) -> None:
    """The specification lets a PNG's EXIF stand there, too."""
    path = tmp_path / "image.png"
    exif = chunk(b"eXIf", turned(6).tobytes().removeprefix(b"Exif\0\0"))
    path.write_bytes(png(RGB.reshape(HIGH, -1), bits=8, colour=2, late=exif))
    assert (whole(path) == UPRIGHT[6](RGB)).all()


@pytest.mark.fault("D2")
@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01"],
)
def test_broken_exif_is_no_broken_image(tmp_path: Path, exif: bytes) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded(Image.fromarray(RGB), "JPEG", quality=98, subsampling=0, exif=exif))
    assert error(whole(path), RGB).mean() < JPEG


@pytest.mark.fault("D2")
@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"image.{form.lower()}"
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    frames = [Image.new("RGB", (16, 16), colour) for colour in colours]
    options = {"lossless": True} if form == "WEBP" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as image:
        assert image.n_frames == 3
    assert (whole(path) == colours[0]).all()


@pytest.mark.fault("D2")
@pytest.mark.parametrize(("form", "suffix"), [("PNG", "jpg"), ("JPEG", "png"), ("GIF", "jpeg")])
def test_the_content_decides(tmp_path: Path, form: str, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    flat = np.full((HIGH, WIDE, 3), (200, 30, 30), np.uint8)
    path.write_bytes(encoded(Image.fromarray(flat), form))
    assert error(whole(path), flat).max() <= 2


def test_bytes_behind_the_end_of_a_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    data = encoded(Image.fromarray(RGB), "JPEG", quality=98, subsampling=0)
    path.write_bytes(data + b"maker's notes" * 50)
    assert probe(path, max_pixels=LIMIT).plain
    assert error(whole(path), RGB).mean() < JPEG


# What is broken


@pytest.mark.fault("D1")
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty, 0 bytes"),
        (b"hello, I am a text\n", "cannot identify image file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n", "is EPS"),
    ],
)
def test_no_image(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(BadImage, match=f"^{why}") as refused:
        probe(path, max_pixels=LIMIT)
    assert "<" not in str(refused.value)  # not Pillow's view of its own objects
    assert path.read_bytes() == content


@pytest.mark.fault("D1")
def test_nothing_there(tmp_path: Path) -> None:
    link, loop = tmp_path / "link.jpg", tmp_path / "loop.jpg"
    link.symlink_to("nowhere.jpg")
    loop.symlink_to(loop)
    for path, why in (
        (link, "link to nothing"),
        (loop, "Too many levels"),
        (tmp_path / "x", "not"),
    ):
        with pytest.raises(BadImage, match=why):
            probe(path, max_pixels=LIMIT)


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    """Opening it would wait for ever for someone to write."""
    path = tmp_path / "pipe.jpg"
    os.mkfifo(path)
    with pytest.raises(BadImage, match="is empty"):
        probe(path, max_pixels=LIMIT)


@pytest.mark.fault("D2")
def test_floating_point_pixels(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    Image.fromarray(RGB[..., 0] / np.float32(255)).save(path)
    with pytest.raises(BadImage, match="floating-point"):
        probe(path, max_pixels=LIMIT)


@pytest.mark.fault("D1")
@pytest.mark.parametrize(
    ("form", "options"),
    [
        *(("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {})),
        *(("BMP", {}), ("WEBP", {}), ("TIFF", {}), ("PPM", {})),
    ],
)
def test_cut_off(tmp_path: Path, form: str, options: dict[str, bool]) -> None:
    """Found by the scan, and what the scan lets pass can be read."""
    data = encoded(Image.fromarray(RGB), form, **options)
    path = tmp_path / "image"
    for share in np.linspace(0.01, 0.97, 25):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(BadImage):
            probe(path, max_pixels=LIMIT)
    for left in range(1, 12):
        path.write_bytes(data[:-left])
        try:
            header = probe(path, max_pixels=LIMIT)
        except BadImage:
            continue
        read_box(path, header, (0, 0, WIDE, HIGH), 16)
        read_box(path, header, (0, 0, WIDE, HIGH), HIGH)


@pytest.mark.fault("D1")
@pytest.mark.parametrize("size", [8, HIGH])  # decoded at a fraction by Pillow, and in full
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("change", ["cut off", "emptied", "deleted", "replaced by a small one"])
def test_changed_after_the_scan(tmp_path: Path, form: str, size: int, change: str) -> None:
    path = tmp_path / "image"
    data = encoded(Image.fromarray(RGB), form)
    path.write_bytes(data)
    header = probe(path, max_pixels=LIMIT)
    box = (0.0, 0.0, float(WIDE), float(HIGH))
    if change == "deleted":
        path.unlink()
    elif change == "replaced by a small one":
        path.write_bytes(encoded(Image.new("RGB", (1, 1), "red"), form))
        assert read_box(path, header, box, size).shape == (size, size, 3)
        return
    else:
        path.write_bytes(data[: len(data) // 2] if change == "cut off" else b"")
    with pytest.raises(DataError) as refused:
        read_box(path, header, box, size)
    assert (refused.value.name, refused.value.where) == ("BAD-IMAGE", str(path))
    assert "\n" not in refused.value.what
    assert ".cpp" not in refused.value.what


# Too large


def bomb(width: int, height: int) -> bytes:
    """A whole black PNG of 1 bit a pixel; a thousandth of what it unpacks to."""
    row = bytes(1 + (width + 7) // 8)
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(row * 100) for _ in range(height // 100)) + packer.flush()
    header = np.array([width, height], ">u4").tobytes() + bytes([1, 0, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def with_bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of plain images and two images that are too large."""
    root = tmp_path_factory.mktemp("bombs")
    for label in ("a", "b"):
        (root / label).mkdir()
        for i in range(8):
            Image.fromarray(RGB).save(root / label / f"{i}.png")
    (root / "a/wide.png").write_bytes(bomb(30_000, 30_000))
    (root / "b/long.png").write_bytes(bomb(12_000, 10_000))
    return root


@pytest.mark.fault("D3")
def test_too_large_by_the_header(with_bomb: Path) -> None:
    began = time.perf_counter()
    for name, pixels in (("a/wide.png", "30000x30000"), ("b/long.png", "12000x10000")):
        with pytest.raises(BadImage, match=f"has {pixels} pixels, more than .*={LIMIT}") as found:
            probe(with_bomb / name, max_pixels=LIMIT)
        assert found.value.name == "IMAGE-TOO-LARGE"
    assert time.perf_counter() - began < 0.2  # nothing was decoded
    assert probe(with_bomb / "b/long.png", max_pixels=120_000_000).width == 12_000


@pytest.mark.fault("D3")
def test_too_large_for_the_command(with_bomb: Path, tmp_path: Path) -> None:
    """One line, little memory, no time."""
    code = (
        "import atexit, re, runpy, sys\n"
        f"atexit.register(lambda: print({PEAK}))\n"
        "runpy.run_module('cvtrain', run_name='__main__', alter_sys=True)"
    )
    words = ["data=folder", f"data.root={with_bomb}", "model=cnn", "debug=smoke"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, f"hydra.run.dir={tmp_path}/run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    text = done.stderr
    assert done.returncode == 3, text
    last = text.splitlines()[-1]
    assert last.startswith("cvtrain: error[IMAGE-TOO-LARGE]: 2 of 18 images are bad: "), text
    assert "a/wide.png (has 30000x30000" in last
    assert "b/long.png (has 12000x10000" in last
    assert "Traceback" not in text
    assert int(done.stdout) < 1_000_000  # an interpreter with torch takes half of it


@pytest.mark.fault("D3")
def test_the_limit_is_a_key(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(8):
            Image.fromarray(RGB).save(tmp_path / label / f"{i}.png")
    pixels = WIDE * HIGH
    ImageFolder(root=str(tmp_path), max_pixels=pixels, **IMAGENET)
    with pytest.raises(DataError, match=r"more than data\.max_pixels=1535") as refused:
        ImageFolder(root=str(tmp_path), max_pixels=pixels - 1, **IMAGENET)
    assert (refused.value.name, refused.value.code) == ("IMAGE-TOO-LARGE", 3)


# Boxes


def decoded(path: Path, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """By Pillow in full, then cut out and resized by torchvision."""
    with Image.open(path) as image:
        rgb = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    left, top, right, bottom = box
    part = torch.from_numpy(rgb[top:bottom, left:right]).permute(2, 0, 1)
    return F.resize(part, [size, size], antialias=True).permute(1, 2, 0).numpy()


def random_boxes(width: int, height: int, count: int) -> list[tuple[int, int, int, int]]:
    """Some at the borders, some a pixel wide, and the whole image."""
    rng = np.random.default_rng(3)
    boxes = [(0, 0, width, height), (0, 0, 1, height), (width - 1, 0, width, 1)]
    for _ in range(count):
        left, right = np.sort(rng.choice(width + 1, 2, replace=False))
        top, bottom = np.sort(rng.choice(height + 1, 2, replace=False))
        boxes += [(left, top, right, bottom), (0, top, right, height)]
    return [tuple(int(side) for side in box) for box in boxes]  # type: ignore[misc]


@pytest.mark.parametrize("size", [8, 32, 90])  # smaller, and larger than the image
@pytest.mark.parametrize("turn", [1, 6])
def test_box_of_a_png(tmp_path: Path, turn: int, size: int) -> None:
    """As torchvision, to the level."""
    path = tmp_path / "image.png"
    Image.fromarray(photo(60, 41)).save(path, exif=turned(turn))
    header = probe(path, max_pixels=LIMIT)
    for box in random_boxes(header.width, header.height, 20):
        assert error(read_box(path, header, box, size).numpy(), decoded(path, box, size)).max() <= 1


@pytest.mark.parametrize(
    # As cameras do, what is turned has sides of whole blocks of 8.
    ("turn", "sides"),
    [(1, (512, 384)), (1, (507, 381)), (3, (512, 384)), (6, (512, 384))],
)
@pytest.mark.parametrize(("size", "most"), [(256, 0.5), (128, 1.5), (64, 1.5), (40, 2)])
def test_box_of_a_jpeg(
    tmp_path: Path, turn: int, sides: tuple[int, int], size: int, most: float
) -> None:
    """Reduced by 2, 4 or 8 before it is resized: the mean difference in levels stays small."""
    path = tmp_path / "image.jpg"
    Image.fromarray(photo(*sides, noise=8)).save(path, quality=92, exif=turned(turn))
    header = probe(path, max_pixels=LIMIT)
    boxes = [b for b in random_boxes(header.width, header.height, 12) if min_side(b) >= size]
    for box in boxes:
        found = read_box(path, header, box, size).numpy()
        assert error(found, decoded(path, box, size)).mean() < most, box


def min_side(box: tuple[int, int, int, int]) -> int:
    return min(box[2] - box[0], box[3] - box[1])


def test_thin_boxes_of_a_jpeg(tmp_path: Path) -> None:
    """Decoded in full: as torchvision, but for the decoder's rounding."""
    path = tmp_path / "image.jpg"
    Image.fromarray(photo(251, 190)).save(path, quality=92, subsampling=0)
    header = probe(path, max_pixels=LIMIT)
    for box in ((0, 0, 1, 190), (250, 0, 251, 190), (0, 189, 251, 190), (250, 189, 251, 190)):
        found = read_box(path, header, box, 24).numpy()
        assert error(found, decoded(path, box, 24)).max() <= 2


@pytest.mark.parametrize("turn", [1, 6])
def test_decodes_no_more_than_it_needs(tmp_path: Path, turn: int) -> None:
    """A box that becomes an eighth costs a fraction of the whole image, upright or not."""
    path = tmp_path / "image.jpg"
    Image.fromarray(photo(2400, 1800)).save(path, exif=turned(turn))
    header = probe(path, max_pixels=LIMIT)
    box = (0.0, 0.0, float(header.width), float(header.height))

    def seconds(size: int) -> float:
        times = []
        for _ in range(3):
            began = time.process_time()
            read_box(path, header, box, size)
            times.append(time.process_time() - began)
        return min(times)

    assert seconds(200) < 0.6 * seconds(1000)


def test_shown_on_one_line() -> None:
    name = os.fsdecode("a\nb\tc é 犬 '\"\\ \u2028".encode() + b"\xff")
    text = shown(name)
    assert text.isprintable()
    assert text == "a\\nb\\tc é 犬 '\"\\ \\u2028\\udcff"
