"""One image file to uint8 RGB, by stated rules, decoding no more than what is asked for.

The rules: the first frame of an animation; EXIF orientation applied; grey repeated; CMYK as Pillow
converts it; transparency over white; 16 bits cut to their upper 8; the content decides on the
format, not the suffix.

JPEGs, the bulk of every folder, are decoded by simplejpeg (libjpeg-turbo: the pixels of Pillow to
the bit, without its overhead) and resized as uint8 by torch: the fastest of what was measured
(scripts/bench_data.py); torchvision's own decoders are to be removed. Where the box is at least
twice as large as what is made of it, Pillow's `draft` decodes a half, a quarter or an eighth.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from simplejpeg import decode_jpeg
from torch import Tensor
from torch.nn import functional as F

from cvtrain.errors import DataError

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
ORIENTATION = 0x0112
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
# How a whole file ends, and how many of its last bytes are looked at.
ENDS = {"JPEG": (b"\xff\xd9", 2), "PNG": (b"IEND\xaeB`\x82", 65536)}


@dataclass(frozen=True)
class Header:
    """What a file says of itself before its pixels are decoded."""

    width: int  # pixels, of the upright image
    height: int
    plain: bool  # an upright JPEG in grey or YCbCr
    size: int = field(default=0, compare=False)  # of the file, bytes


class BadImage(Exception):
    """Why a file is no image to train on; `name` is the error's."""

    def __init__(self, why: str, name: str = "BAD-IMAGE") -> None:
        super().__init__(why)
        self.name = name


@contextmanager
def _pillow() -> Iterator[None]:
    """Pillow without its own limit of pixels, ours holds; with its complaints as BadImage."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except BadImage:
        raise
    except FileNotFoundError as error:
        raise BadImage("is not there, or is a link to nothing") from error
    except Exception as error:  # over broken bytes, its decoders raise what happens to come up
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadImage(reason.partition(" <")[0]) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def probe(path: Path, *, max_pixels: int) -> Header:
    """Read the header and look at the end of the file. Raises BadImage.

    Whoever changes what comes out of it counts up the KIND of scan_cache.py.
    """
    with _pillow():
        size = path.stat().st_size
        if not size:  # of a pipe too, which would never end
            raise BadImage("is empty, 0 bytes")
        with path.open("rb") as file, Image.open(file) as image:
            if image.format not in FORMATS:
                raise BadImage(f"is {image.format}, which is not read")
            if image.width * image.height > max_pixels:
                raise BadImage(
                    f"has {image.width}x{image.height} pixels, more than data.max_pixels="
                    f"{max_pixels}",
                    "IMAGE-TOO-LARGE",
                )
            if image.mode == "F":
                raise BadImage("has floating-point pixels, which have no agreed range")
            turn = image.getexif().get(ORIENTATION, 1)
            width, height = image.size[::-1] if turn in (5, 6, 7, 8) else image.size
            plain = (
                image.format == "JPEG" and image.mode in ("RGB", "L") and turn not in range(2, 9)
            )
            end, length = ENDS.get(image.format, (b"", 0))
            file.seek(-min(length, size), io.SEEK_END)
            tail = file.read()
            # Cut off, or something stands behind it; or it says only late how it is turned.
            if length == 0 or not tail.endswith(end) or b"eXIf" in tail:
                file.seek(0)
                width, height = ImageOps.exif_transpose(Image.open(file)).size
    return Header(width, height, plain, size)


def read_box(path: Path, header: Header, box: Box, size: int) -> Tensor:
    """uint8 `[size, size, 3]` of a box of the upright image. Raises DataError (BAD-IMAGE)."""
    return read_boxes(path, header, [box], size)[0]


def read_boxes(path: Path, header: Header, boxes: list[Box], size: int) -> list[Tensor]:
    """Several boxes of an image that is decoded once, as finely as the smallest needs."""
    factor = min(int(min(box[2] - box[0], box[3] - box[1]) / size) for box in boxes)
    pixels = _read(path, header, factor)
    return [resized(pixels, box, header, size, size) for box in boxes]


def read_image(path: Path, header: Header, height: int, width: int) -> Tensor:
    """uint8 `[height, width, 3]` of the whole upright image. Raises DataError (BAD-IMAGE)."""
    pixels = _read(path, header, int(min(header.height / height, header.width / width)))
    return resized(pixels, (0, 0, header.width, header.height), header, height, width)


def _read(path: Path, header: Header, factor: int) -> Tensor:
    """uint8 `[H, W, 3]`, of a JPEG reduced by no more than `factor`."""
    try:
        if header.plain and factor < 2:
            return _decode(path)
        return _decode_scaled(path, factor, header.plain)
    except (BadImage, RuntimeError, OSError) as error:
        why = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        why = re.sub(r"^\w+, \S+:\d+, ", "", why)  # where in torchvision's source
        raise DataError(
            f"cannot be read: {why}",
            shown(path),
            "replace the file, or type data.on_bad=skip to leave such files out",
            name="BAD-IMAGE",
        ) from error


def _decode(path: Path) -> Tensor:
    """All of a plain JPEG. One that is not quite right is Pillow's to judge, as in the scan."""
    try:
        return torch.from_numpy(decode_jpeg(path.read_bytes(), "RGB"))
    except ValueError:
        return _decode_scaled(path, 1, True)


def _decode_scaled(path: Path, factor: int, plain: bool) -> Tensor:
    """By Pillow; of a JPEG, reduced by the power of two, at most 8, that leaves enough pixels."""
    with _pillow(), Image.open(path) as image:
        if factor > 1:
            reduce = max(power for power in (2, 4, 8) if power <= factor)
            image.draft(None, (image.width // reduce or 1, image.height // reduce or 1))
        rgb = image.convert("RGB") if plain else upright_rgb(image)
        return torch.from_numpy(np.array(rgb))


def resized(pixels: Tensor, box: Box, header: Header, height: int, width: int) -> Tensor:
    """The box of `[H, W, 3]`, which may be smaller than the image of the header, at that size.

    Bilinear and antialiased, as torchvision and Pillow have it, on the nearest whole pixels.
    """
    # How far it was reduced; the last of its pixels may stand for fewer.
    across, down = -(-header.width // pixels.shape[1]), -(-header.height // pixels.shape[0])
    left = min(round(box[0] / across), pixels.shape[1] - 1)
    top = min(round(box[1] / down), pixels.shape[0] - 1)
    right, bottom = max(round(box[2] / across), left + 1), max(round(box[3] / down), top + 1)
    part = pixels[top:bottom, left:right]
    if part.shape[:2] == (height, width):
        return part.contiguous()
    image = part.permute(2, 0, 1)[None]
    if not image.is_contiguous(memory_format=torch.channels_last):
        image = image.contiguous(memory_format=torch.channels_last)
    done = F.interpolate(image, (height, width), mode="bilinear", antialias=True)
    return done[0].permute(1, 2, 0).contiguous()


def upright_rgb(image: Image.Image) -> Image.Image:
    """The rules at the top of this file, for an opened image of any mode."""
    image = ImageOps.exif_transpose(image)
    if image.mode in SIXTEEN_BITS:
        values = np.asarray(image).astype(np.int64)
        upper = (values >> 8).clip(0, 255)
        upper[values == image.info.get("transparency", -1)] = 255
        return Image.fromarray(upper.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    return image.convert("RGB")


def shown(path: Path | str) -> str:
    """A path on one line: what cannot be printed is escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in str(path)
    )
