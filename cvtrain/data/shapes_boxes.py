"""`shapes_boxes`: any number of shapes in an image, drawn on first use, then read as COCO is."""

from pathlib import Path

from cvtrain.data.coco import Coco
from cvtrain.data.shapes import drawn
from cvtrain.data.shapes_boxes_draw import VERSION, draw_instances
from cvtrain.data.shapes_draw import CLASSES


class ShapesBoxes(Coco):
    """`root/v1-<size>px-<train>-<val>`, a tree as COCO's, drawn if it is not there."""

    classes = CLASSES  # known before anything is drawn

    def __init__(
        self,
        *,
        root: str,
        size: int,
        train: int,
        val: int,
        mean: list[float],
        std: list[float],
        long_side: int | None = None,
        square: int | None = None,
        min_box: float = 1.0,
        masks: bool = False,
        proposals: str | None = None,
        proposals_count: int = 2000,
        proposals_min: int = 8,
    ) -> None:
        # Named by what is drawn, so that other settings never meet these images.
        folder = Path(root) / f"v{VERSION}-{size}px-{train}-{val}"
        drawn(folder, train + val, lambda: draw_instances(folder, size=size, train=train, val=val))
        self.native_size = size
        super().__init__(
            root=str(folder),
            mean=mean,
            std=std,
            long_side=long_side,
            square=square,
            min_box=min_box,
            masks=masks,
            proposals=proposals,
            proposals_count=proposals_count,
            proposals_min=proposals_min,
        )
