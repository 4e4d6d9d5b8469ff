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

from cvtrain.data.images import Header, read_image
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
    """`[P, 4]`: left, top, right, bottom in pixels of the file, the largest first.

    Those of less than `smallest` pixels a side are left out, then what is smaller than the first
    `count`. (OpenCV's own order is drawn at random.) Raises DataError (BAD-IMAGE).
    """
    size = np.array([header.width, header.height])
    within = np.maximum(1, np.rint(size * min(1, LARGEST / size.max())).astype(int))
    pixels = read_image(file, header, int(within[1]), int(within[0])).numpy()
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(pixels[:, :, ::-1]))  # blue first
    search.switchToSelectiveSearchFast()
    found = np.asarray(search.process(), float).reshape(-1, 2, 2)  # corner, then width and height
    corners = np.rint(np.cumsum(found, 1) * (size / within)).astype(np.int64)
    sides = corners[:, 1] - corners[:, 0]
    boxes = corners.reshape(-1, 4)
    order = np.lexsort((*boxes.T, -sides.prod(1)))
    return boxes[order[(sides >= smallest).all(1)[order]][:count]]
