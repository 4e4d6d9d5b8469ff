"""Video files, cameras and streams, frame by frame, by PyAV (FFmpeg's libraries): an extra."""

import platform
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cvtrain.data.images import shown
from cvtrain.errors import ConfigError, DataError, MachineError
from cvtrain.media.sources import Item, Kind

LATE = Fraction(1, 2)  # seconds: a video that ends so much before its end breaks off
TIMEOUT = 10.0  # seconds for a stream to open, and for each read
CAMERAS = {  # by system: FFmpeg's format, and the address of camera number N
    "Linux": ("v4l2", "/dev/video{}"),
    "Darwin": ("avfoundation", "{}"),
    "Windows": ("dshow", "video={}"),
}


class Frame(NamedTuple):
    pixels: np.ndarray  # uint8 [H, W, 3]
    number: int  # from 0 on
    time: Fraction  # seconds since the first one


def library() -> Any:
    """PyAV. Raises ConfigError where it is not installed."""
    try:
        import av
    except ImportError as error:
        what = "video needs av" if error.name == "av" else f"av: {error}"
        raise ConfigError(what, "source", 'type pip install "cvtrain[video]"') from error
    av.logging.set_level(None)  # FFmpeg's own lines: what went wrong is said once, at the end
    return av


class Video:
    """An opened one: iterate over its frames, then see its `flaw`.

    Raises DataError (BAD-VIDEO: what is no video, or of a codec that is not there) and MachineError
    (STREAM: nothing answers).
    """

    def __init__(self, item: Item, *, timeout: float = TIMEOUT) -> None:
        self.item, self.av = item, library()
        self.flaw = ""  # why frames are missing, once all are read
        try:
            self.container = self._open(timeout)
        except (self.av.FFmpegError, OSError) as error:
            raise self._fault("cannot be opened", error) from error
        streams = self.container.streams.video
        if not streams or streams[0].codec_context is None:
            self.container.close()
            what = "has a codec that is not there" if streams else "has no video in it"
            raise DataError(
                what, shown(item.name), "type source= for another one", name="BAD-VIDEO"
            )
        self.stream = streams[0]
        if item.kind is Kind.video:
            self.stream.thread_type = "AUTO"
        self.rate = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
        self.base = self.stream.time_base or 1 / self.rate
        # As the file has them; 0 where it does not say.
        self.count, self._ends = self.stream.frames, (self.stream.duration or 0) * self.base

    def _open(self, timeout: float) -> Any:
        address = str(self.item.address)
        if address.isdigit() and self.item.kind is Kind.live:
            kind, place = CAMERAS.get(platform.system(), CAMERAS["Linux"])
            return self.av.open(place.format(address), format=kind, timeout=timeout)
        if isinstance(self.item.address, Path):  # never taken for an address, whatever its name
            return self.av.open(f"file:{address}")
        options = {"rtsp_transport": "tcp"} if address.startswith("rtsp") else {}
        return self.av.open(address, options=options, timeout=timeout)

    def __iter__(self) -> Iterator[Frame]:
        first: Fraction | None = None
        time, number, packets, bad = Fraction(0), 0, 0, 0
        with self.container:
            for packet in self._packets():
                packets += packet.size > 0
                try:
                    frames = packet.decode()
                except self.av.FFmpegError as error:
                    if isinstance(error, self.av.DecoderNotFoundError):
                        raise self._fault("cannot be read", error) from error
                    bad, frames = bad + 1, []
                for frame in frames:
                    bad += frame.is_corrupt
                    now = time if frame.pts is None else frame.pts * (frame.time_base or self.base)
                    first = now if first is None else first
                    yield Frame(_upright(frame), number, now - first)
                    time, number = now + 1 / self.rate, number + 1
        if bad:
            self.flaw = f"{bad} of its {max(self.count, packets)} frames are damaged"
        elif packets < self.count and time - (first or 0) < self._ends - LATE:
            self.flaw = f"it breaks off after {number} of {self.count} frames"
        if not number:
            raise DataError("no frame can be read", shown(self.item.name), "", name="BAD-VIDEO")

    def _packets(self) -> Iterator[Any]:
        try:
            yield from self.container.demux(self.stream)
        except (self.av.FFmpegError, OSError) as error:
            raise self._fault("breaks off", error) from error

    def _fault(self, what: str, error: Exception) -> DataError | MachineError:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(self.item.address, Path):
            fix = "type source= for another one, or convert it: ffmpeg -i IN OUT.mp4"
            return DataError(f"{what}: {reason}", shown(self.item.name), fix, name="BAD-VIDEO")
        fix = "look whether a player opens it, and at the network"
        return MachineError(f"{what}: {reason}", shown(self.item.name), fix, name="STREAM")


def _upright(frame: Any) -> np.ndarray:
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4  # counterclockwise, as phones write it
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
