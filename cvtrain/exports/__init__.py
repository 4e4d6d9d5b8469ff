"""Networks for other programs: one short module for each format, and what lies beside the file.

A format's module has `SUFFIX`, `EXTRA` (what pip calls the libraries that it needs), `NEEDS` (their
modules), `packed(subject)`, the bytes of the file, and `opened(path, subject)`, the file as a
function of tensors, run by what would run it without this package. `NOTE`: to be said first.
"""

import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import ModuleType

from cvtrain.errors import ConfigError

FORMATS = ("onnx", "torchscript", "torch_export", "safetensors")


def format_module(name: str) -> ModuleType:
    """Raises ConfigError where a library of it is not installed."""
    module = importlib.import_module(f"cvtrain.exports.{name}")
    for library in module.NEEDS:
        try:
            importlib.import_module(library)
        except ImportError as error:
            what = f"{library} is not installed" if error.name == library else f"{library}: {error}"
            fix = f'type pip install "cvtrain[{module.EXTRA}]"'
            raise ConfigError(what, f"format={name}", fix) from error
    return module


@contextmanager
def quietly() -> Iterator[None]:
    """Exporters warn, log and print of what they then do otherwise: none of it is for a user."""
    logging.disable(logging.ERROR)
    try:
        said = io.StringIO()
        with warnings.catch_warnings(action="ignore"), redirect_stdout(said), redirect_stderr(said):
            yield
    finally:
        logging.disable(logging.NOTSET)
