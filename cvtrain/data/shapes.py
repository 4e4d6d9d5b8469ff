"""`shapes`, the embedded default: an image folder that is drawn on first use, then read as any."""

import logging
from pathlib import Path

from cvtrain.data.image_folder import ImageFolder
from cvtrain.data.shapes_draw import CLASSES, VERSION, draw_folder
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
        if not folder.is_dir():
            _draw(folder, size, train_per_class, val_per_class)
        # The images are drawn at the size at which they are seen: nothing is cut off.
        self.native_size = size
        super().__init__(root=str(folder), mean=mean, std=std, crop_fraction=1.0)


def _draw(folder: Path, size: int, train: int, val: int) -> None:
    log.info("drawing %d images into %s", len(CLASSES) * (train + val), folder)
    try:
        draw_folder(folder, size=size, train_per_class=train, val_per_class=val)
    except OSError as error:
        raise MachineError(
            f"cannot draw the data set: {error.strerror}",
            str(folder.absolute()),
            "type data.root=FOLDER for one that is writable",
            name="NOT-WRITABLE",
        ) from error
