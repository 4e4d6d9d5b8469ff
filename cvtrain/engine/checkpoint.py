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

from cvtrain.errors import CheckpointError, MachineError
from cvtrain.files import free_bytes, sync_directory, write_atomic, writing

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
            self.manifest = _read_manifest(self.manifest_file)
        self.bad: set[str] = set()  # listed and found not to verify

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

    def warn_if_short_of_space(self, state: dict[str, Any]) -> None:
        """Of a run that begins with `state`: one checkpoint is written beside two that are kept."""
        size = state_bytes(state)
        if not state["optimizer"]["state"]:  # filled by the first step: with Adam two per weight
            size += 2 * state_bytes(state["model"])
        free = free_bytes(self.folder)
        if free < 3 * size:
            text = "warning: %s bytes free for checkpoints of up to %s bytes each; %s"
            log.warning(text, f"{free:,}", f"{size:,}", self.folder)

    def save(self, state: dict[str, Any], *, step: int, best: bool) -> Path:
        """Write the state of a step. Raises MachineError (no space, not writable)."""
        # A name is written once: a listed file never changes under its hash.
        names = (f"step_{step:08d}{again}.pt" for again in ("", *(f"_{n}" for n in range(2, 99))))
        name = next(name for name in names if name not in self.manifest["files"])
        path, temporary = self.folder / name, self.folder / f".{name}.tmp"
        with writing(path, size=state_bytes(state)):
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
        old = {file: e for file, e in self.manifest["files"].items() if file not in self.bad}
        files = {**old, name: entry}
        best_name = name if best else self.manifest["best"]
        best_name = best_name if best_name in files else None
        newest = sorted(files, key=lambda file: files[file]["step"])[-KEEP:]
        kept = {file: files[file] for file in files if file in (*newest, best_name)}
        manifest = {"files": kept, "last": name, "best": best_name}
        try:
            write_atomic(self.manifest_file, json.dumps(manifest, indent=1) + "\n")
        except MachineError:
            (self.folder / name).unlink()
            raise
        self.manifest = manifest
        with writing(self.folder):
            for link, target in (("last.pt", name), ("best.pt", best_name)):
                temporary = self.folder / f".{link}.tmp"
                temporary.unlink(missing_ok=True)
                if target:
                    temporary.symlink_to(target)
                    os.replace(temporary, self.folder / link)
                else:
                    (self.folder / link).unlink(missing_ok=True)
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
                self.bad.add(name)
        if files:
            raise CheckpointError("no checkpoint verifies", str(self.folder), name="CKPT-CORRUPT")
        return None


def state_bytes(value: Any) -> int:
    """Of all tensors in a nested state: nearly the size of its checkpoint."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    items = value.values() if isinstance(value, dict) else value
    return sum(map(state_bytes, items)) if isinstance(value, dict | list | tuple) else 0


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The dict in `path`, on the CPU, verified against the manifest beside it if there is one.

    Raises CheckpointError: CKPT-CORRUPT, CKPT-UNSAFE (it asks for code), CKPT-MISSING, CKPT-NEWER.
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
        fix = "type the path of a .pt file or of a run directory"
        raise CheckpointError("no such checkpoint", str(path), fix, name="CKPT-MISSING")
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
    written = state.get("format")
    if isinstance(written, int) and written > FORMAT:
        what = f"is of format {written}, of a newer cvtrain; this one reads up to {FORMAT}"
        raise CheckpointError(what, str(path), "type pip install -U cvtrain", name="CKPT-NEWER")
    return state


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(file.read_text())
        _ = [manifest["last"], manifest["best"], *(e["step"] for e in manifest["files"].values())]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            "the list of checkpoints is corrupt",
            str(file),
            "type resume=CHECKPOINT for one of those beside it, in a new run directory",
            name="CKPT-CORRUPT",
        ) from error
    return manifest


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


def best_of(path: Path) -> Path:
    """Of a run directory its best checkpoint, else its last; a file as it is."""
    files = (path / "checkpoints" / name for name in ("best.pt", "last.pt"))
    return next((file for file in files if file.exists()), path)


def weights_of(state: dict[str, Any]) -> dict[str, Any]:
    """What is evaluated: the averaged weights of a run that has them; or a plain state dict."""
    if average := state.get("ema"):
        return {k.removeprefix("module."): v for k, v in average.items() if k != "n_averaged"}
    return state.get("model", state)


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
