"""From a source to what a network takes, picture by picture, and back to files of results."""

import logging
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from cvtrain.data.images import BadImage, probe, read_image, shown
from cvtrain.errors import CvtrainError, DataError
from cvtrain.files import whole
from cvtrain.media.draw import draw
from cvtrain.media.record import Recording
from cvtrain.media.results import Results
from cvtrain.media.sources import Item, Kind, Names
from cvtrain.media.video import Frame, Video

log = logging.getLogger(__name__)

QUALITY = 92  # of a JPEG
LISTED = 20  # bad files that an error names


class Shot(NamedTuple):
    """A picture or a frame on its way."""

    item: Item
    seen: Any  # what the network is given; its `size` is the original's height and width
    frame: Frame | None = None
    clip: Video | None = None  # that the frame is of


class Preparing(Protocol):
    def read(self, path: Path) -> Any: ...

    def of(self, pixels: np.ndarray) -> Any: ...


class Bad:
    """Files, or parts of them, that could not be read; each is said at once."""

    def __init__(self) -> None:
        self.errors: list[CvtrainError] = []

    def add(self, error: CvtrainError) -> None:
        self.errors.append(error)
        log.warning("warning: %s: %s", error.where, " ".join(error.what.splitlines()))

    def error(self, items: int, done: int, out: Path) -> CvtrainError:
        """For the end of all: of so many files or streams, so many results are there."""
        if len(self.errors) == 1 and not done:
            return self.errors[0]
        named = ", ".join(f"{error.where} ({error.what})" for error in self.errors[:LISTED])
        more = f" and {len(self.errors) - LISTED} more" if len(self.errors) > LISTED else ""
        what = f"{len(self.errors)} of {items} could not be read, or not wholly: {named}{more}"
        kept = f"{done} results are in {shown(out)}" if done else ""
        return DataError(what, kept, "mend or remove them", name=self.errors[0].name)


def shots(items: list[Item], inputs: Preparing, bad: Bad) -> Generator[Shot, None, None]:
    """All that can be read, in order. Raises MachineError where a stream does not answer."""
    for item in items:
        try:
            if item.kind is Kind.picture:
                yield Shot(item, inputs.read(Path(item.address)))
            else:
                clip = Video(item)
                for frame in clip:
                    yield Shot(item, inputs.of(frame.pixels), frame, clip)
                if clip.flaw:
                    bad.add(DataError(clip.flaw, shown(item.name), name="BAD-VIDEO"))
        except DataError as error:
            bad.add(error)


class Writer:
    """Called with each shot and what was told of it, in order: draws, and writes both."""

    def __init__(
        self, out: Path, kind: str, bad: Bad, *, drawn: bool, kept: bool, least: float
    ) -> None:
        self.out, self.kind, self.bad, self.least = out, kind, bad, least
        self.drawn, self.kept = drawn, kept  # into a file, for a window
        self.names = Names()
        self.results: Results | None = None  # once there are some: an earlier file is not emptied
        self.recording: Recording | None = None
        self.clip: Video | None = None
        self.latest: np.ndarray | None = None  # the last that was drawn, for a window
        self.written = 0
        self.file = ""  # the last one drawn into

    def __call__(self, work: tuple[Shot, dict[str, Any]]) -> None:
        shot, told = work
        height, width = shot.seen.size
        record: dict[str, Any] = {"source": shot.item.name, "width": width, "height": height}
        if shot.frame:
            record |= {"frame": shot.frame.number, "time": round(float(shot.frame.time), 6)}
        self.results = self.results or Results(self.out, self.kind)
        try:
            if self.drawn or self.kept:
                self._draw(shot, told)
            if self.drawn:
                record["drawn"] = self.file
        except DataError as error:  # only the pixels that the network saw could be read
            self.bad.add(error)
        self.results.write(record | told)
        self.written += 1

    def _draw(self, shot: Shot, told: dict[str, Any]) -> None:
        of_video = shot.frame is not None
        pixels = shot.frame.pixels if shot.frame else whole_picture(shot)
        picture = draw(pixels, told, least=self.least, over=of_video)
        self.latest = picture if self.kept else None
        if self.drawn and shot.frame and shot.clip:
            self._recording(shot.item, shot.clip).add(picture, shot.frame.time)
        elif self.drawn:
            self.file = self.names(shot.item.label, ".jpg")
            with whole(self.out / self.file, key="out") as temporary:
                Image.fromarray(picture).save(temporary, format="JPEG", quality=QUALITY)

    def _recording(self, item: Item, clip: Video) -> Recording:
        if self.recording is None or self.clip is not clip:
            self._end_recording()
            self.file, self.clip = self.names(item.label, ".mp4"), clip
            self.recording = Recording(self.out / self.file, base=clip.base, rate=clip.rate)
        return self.recording

    def _end_recording(self) -> None:
        recording, self.recording = self.recording, None
        if recording:
            recording.close()

    def close(self) -> None:
        """What is written so far is whole then."""
        try:
            self._end_recording()
        finally:
            if self.results:
                self.results.close()


def whole_picture(shot: Shot) -> np.ndarray:
    """uint8 `[H, W, 3]`: decoded anew, for a batch of large ones would not fit into memory."""
    height, width = shot.seen.size
    path = Path(shot.item.address)
    try:
        header = probe(path, max_pixels=height * width)
    except BadImage as error:
        raise DataError(str(error), shown(path), name=error.name) from error
    return read_image(path, header, height, width).numpy()
