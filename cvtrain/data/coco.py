"""COCO (Lin et al. 2014), and any data set in its format: an instances json for each split."""

from typing import Any

from cvtrain.data.coco_json import Instances, read_instances
from cvtrain.data.detection import DetectionSource
from cvtrain.data.images import shown
from cvtrain.data.objects import Mistakes
from cvtrain.errors import DataError


class Coco(DetectionSource):
    """Classes are the categories of the training json, in the order of their ids.

    Those of the validation json are joined to them by name. Raises DataError: COCO, NO-DATA,
    BAD-IMAGE, IMAGE-TOO-LARGE. With `masks` there is one to every box, in targets and truths.
    """

    def __init__(
        self,
        *,
        train_json: str = "annotations/instances_train2017.json",
        val_json: str = "annotations/instances_val2017.json",
        train_dir: str = "train2017",
        val_dir: str = "val2017",
        masks: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.masks = masks
        train = self._read(train_json)
        val = self._read(val_json, train.classes)
        for split, said, folder in (("train", train, train_dir), ("val", val, val_dir)):
            self._find(split, said, folder)
        self._describe(train.classes)

    def _read(self, name: str, classes: tuple[str, ...] | None = None) -> Instances:
        file = self.root / name
        return read_instances(
            file, classes=classes, on_bad_boxes=self.on_bad_boxes, masks=self.masks
        )

    def _find(self, split: str, said: Instances, name: str) -> None:
        folder = self.root / name
        if not folder.is_dir():
            raise DataError(
                "no folder of images",
                shown(folder.absolute()),
                f"type data.{split}_dir=NAME for the one that {shown(said.file.name)} speaks of",
                name="NO-DATA",
            )
        mistakes = Mistakes(said.file, "COCO", self.on_bad_boxes)
        places = [f"images[{number}]" for number in range(len(said.names))]
        files = [folder / file for file in said.names]
        found = self._look(files, mistakes, [f"{place}.file_name" for place in places])
        for number, header in zip(found.labels, found.headers, strict=True):
            here, (height, width) = (header.height, header.width), said.sizes[number].tolist()
            if here != (height, width):
                turned = ", turned by its EXIF" if here == (width, height) else ""
                what = f"has {header.width}x{header.height} pixels{turned}, not {width}x{height}"
                mistakes.add(f"{places[number]} {shown(said.names[number])}", what)
        mistakes.refuse()
        self._keep(split, found, said.objects, said.ids)
