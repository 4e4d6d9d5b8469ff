"""A window that shows what is drawn, where there is a display. By matplotlib, which is there."""

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

log = logging.getLogger(__name__)


class Window:
    """`show` from the main thread alone; `closed` once its user has closed it."""

    def __init__(self, title: str) -> None:
        self.closed = False
        self.image: Any = None
        from matplotlib import pyplot

        pyplot.ion()
        self.pyplot, self.figure = pyplot, pyplot.figure(title, layout="constrained")
        self.axes = self.figure.subplots()
        self.axes.set_axis_off()
        self.figure.canvas.mpl_connect("close_event", self._close)

    def _close(self, _: Any) -> None:
        self.closed = True

    def show(self, picture: np.ndarray) -> None:
        """uint8 `[H, W, 3]`."""
        if self.image is None or self.image.get_array().shape != picture.shape:
            self.axes.clear()
            self.axes.set_axis_off()
            self.image = self.axes.imshow(picture)
        self.image.set_data(picture)
        self.figure.canvas.draw_idle()
        self.figure.canvas.flush_events()

    def wait(self, stop: Callable[[], bool]) -> None:
        """Until its user closes it, or `stop`."""
        while not self.closed and not stop():
            self.pyplot.pause(0.1)


def open_window(title: str) -> Window | None:
    """None, and a line that says so, where there is no display."""
    import matplotlib

    if sys.platform == "linux" and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        log.warning("warning: no window: there is no display here; the results are written")
        return None
    try:
        window = Window(title)
    except Exception as error:  # of whatever toolkit is there
        log.warning("warning: no window: %s", str(error).partition("\n")[0])
        return None
    if matplotlib.get_backend().lower() == "agg":
        log.warning("warning: no window: matplotlib has no toolkit; type pip install pyqt6")
        return None
    return window
