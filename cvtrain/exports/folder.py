"""The folder of an export: there whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cvtrain.errors import ConfigError
from cvtrain.files import writing

MODEL = "model"  # with its format's suffix
CARD, CLASSES, CONFIG, INPUT = "README.md", "classes.json", "config.yaml", "preprocessing.json"
DIFFERS = "_differs"  # at the end of the name of one whose file does not say what its network says


def check_free(target: Path) -> None:
    """Nothing is there, or an earlier export, which goes. Raises ConfigError."""
    if not target.parent.is_dir():
        raise ConfigError(f"no folder {target.parent}", f"out={target}", "make it first")
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        raise ConfigError("there is a file of that name", f"out={target}", "type out=FOLDER")
    held = {file.name for file in target.iterdir()}
    ours = {CARD, CLASSES, CONFIG, INPUT}
    if others := sorted(name for name in held - ours if not name.startswith(f"{MODEL}.")):
        what = f"the folder holds other things ({', '.join(others[:3])})"
        raise ConfigError(what, f"out={target}", "type out= with a new name")
    if held and not held >= ours:
        what = "the folder is no earlier export"
        raise ConfigError(what, f"out={target}", "type out= with a new name")


@contextmanager
def drafting(target: Path) -> Iterator[Path]:
    """A folder beside `target` to write in; what has not found its place goes again.

    Raises MachineError.
    """
    draft = target.with_name(f".{target.name}.tmp")
    with writing(target, key="out"):
        shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
        draft.mkdir()
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def put(draft: Path, target: Path) -> None:
    """In the place of an earlier export, if there is one."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    draft.rename(target)
    shutil.rmtree(old, ignore_errors=True)
