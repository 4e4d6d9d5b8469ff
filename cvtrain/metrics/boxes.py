"""Boxes as shares of an image's width and height: codes, overlap, drawing."""

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou
from torchvision.utils import draw_bounding_boxes


def encode(boxes: Tensor) -> Tensor:
    """Left, top, right, bottom `[N, 4]` to centre x, centre y, width, height."""
    return box_convert(boxes, "xyxy", "cxcywh")


def decode(codes: Tensor) -> Tensor:
    """The way back for what a network gives: clipped to the image, never inside out, finite."""
    # An infinite box would end the process inside torchvision.
    centres, sizes = codes.nan_to_num(0.0, 0.0, 0.0).split(2, dim=1)
    return box_convert(torch.cat([centres, sizes.clamp(min=0)], 1), "cxcywh", "xyxy").clamp(0, 1)


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union `[N]` of boxes `[N, 4]`, pair by pair; 0 where both are empty."""
    return box_iou(first, second).diagonal().nan_to_num(0.0)


def draw_boxes(picture: np.ndarray, boxes: list[list[float]], colours: list[str]) -> np.ndarray:
    """Frames on a copy of a picture uint8 `[H, W, 3]`."""
    height, width = picture.shape[:2]
    last = torch.tensor([width - 1, height - 1, width - 1, height - 1])
    image = torch.from_numpy(picture.copy()).permute(2, 0, 1)
    corners = (torch.tensor(boxes) * last).round()
    line = max(1, round(max(width, height) / 100))  # pixels
    return draw_bounding_boxes(image, corners, colors=colours, width=line).permute(1, 2, 0).numpy()
