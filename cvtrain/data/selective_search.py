"""Selective search (Uijlings et al. 2013) in its fast mode, as R-CNN takes it: that of OpenCV.

An image of 500x375 pixels, as VOC has them, takes some 0.7 s of one core.

Only the wheels with contrib in their names have it, and only one wheel of OpenCV may be installed:
they overwrite each other's files.
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cvtrain.data.images import Header, read_image, resized
from cvtrain.errors import ConfigError

LARGEST = 500  # pixels of the long side: a larger image is searched at that size
FIX = "type pip install 'cvtrain[proposals]', or data.proposals=grid"


def load_opencv() -> Any:
    """cv2, of one thread. Raises ConfigError (NO-OPENCV) where it is not installed."""
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError as error:
        what = f"selective search needs OpenCV: {error}"
        raise ConfigError(what, "data.proposals", FIX, name="NO-OPENCV") from error
    if not hasattr(getattr(cv2, "ximgproc", None), "segmentation"):
        raise ConfigError(
            "selective search needs OpenCV with its contrib modules, and only one wheel of OpenCV "
            "may be installed",
            "data.proposals",
            f"remove the one that is (pip uninstall opencv-python opencv-python-headless), {FIX}",
            name="NO-OPENCV",
        )
    cv2.setNumThreads(1)
    return cv2


def selective_search(
    cv2: Any, file: Path, header: Header, *, count: int, smallest: int
) -> NDArray[np.int64]:
    """`[P, 4]`: left, top, right, bottom in pixels of the file. Raises DataError (BAD-IMAGE)."""
    width, height = within(header.width, header.height).tolist()
    pixels, size = read_image(file, header, height, width), (header.height, header.width)
    return searched(cv2, pixels, size, count=count, smallest=smallest)


def within(width: int, height: int) -> NDArray[np.int64]:
    """Width and height of an image when it is searched."""
    size = np.array([width, height])
    return np.maximum(1, np.rint(size * min(1, LARGEST / size.max())).astype(int))


def searched(
    cv2: Any, pixels: Tensor, image: tuple[int, int], *, count: int, smallest: int
) -> NDArray[np.int64]:
    """`[P, 4]` in pixels of an `image` (height, width), of which `pixels` `[h, w, 3]` are all.

    The largest come first. Those of less than `smallest` pixels a side are left out, then what is
    smaller than the first `count`. (OpenCV's own order is drawn at random.)
    """
    size = np.array([image[1], image[0]])
    small, header = within(image[1], image[0]), Header(pixels.shape[1], pixels.shape[0], False)
    whole = (0, 0, header.width, header.height)
    seen = resized(pixels, whole, header, int(small[1]), int(small[0])).numpy()
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(seen[:, :, ::-1]))  # blue first
    search.switchToSelectiveSearchFast()
    found = np.asarray(search.process(), float).reshape(-1, 2, 2)  # corner, then width and height
    corners = np.rint(np.cumsum(found, 1) * (size / small)).astype(np.int64)
    sides = corners[:, 1] - corners[:, 0]
    boxes = corners.reshape(-1, 4)
    order = np.lexsort((*boxes.T, -sides.prod(1)))
    large = sides.min(1) >= smallest
    return boxes[order[large[order]][:count]]
