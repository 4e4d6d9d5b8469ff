"""What the server of forked.py has done before a command is forked from it: imported, run nothing.

Everything of ours and what it imports on first use, matplotlib's backend and bokeh among them; and
one figure is drawn, as the first one reads fonts and builds the parser of a logarithmic axis.
"""

import importlib.readers  # for a run as another user, who may not read Python's own
import io
import os
import pkgutil
import sys
from contextlib import suppress

import matplotlib.backends.backend_agg
import torch.utils.tensorboard  # noqa: F401
from matplotlib.figure import Figure

import cvtrain

_THEIRS = {"", *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
PATH = [folder for folder in sys.path if folder not in _THEIRS]  # of any interpreter of this kind

for module in pkgutil.walk_packages(cvtrain.__path__, "cvtrain."):
    if module.name != "cvtrain.__main__":
        with suppress(ImportError):  # of an extra that is not there
            importlib.import_module(module.name)

figure = Figure(layout="constrained")
matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
figure.add_subplot(yscale="log").plot([1, 2], [0.1, 1])
figure.savefig(io.BytesIO(), format="png")
