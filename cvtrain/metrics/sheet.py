"""A sheet of small pictures with a caption below each, in pixels."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL, GAP, LINE = 144, 12, 16  # pixels: a picture's side, between pictures, a line of text
TILE, INK = (224, 224, 224), (32, 32, 32)


def readable(text: str) -> str:
    """On one line, without what cannot be drawn or encoded."""
    whole = text.encode("utf-8", "replace").decode()
    return " ".join("".join(c if c.isprintable() else " " for c in whole).split())


def shorten(text: str, length: int) -> str:
    """At most `length` characters: the middle goes, for names often differ at both ends."""
    if len(text) <= length:
        return text
    kept = max(length - 1, 1)
    return f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"


def sheet(
    pictures: list[np.ndarray | None], captions: list[list[str]], *, columns: int
) -> np.ndarray:
    """Pictures uint8 `[H, W, 3]` of any size and lines of text for each, as one `[H, W, 3]`.

    A missing picture is a grey tile. Small ones are enlarged by whole numbers, pixel by pixel.
    """
    lines = max((len(caption) for caption in captions), default=0)
    width, height = CELL + GAP, CELL + LINE * lines + GAP
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    draw, font = ImageDraw.Draw(canvas), _font()
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = GAP + number % columns * width, GAP + number // columns * height
        if picture is None:
            canvas.paste(TILE, (left, top, left + CELL, top + CELL))
        else:
            fitted = _fitted(picture)
            spare = (CELL - fitted.width) // 2, (CELL - fitted.height) // 2
            canvas.paste(fitted, (left + spare[0], top + spare[1]))
        for line, text in enumerate(caption):
            short = _fit(readable(text), font)
            middle = left + (CELL - font.getlength(short)) / 2
            draw.text((middle, top + CELL + 3 + LINE * line), short, INK, font)
    return np.array(canvas)


def fits(text: str) -> bool:
    """Whether a line is no wider than a picture."""
    return _font().getlength(readable(text)) <= CELL


def _font() -> ImageFont.FreeTypeFont:
    import matplotlib  # brings a font with more letters than Pillow's own

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(file), 12)


def _fit(text: str, font: ImageFont.FreeTypeFont) -> str:
    short, length = text, len(text)
    while font.getlength(short) > CELL and length > 1:
        length -= 1
        short = shorten(text, length)
    return short


def _fitted(picture: np.ndarray) -> Image.Image:
    image = Image.fromarray(picture)
    scale = CELL / max(image.size)
    if scale >= 2:
        return image.resize(
            (image.width * int(scale), image.height * int(scale)), Image.Resampling.NEAREST
        )
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)
