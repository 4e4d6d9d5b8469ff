"""`shapes`, the embedded data: files that are drawn on first use, then read as any."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from cvtrain.data.csv import CsvImages
from cvtrain.data.csv_boxes import CsvBoxes
from cvtrain.data.image_folder import ImageFolder
from cvtrain.data.shapes_draw import CLASSES, VERSION, draw_folder, draw_table
from cvtrain.errors import MachineError

log = logging.getLogger(__name__)


class Shapes(ImageFolder):
    """`root/v1-<size>px-<train>-<val>/{train,val}/<class>/*.jpg`, drawn if it is not there."""

    def __init__(
        self,
        *,
        root: str,
        size: int,
        train_per_class: int,
        val_per_class: int,
        mean: list[float],
        std: list[float],
    ) -> None:
        # Named by what is drawn, so that other settings never meet these images.
        folder = Path(root) / f"v{VERSION}-{size}px-{train_per_class}-{val_per_class}"
        drawn(
            folder,
            len(CLASSES) * (train_per_class + val_per_class),
            lambda: draw_folder(
                folder, size=size, train_per_class=train_per_class, val_per_class=val_per_class
            ),
        )
        # The images are drawn at the size at which they are seen: nothing is cut off.
        self.native_size = size
        super().__init__(root=str(folder), mean=mean, std=std, crop_fraction=1.0)


class ShapesLabels(CsvImages):
    """Is a shape there (`main`), and how large is it (`level`)? Drawn as `Shapes` is."""

    # Known before anything is drawn.
    drawn: ClassVar = {"main": ("0", "1"), "level": ("0", "1", "2", "3")}
    classes = tuple(drawn)

    def __init__(
        self, *, root: str, size: int, train: int, val: int, mean: list[float], std: list[float]
    ) -> None:
        self.native_size = size
        folder = _table(Path(root), "labels", size, train, val)
        super().__init__(root=str(folder), mean=mean, std=std, crop_fraction=1.0)


class ShapesBox(CsvBoxes):
    """Which shape, and where: a tight box around it. Drawn as `Shapes` is."""

    def __init__(
        self, *, root: str, size: int, train: int, val: int, mean: list[float], std: list[float]
    ) -> None:
        self.native_size = size
        folder = _table(Path(root), "box", size, train, val)
        super().__init__(root=str(folder), mean=mean, std=std, crop_fraction=1.0)


def _table(root: Path, kind: str, size: int, train: int, val: int) -> Path:
    folder = root / f"v{VERSION}-{size}px-{train}-{val}"
    drawn(
        folder,
        train + val,
        lambda: draw_table(folder, kind=kind, size=size, train=train, val=val),
    )
    return folder


def drawn(folder: Path, images: int, draw: Callable[[], None]) -> None:
    """Draw the folder if it is not there. Raises MachineError (NOT-WRITABLE)."""
    if folder.is_dir():
        return
    log.info("drawing %d images into %s", images, folder)
    try:
        draw()
    except OSError as error:
        raise MachineError(
            f"cannot draw the data set: {error.strerror}",
            str(folder.absolute()),
            "type data.root=FOLDER for one that is writable",
            name="NOT-WRITABLE",
        ) from error
