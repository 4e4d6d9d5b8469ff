"""`environment.json`: on what, from what and by what command each start of a run was made."""

import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import cvtrain
from cvtrain.files import write_atomic

PACKAGES = (
    *("torch", "torchvision", "hydra-core", "omegaconf", "numpy", "pillow", "simplejpeg"),
    *("matplotlib", "tensorboard", "bokeh"),
)
# By name only: an environment holds secrets.
VARIABLES = (
    *("CVTRAIN_DATA", "CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "PYTORCH_CUDA_ALLOC_CONF"),
    *("CUBLAS_WORKSPACE_CONFIG", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONHASHSEED"),
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_NNODES", "SLURM_NODELIST"),
)
MOST_DIFF = 1_000_000  # bytes
GIT_SECONDS = 5.0


def write_environment(run_dir: Path, device: torch.device) -> None:
    """Add this start to the list; the changes of a tree that git calls dirty lie beside it."""
    file = run_dir / "environment.json"
    try:
        repositories = _repositories(run_dir)
    except subprocess.TimeoutExpired:  # on a slow disk: a run does not wait for it
        repositories = {"git": None, "git_cwd": None}
    starts = [*_starts(file), {**describe(device), **repositories}]
    write_atomic(file, json.dumps({"starts": starts}, indent=1) + "\n")


def _repositories(run_dir: Path) -> dict[str, Any]:
    """Of the code, and of the current directory where that is another."""
    package = Path(cvtrain.__file__).parent
    # An installed package may lie in a repository (a .venv does) that knows nothing of it.
    code = git_state(package) if _git(package, "ls-files", "__init__.py") else None
    here = git_state(Path.cwd())
    if code and here and here["root"] == code["root"]:
        here = None
    for state, name in ((code, "git"), (here, "git_cwd")):
        if state and state["dirty"]:
            state["diff"] = _write_diff(Path(state["root"]), run_dir, name)
    return {"git": code, "git_cwd": here}


def describe(device: torch.device) -> dict[str, Any]:
    """This process and its machine."""
    return {
        "command": shlex.join(sys.argv),
        "cwd": str(Path.cwd()),
        "host": socket.gethostname(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "cpu": _first_value(Path("/proc/cpuinfo"), "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "gpu_driver": _first_value(Path("/proc/driver/nvidia/version"), "NVRM version"),
        "cuda": torch.version.cuda,
        "versions": {"cvtrain": cvtrain.__version__} | {name: _version(name) for name in PACKAGES},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """The repository that `folder` is in; None without one or without git."""
    root = _git(folder, "rev-parse", "--show-toplevel")
    revision = root and _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no") if revision else None
    if not root or changes is None:
        return None
    branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD")
    return {"root": root, "revision": revision, "branch": branch, "dirty": bool(changes)}


def _write_diff(root: Path, run_dir: Path, name: str) -> str | None:
    """Tracked changes, as `git apply` takes them; the file's name, an earlier start's if equal."""
    diff = _git(root, "diff", "--no-ext-diff", "--no-color", "HEAD")
    if not diff:
        return None
    text = diff.encode()[:MOST_DIFF].decode("utf-8", "ignore") + "\n"
    for number in range(1, 1000):
        file = run_dir / (f"{name}.diff" if number == 1 else f"{name}_{number}.diff")
        if not file.exists():
            write_atomic(file, text)
        if file.read_text() == text:
            return file.name
    return None


def _git(folder: Path, *arguments: str) -> str | None:
    """What it says. Raises TimeoutExpired."""
    command = ["git", "-C", str(folder), *arguments]
    # Reading must not write: a `status` would refresh the index.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=GIT_SECONDS, check=True, env=environment
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.decode("utf-8", "replace").rstrip("\n")


def _starts(file: Path) -> list[Any]:
    """Of the run so far; none if they cannot be read."""
    try:
        return list(json.loads(file.read_text())["starts"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _first_value(file: Path, key: str) -> str | None:
    """Of a line `key : value`."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
