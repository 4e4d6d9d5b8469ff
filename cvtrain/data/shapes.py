"""`shapes`, the embedded default: an image folder that is drawn on first use, then read as any."""

import logging
from pathlib import Path
from typing import Any

from cvtrain.data.batch import DataInfo
from cvtrain.data.image_folder import ImageFolder
from cvtrain.data.shapes_draw import CLASSES, VERSION, draw_folder
from cvtrain.data.source import Source
from cvtrain.errors import MachineError

log = logging.getLogger(__name__)


class Shapes(Source):
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
        self.mean, self.std, self.size = mean, std, size
        # Named by what is drawn, so that other settings never meet these images.
        self.folder = Path(root) / f"v{VERSION}-{size}px-{train_per_class}-{val_per_class}"
        if not self.folder.is_dir():
            self._draw(train_per_class, val_per_class)
        train = ImageFolder(self.folder / "train", size=size)
        self._files = train.files
        self.info = DataInfo(
            name="shapes",
            classes=tuple(train.classes),
            channels=3,
            image_size=size,
            fingerprint=train.fingerprint(),
        )

    def _draw(self, train_per_class: int, val_per_class: int) -> None:
        count = len(CLASSES) * (train_per_class + val_per_class)
        log.info("drawing %d images into %s", count, self.folder)
        try:
            draw_folder(
                self.folder,
                size=self.size,
                train_per_class=train_per_class,
                val_per_class=val_per_class,
            )
        except OSError as error:
            raise MachineError(
                f"cannot draw the data set: {error.strerror}",
                str(self.folder.absolute()),
                "type data.root=FOLDER for one that is writable",
                name="NOT-WRITABLE",
            ) from error

    def train(self, augment: list[Any]) -> ImageFolder:
        return ImageFolder(self.folder / "train", size=self.size, augment=augment)

    def val(self) -> ImageFolder:
        return ImageFolder(self.folder / "val", size=self.size)

    def name_of(self, index: int) -> str:
        return str(self._files[index][0])
