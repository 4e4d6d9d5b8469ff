"""Video to a file: H.264 in mp4, every frame at the time that it has in its source.

What is there so far can be played even if the process is killed: it comes in fragments, which the
end joins.
"""

from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cvtrain.files import writing
from cvtrain.media.video import library

ENCODERS = ("libx264", "mpeg4")  # the first that is there
OPTIONS = {"libx264": {"preset": "ultrafast", "crf": "23"}, "mpeg4": {"qscale": "4"}}
COARSEST = Fraction(1, 60_000)  # seconds: what mpeg4 can tell apart
KEYFRAMES = 60  # frames from one to the next at most: where a player can start, and a fragment does
BT709 = 1  # how colours are stored


class Recording:
    """`add` pictures of one size, then `close`. Both raise MachineError (no space, ...)."""

    def __init__(self, path: Path, *, base: Fraction, rate: Fraction) -> None:
        self.path, self.av = path, library()
        self.encoder = next(name for name in ENCODERS if name in self.av.codecs_available)
        self.base = base if self.encoder == "libx264" else max(base, COARSEST)
        self.rate, self.last = rate, -1
        self.size = 0, 0  # height and width of a picture
        options = {"movflags": "+hybrid_fragmented"}
        self.container = self.av.open(str(path), "w", format="mp4", options=options)

    def _begin(self, height: int, width: int) -> None:
        self.size = height, width
        options = {**OPTIONS[self.encoder], "g": str(KEYFRAMES)}
        stream = self.container.add_stream(self.encoder, rate=self.rate, options=options)
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"  # what every player takes; of even sides
        stream.time_base = stream.codec_context.time_base = self.base
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        self.stream: Any = stream
        with writing(self.path, key="out"):
            self.container.start_encoding()

    def add(self, picture: np.ndarray, time: Fraction) -> None:
        """uint8 `[H, W, 3]`, at so many seconds: no two frames are at the same."""
        if self.last < 0:
            self._begin(*picture.shape[:2])
        if picture.shape[:2] != self.size:  # a stream may change its mind
            picture = np.array(Image.fromarray(picture).resize(self.size[::-1]))
        odd = [(0, side % 2) for side in self.size]
        even = np.pad(picture, (*odd, (0, 0)), "edge") if any(map(any, odd)) else picture
        frame = self.av.VideoFrame.from_ndarray(even, format="rgb24")
        # The size stays: how colours are averaged is all that is interpolated.
        frame = frame.reformat(
            format="yuv420p", dst_colorspace="ITU709", interpolation="FAST_BILINEAR"
        )
        self.last = max(round(time / self.base), self.last + 1)
        frame.pts, frame.time_base = self.last, self.base
        self._write(frame)

    def _write(self, frame: Any) -> None:
        with writing(self.path, key="out"):
            self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        """The end of the file, whatever came before."""
        try:
            if self.last >= 0:
                self._write(None)
            with writing(self.path, key="out"):
                self.container.close()
        finally:
            with suppress(Exception):
                self.container.close()
