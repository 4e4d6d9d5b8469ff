"""What is unusual about an image file and yet can be read: seldom meant, and good to know."""

from pathlib import Path
from typing import Any

from PIL import Image
from simplejpeg import decode_jpeg

from cvtrain.data.images import ORIENTATION, SIXTEEN_BITS

TURNS = {
    2: "mirrored",
    3: "turned by 180 degrees",
    4: "put upside down and mirrored",
    5: "turned by 90 degrees and mirrored",
    6: "turned by 90 degrees",
    7: "turned by 270 degrees and mirrored",
    8: "turned by 270 degrees",
}
SUFFIX_OF = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), ("JPEG", "MPO")),
    **dict.fromkeys((".tif", ".tiff"), ("TIFF",)),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), ("PPM",)),
    **{".png": ("PNG",), ".gif": ("GIF",), ".bmp": ("BMP",), ".webp": ("WEBP",)},
}
TINY, LONG = 16, 5  # pixels of the short side; times as long as high


def oddities(path: Path) -> list[tuple[str, str]]:
    """Kind and details of each, of a file whose first frame can be read."""
    try:
        with Image.open(path) as image:
            found = [*_of_pixels(image), *_of_file(image, path)]
            width, height = image.size
    except Exception as error:  # over broken frames, decoders raise what happens to come up
        return [("damaged", str(error) or type(error).__name__)]
    if min(width, height) < TINY:
        found.append(("tiny", f"{width}x{height} pixels"))
    if max(width, height) >= LONG * min(width, height):
        found.append(("extreme aspect", f"{width}x{height} pixels"))
    return found


def damage(path: Path) -> list[tuple[str, str]]:
    """Of a plain JPEG that decoders mend as best they can: grey or shifted blocks."""
    try:
        decode_jpeg(path.read_bytes(), "GRAY", min_height=TINY, min_width=TINY)
    except ValueError as error:
        return [("damaged", str(error))]
    return []


def _of_pixels(image: Image.Image) -> list[tuple[str, str]]:
    found = []
    if image.mode in SIXTEEN_BITS or ";16" in _raw_mode(image):
        found.append(("16 bits", "the upper 8 are used"))
    if image.mode in ("CMYK", "YCCK", "LAB", "HSV"):
        found.append((image.mode, "colours of a printer, which are converted roughly"))
    if image.mode in ("P", "PA"):
        found.append(("palette", f"{len(image.getpalette() or ()) // 3} colours at most"))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        found.append(("transparent", "laid over white"))
    if image.mode == "1":
        found.append(("black and white", "1 bit a pixel"))
    return found


def _of_file(image: Image.Image, path: Path) -> list[tuple[str, str]]:
    found = []
    turn = image.getexif().get(ORIENTATION, 1)
    if turn in TURNS:
        what = f"orientation {turn}: {TURNS[turn]} when it is read"
        found.append(("turned by EXIF", what))
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        found.append(("animated", f"{frames} frames, of which the first is used"))
    expected = SUFFIX_OF.get(path.suffix.lower())
    if expected and image.format not in expected:
        found.append(("another suffix", f"is {image.format}, not {path.suffix}"))
    return found


def _raw_mode(image: Image.Image) -> str:
    """How its pixels lie in the file, as Pillow calls it."""
    tiles: Any = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)
