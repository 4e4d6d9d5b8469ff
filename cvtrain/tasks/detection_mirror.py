"""An image seen twice, as it is and mirrored: what is found in both is that of one image.

What both have found stays once: of two of a class whose IoU is above IOU, the surer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms

IOU = 0.5
MOST = 100  # detections an image, as many as COCO's figures read


def mirrored_boxes(boxes: Tensor, width: int) -> Tensor:
    """Boxes `[n, 4]` of an image of so many pixels across, in its mirror image."""
    left, top, right, bottom = boxes.unbind(1)
    return torch.stack([width - right, top, width - left, bottom], dim=1)


def mirrored_back(found: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """What was found in the mirror image, where it is in the image itself; masks, too."""
    back = {**found, "boxes": mirrored_boxes(found["boxes"], width)}
    return back | {"masks": found["masks"].flip(-1)} if "masks" in found else back


def merged(runs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One image's detections of several runs as those of one, the surest first."""
    together = {name: torch.cat([run[name] for run in runs]) for name in runs[0]}
    kept = batched_nms(together["boxes"], together["scores"], together["labels"], IOU)[:MOST]
    return {name: values[kept] for name, values in together.items()}
