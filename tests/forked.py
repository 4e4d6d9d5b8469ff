"""`python -m cvtrain` without the three seconds of its imports.

A server has imported everything and run nothing (imported.py), and a command is forked from it:
arguments, folder, environment, signals, exit code and files are those of a fresh interpreter. With
CVTRAIN_FRESH=1, and where there is no /proc, every command is a fresh `python -m cvtrain`.
"""

import multiprocessing
import os
import runpy
import sys
from multiprocessing import forkserver
from pathlib import Path

HERE = Path(__file__).parent
ALL_FRESH = "CVTRAIN_FRESH" in os.environ or sys.platform != "linux"

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["imported"])


def fork(
    arguments: list[str],
    *,
    folder: Path,
    output: Path,
    env: dict[str, str] | None = None,
    user: int | None = None,
) -> multiprocessing.process.BaseProcess:
    """Begin `cvtrain ARGUMENTS` in a session of its own; it writes `output`/stdout and stderr."""
    before = os.environ.get("PYTHONPATH")
    try:  # the server does not look where we do
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), before]))
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        os.environ.update({"PYTHONPATH": before} if before is not None else {})
    everything = {**os.environ, **(env or {})}
    process = _context.Process(target=_run, args=(arguments, folder, output, everything, user))
    process.start()
    return process


def _run(
    arguments: list[str], folder: Path, output: Path, env: dict[str, str], user: int | None
) -> None:
    """What `python -m cvtrain ARGUMENTS` does, in a process that has imported its modules."""
    imported = sys.modules["imported"]  # by the server
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # the run's own choice, not this server's
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(folder)
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    os.environ.clear()
    os.environ.update(env)
    theirs = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [str(folder), *theirs, *imported.PATH]
    sys.argv = ["cvtrain", *arguments]
    runpy.run_module("cvtrain", run_name="__main__", alter_sys=True)
