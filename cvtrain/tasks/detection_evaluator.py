"""What an evaluation of a detector keeps, counts and shows."""

from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from cvtrain.data.batch import DetectionBatch
from cvtrain.errors import ConfigError
from cvtrain.metrics.coco_map import CocoFigures, coco_map
from cvtrain.metrics.detection_mistakes import mistakes
from cvtrain.metrics.detection_pictures import (
    draw_categories,
    draw_curves,
    draw_detections,
    draw_mistakes,
    mosaic,
)
from cvtrain.metrics.detections import Detections, ImageDetections, encode_masks
from cvtrain.metrics.voc_map import voc_map
from cvtrain.tasks.base import Picture
from cvtrain.tasks.classification_evaluator import unique
from cvtrain.tasks.shown import as_rgb

TRUE = "lime"  # the colour of true boxes
SHOWN = 8  # images
CURVES = 20  # categories whose curves are kept
YEARS = {2007: 11, 2010: None}  # from when on Pascal VOC read the precision at so many points


class WithLosses(NamedTuple):
    """What is predicted of a batch, and the losses on it: name to (sum, count)."""

    found: list[dict[str, Tensor]]
    losses: dict[str, tuple[Tensor, Tensor]]


class Kept(NamedTuple):
    """Of one process."""

    images: dict[int, ImageDetections]
    losses: dict[str, tuple[float, float]]


class DetectionEvaluator:
    """Keeps every image's truth and detections: average precision is no sum over images."""

    def __init__(
        self, num_classes: int, *, voc: int | None = None, masks: bool | None = None
    ) -> None:
        self.names = [str(number) for number in range(num_classes)]
        self.voc, self.masks = voc, masks
        self.totals: dict[str, Tensor] = {}
        self.detections = Detections(masks=masks)
        self.coco: CocoFigures | None = None  # of boxes, once computed
        self.voc_categories: dict[str, float] = {}
        # Not among the totals, whose names every process has to know, also one without a batch.
        self.losses: dict[str, tuple[float, float]] = {}

    def update(
        self, predictions: list[dict[str, Tensor]] | WithLosses, batch: DetectionBatch
    ) -> None:
        """Predictions are in the pixels of the network's images, truths in those of the files."""
        if isinstance(predictions, WithLosses):
            predictions, losses = predictions
            self._add({name: (t.item(), n.item()) for name, (t, n) in losses.items()})
        numbers = batch.ids.tolist()
        for number, found, image, truth in zip(
            numbers, predictions, batch.images, batch.truths, strict=True
        ):
            self.detections.add(number, truth, self.in_file(found, image, truth))

    def _add(self, losses: dict[str, tuple[float, float]]) -> None:
        for name, (total, count) in losses.items():
            before = self.losses.get(name, (0.0, 0.0))
            self.losses[name] = (before[0] + total, before[1] + count)

    def in_file(
        self, found: dict[str, Tensor], image: Tensor, truth: dict[str, Any]
    ) -> dict[str, Any]:
        """The same detections in the pixels of the image's file. Raises ConfigError."""
        height, width = (int(side) for side in truth["size"])
        boxes = found["boxes"]
        across, down = width / image.shape[-1], height / image.shape[-2]
        there: dict[str, Any] = {
            **found,
            "boxes": boxes * boxes.new_tensor([across, down, across, down]),
        }
        both = "masks" in found and "rles" in truth
        if self.masks and not both:
            what = "the network finds no masks" if "rles" in truth else "the data give no masks"
            fix = "type task.masks=null to measure them where there are some"
            raise ConfigError(what, "task.masks=true", fix)
        if both and self.masks is not False:
            sharp = (resized(mask, height, width) > 0.5 for mask in found["masks"])
            there["rles"] = [code for mask in sharp for code in encode_masks(mask)]
        return there

    def compute(self) -> dict[str, float]:
        """Per cent; a figure without a true object (of its size) is left out, `mAP` is then 0."""
        self.coco = coco_map(self.detections, self.names)
        figures = {"mAP": 0.0, **self.coco.figures}
        if self.detections.masks:
            of_masks = coco_map(self.detections, self.names, iou_type="segm").figures
            figures |= {f"mask_{name}": value for name, value in of_masks.items()}
        if self.voc is not None:
            points = YEARS[self.voc]
            figures["voc_mAP"], of_each = voc_map(self.detections, self.names, points=points)
            self.voc_categories = of_each
        means = {name: total / count for name, (total, count) in self.losses.items() if count}
        return figures | means

    # What there is to show

    def kept(self) -> Kept:
        return Kept(self.detections.kept(), self.losses)

    def merge(self, kept: list[Kept]) -> None:
        self.detections.merge([of_one.images for of_one in kept])
        self.losses = {}
        for of_one in kept:
            self._add(of_one.losses)

    def report(self, source: Any) -> dict[str, Any]:
        """`per_category`: of each its average precision in per cent, None without true objects;
        with VOC's measure `voc_per_category`; of up to 20 categories `precision_recall`, by IoU the
        precision at every twentieth of recall, in 0 to 1.
        """
        rows = {"per_category": self.coco.categories if self.coco else {}}
        if self.voc is not None:
            rows["voc_per_category"] = self.voc_categories
        numbered = list(zip(self.names, unique(source.info), strict=True))
        report: dict[str, Any] = {
            key: {name: round(of[n], 4) if n in of else None for n, name in numbered}
            for key, of in rows.items()
        }
        if self.coco and len(numbered) <= CURVES:
            report["precision_recall"] = {
                iou: {
                    name: [round(p, 3) for p in column.tolist()] if column[0] >= 0 else None
                    for (_, name), column in zip(numbered, table[::5].T, strict=True)
                }
                for iou, table in (
                    ("0.5", self.coco.precision[0]),
                    ("0.75", self.coco.precision[5]),
                )
            }
        return report

    def categories(self, source: Any) -> dict[str, float]:
        """Average precision by the names that are shown; without those of no true object."""
        known = self.coco.categories if self.coco else {}
        names = zip(self.names, unique(source.info), strict=True)
        return {name: known[number] for number, name in names if number in known}

    def pictures(self, source: Any, split: str) -> dict[str, Picture]:
        """`detections` over the truth of some images, `precision_recall`, `categories`, and the
        worst mistakes: `false_detections`, `missed`."""
        names = source.info.shown

        def image_of(number: int) -> Picture | None:
            image = source.image_of(number, split)
            return None if image is None else as_rgb(image)

        some = list(self.detections.images)[:: max(1, len(self.detections) // SHOWN)][:SHOWN]
        read = {number: image_of(number) for number in some}
        drawn = [
            draw_detections(picture, self.detections.images[number], names)
            for number, picture in read.items()
            if picture is not None
        ]
        pictures = {"detections": mosaic(drawn, columns=4)} if drawn else {}
        if self.coco and self.coco.categories:
            pictures["precision_recall"] = draw_curves(self.coco.precision, names)
            pictures["categories"] = draw_categories(self.categories(source))
        false, missed = mistakes(self.detections)
        for name, found in (("false_detections", false), ("missed", missed)):
            if found:
                pictures[name] = draw_mistakes(found, image_of, names)
        return pictures


def resized(mask: Tensor, height: int, width: int) -> Tensor:
    """Probabilities `[1, H, W]` in another size, one mask at a time: a hundred are large."""
    size = (height, width)
    return F.interpolate(mask[None].float(), size, mode="bilinear", align_corners=False)[0]
