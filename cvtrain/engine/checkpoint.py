"""Checkpoints: whole or not at all, hashed, at least two kept, and nothing in them can run.

The order of a write: temporary file in the same directory, flush, fsync, rename, fsync of the
directory, then `checkpoints.json`, then the links `last.pt` and `best.pt`, then the old ones go.
A kill between any two of these leaves a directory in which all that is listed verifies.
"""

import hashlib
import json
import logging
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from cvtrain.engine.rundir import sync_directory, write_atomic, writing
from cvtrain.errors import CheckpointError

log = logging.getLogger(__name__)

FORMAT = 1
KEEP = 2  # the newest ones; the best one is kept besides


class Checkpoints:
    """The folder `checkpoints/` of a run: `step_*.pt`, `last.pt`, `best.pt`, `checkpoints.json`."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "checkpoints"
        self.manifest_file = self.folder / "checkpoints.json"
        self.manifest: dict[str, Any] = {"files": {}, "last": None, "best": None}
        if self.manifest_file.exists():
            self.manifest = json.loads(self.manifest_file.read_text())

    @property
    def last(self) -> Path | None:
        """The newest checkpoint that is listed."""
        name = self.manifest["last"]
        return self.folder / name if name else None

    def clean(self) -> None:
        """Remove what a killed process left: temporary files and checkpoints never listed."""
        for file in self.folder.glob(".*.tmp"):
            file.unlink(missing_ok=True)
        for file in self.folder.glob("step_*.pt"):
            if file.name not in self.manifest["files"]:
                file.unlink(missing_ok=True)

    def save(self, state: dict[str, Any], *, step: int, best: bool) -> Path:
        """Write the state of a step. Raises MachineError (no space, not writable)."""
        # A name is written once: a listed file never changes under its hash.
        names = (f"step_{step:08d}{again}.pt" for again in ("", *(f"_{n}" for n in range(2, 99))))
        name = next(name for name in names if name not in self.manifest["files"])
        path, temporary = self.folder / name, self.folder / f".{name}.tmp"
        with writing(path):
            self.folder.mkdir(exist_ok=True)
            try:
                with temporary.open("wb") as file:
                    torch.save({"format": FORMAT, **state}, file)
                    file.flush()
                    os.fsync(file.fileno())
                entry = {
                    "step": step,
                    "size": temporary.stat().st_size,
                    "sha256": sha256(temporary),
                }
                os.replace(temporary, path)
                sync_directory(self.folder)
            except (OSError, RuntimeError) as error:
                temporary.unlink(missing_ok=True)
                # torch's writer reports a full disk as a RuntimeError around the OSError.
                cause = error.__context__ if isinstance(error.__context__, OSError) else error
                raise cause from None
        self._list(name, entry, best=best)
        return path

    def _list(self, name: str, entry: dict[str, Any], *, best: bool) -> None:
        files = {**self.manifest["files"], name: entry}
        best_name = name if best else self.manifest["best"]
        newest = sorted(files, key=lambda file: files[file]["step"])[-KEEP:]
        kept = {file: files[file] for file in files if file in (*newest, best_name)}
        self.manifest = {"files": kept, "last": name, "best": best_name}
        write_atomic(self.manifest_file, json.dumps(self.manifest, indent=1) + "\n")
        with writing(self.folder):
            for link, target in (("last.pt", name), ("best.pt", best_name)):
                if target:
                    temporary = self.folder / f".{link}.tmp"
                    temporary.unlink(missing_ok=True)
                    temporary.symlink_to(target)
                    os.replace(temporary, self.folder / link)
            for file in self.folder.glob("step_*.pt"):
                if file.name not in kept:
                    file.unlink()

    def load_last(self) -> dict[str, Any] | None:
        """The newest good checkpoint, or None if there is none at all.

        One that does not verify is passed over with a warning. Raises CheckpointError when all
        are bad.
        """
        files = self.manifest["files"]
        oldest_first = sorted(files, key=lambda file: files[file]["step"])
        for name in oldest_first[::-1]:
            try:
                return read_checkpoint(self.folder / name)
            except CheckpointError as error:
                if error.name not in ("CKPT-CORRUPT", "CKPT-MISSING"):
                    raise
                log.warning("warning: %s; trying the one before", error)
        if files:
            raise CheckpointError("no checkpoint verifies", str(self.folder), name="CKPT-CORRUPT")
        return None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The dict in `path`, on the CPU, verified against the manifest beside it if there is one.

    Raises CheckpointError: CKPT-CORRUPT, CKPT-UNSAFE (it asks for code), CKPT-MISSING.
    """
    if path.is_dir():
        unsafe = (path / ".metadata").exists()  # torch.distributed.checkpoint pickles this file
        raise CheckpointError(
            "a distributed checkpoint is a pickle that can run code"
            if unsafe
            else "is a directory without checkpoints",
            str(path),
            "type the path of a .pt file or of a run directory",
            name="CKPT-UNSAFE" if unsafe else "CKPT-MISSING",
        )
    if not path.exists():
        raise CheckpointError("no such checkpoint", str(path), "", name="CKPT-MISSING")
    _verify(path.resolve())
    try:
        with warnings.catch_warnings(action="ignore"):  # the error says it in one line
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unsafe_or_corrupt(path, error) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _corrupt(path, str(error) or type(error).__name__) from error
    if not isinstance(state, dict):
        raise _corrupt(path, f"holds a {type(state).__name__}, not a dict")
    return state


def _verify(path: Path) -> None:
    manifest = path.parent / "checkpoints.json"
    try:
        entry = json.loads(manifest.read_text())["files"].get(path.name)
    except (OSError, ValueError, KeyError, AttributeError):
        entry = None
    if entry and (actual := sha256(path)) != entry["sha256"]:
        raise _corrupt(path, f"sha256 {actual[:12]}..., written as {entry['sha256'][:12]}...")


def _corrupt(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"corrupt: {why.splitlines()[0]}",
        str(path),
        "type another checkpoint, or resume=auto for the last good one",
        name="CKPT-CORRUPT",
    )


def _unsafe_or_corrupt(path: Path, error: Exception) -> CheckpointError:
    """torch's unpickler names the forbidden global; bytes that are no pickle at all are corrupt."""
    names = set(re.findall(r"GLOBAL ([\w.]+)", str(error)))
    names = names or _pickled_globals(path)
    if not names and "Unsupported" not in str(error):
        return _corrupt(path, str(error))
    return CheckpointError(
        f"asks for code, {', '.join(sorted(names)) or 'by an unsupported instruction'}, "
        "which no checkpoint needs",
        str(path),
        "do not load it; ask its author for a plain state dict",
        name="CKPT-UNSAFE",
    )


def _pickled_globals(path: Path) -> set[str]:
    """What a bare pickle asks for, read from its instructions without following any."""
    names: set[str] = set()
    words: list[str] = []
    try:
        for instruction, argument, _ in pickletools.genops(path.read_bytes()):
            if instruction.name == "GLOBAL":
                names.add(str(argument).replace(" ", "."))
            elif instruction.name == "STACK_GLOBAL":
                names.add(".".join(words[-2:]))
            elif isinstance(argument, str):
                words.append(argument)
    except (OSError, ValueError):
        pass  # no pickle
    return names


def load_weights(
    model: torch.nn.Module, weights: dict[str, Any], *, source: str, reset: bool
) -> list[str]:
    """Load a state dict; with `reset`, only what fits. Returns the names that were left as new.

    Raises CheckpointError (CKPT-MISMATCH) with the first tensor at fault and both shapes.
    """
    own = model.state_dict()
    wrong = [
        f"{name} is {list(weights[name].shape) if name in weights else 'missing'}, "
        f"the network has {list(tensor.shape)}"
        for name, tensor in own.items()
        if name not in weights or weights[name].shape != tensor.shape
    ]
    wrong += [f"{name} is not in the network" for name in weights if name not in own]
    if wrong and not reset:
        raise CheckpointError(
            f"another network's weights: {wrong[0]}"
            + f" (and {len(wrong) - 1} more)" * (len(wrong) > 1),
            source,
            "type the model it was trained as, or init.reset_head=true to load what fits",
            name="CKPT-MISMATCH",
        )
    fitting = {
        name: weights[name]
        for name, tensor in own.items()
        if name in weights and weights[name].shape == tensor.shape
    }
    if not fitting:
        raise CheckpointError("no tensor fits", source, "", name="CKPT-MISMATCH")
    model.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]
