"""`trainer.devices=N`: this process has composed; N others, which know no Hydra, do the work.

torch's elastic launcher starts them, ends all when one dies, and passes signals on. What a process
has to say at its end it leaves in a folder that goes with the call: an error comes out of `launch`
as it came up in that process.
"""

import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from cvtrain.compose import Composed
from cvtrain.errors import ConfigError, CvtrainError, MachineError, Stopped
from cvtrain.outcome import causes, read_errors

JOB, RESULT = "job.json", "result.json"  # of the folder; and of each process rank_N.json
ENVIRONMENT = (
    *("OMP_NUM_THREADS", "PYTHONPATH", "GLOO_SOCKET_IFNAME"),
    "TORCHELASTIC_SIGNALS_TO_HANDLE",
)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def processes(devices: int | str, device: str) -> int:
    """How many `trainer.devices` asks for. Raises ConfigError, MachineError (NO-CUDA)."""
    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    number = max(1, gpus) if devices == "auto" else int(devices)
    if number > 1 and ":" in device:
        fix = f"type trainer.device={device.partition(':')[0]}"
        raise ConfigError(f"{number} processes on one device", f"trainer.device={device}", fix)
    if number > gpus and (gpus or device == "cuda"):
        what = f"{number} processes were asked for, {gpus} GPUs are there"
        fix = f"type trainer.devices={max(1, gpus)}, or trainer.device=cpu"
        raise MachineError(what, f"trainer.devices={devices}", fix, name="NO-CUDA")
    return number


def launch(
    number: int, verb: str, composed: Composed, overrides: list[str], keys: dict[str, str]
) -> float | None:
    """Run a verb in `number` processes; its figure, if it has one. Raises what they raise."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="cvtrain_") as name, surroundings(number):
        folder = Path(name)
        hand_over(folder, verb, composed, overrides, keys)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=number,
            run_id=folder.name,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",  # at any port that is free
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=name),
        )
        try:
            # -P: the current directory is searched for modules only where this process does so.
            elastic_launch(config, sys.executable)("-P", "-m", "cvtrain.rank", name)
        except ChildFailedError as failed:
            raise cause(folder, failed.failures) from None
        except SignalException as told:
            raise cause(folder, {}, told.sigval) from None
        return json.loads((folder / RESULT).read_text())


def hand_over(
    folder: Path, verb: str, composed: Composed, overrides: list[str], keys: dict[str, str]
) -> None:
    """The resolved config, whose secrets are still interpolations, and what was typed."""
    job = {
        "verb": verb,
        "keys": keys,
        "argv": sys.argv,
        "overrides": overrides,
        "text": composed.text,
        "run_dir": str(composed.run_dir),
        "choices": composed.choices,
        "recipe_sets": composed.recipe_sets,
        "extra_dir": composed.extra_dir and str(composed.extra_dir),
        "gpus": composed.gpus,
    }
    (folder / JOB).write_text(json.dumps(job))


@contextmanager
def surroundings(number: int) -> Iterator[None]:
    """What the processes inherit, and what the launcher changes here for good: all goes back."""
    environment = {name: os.environ.get(name) for name in ENVIRONMENT}
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
    share = max(1, torch.get_num_threads() // number)
    try:
        os.environ["OMP_NUM_THREADS"] = str(share)
        os.environ["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        if sys.platform == "linux":  # a machine's own name may lead nowhere
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        with quiet("torch.distributed.elastic"):
            yield
    finally:
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        for signum, handler in handlers.items():
            with suppress(ValueError):  # in another thread than the main one nothing was changed
                signal.signal(signum, handler)


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Without the launcher's own account of what a process's line says."""
    logger, silent = logging.getLogger(name), logging.NullHandler()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(silent)
    try:
        yield
    finally:
        logger.removeHandler(silent)
        logger.propagate = propagate


def cause(folder: Path, failures: dict[int, Any], signum: int = 0) -> CvtrainError:
    """Why the processes ended: what the first of them met, not that the others missed it."""
    said = read_errors(folder)
    stopped = [error for error in said.values() if isinstance(error, Stopped)]
    silent = {rank: failure for rank, failure in failures.items() if rank not in said}
    if own := causes(said):
        return own[0]
    if isinstance(said.get(0), Stopped):  # the one that saves
        return said[0]
    if signum or stopped:
        signum = signum or stopped[0].code - 128
        what, fix = f"stopped by {signal.Signals(signum).name}", "type resume=auto to go on"
        return Stopped(what, "nothing was saved since the last checkpoint", fix, signum=signum)
    if silent:  # of which the launcher itself ends those that are left, by SIGTERM
        return died(silent, min(silent, key=lambda rank: silent[rank].exitcode == -signal.SIGTERM))
    return next(iter(said.values()))


def died(failures: dict[int, Any], rank: int) -> MachineError:
    """Of a process that could not say anything, and ended by a signal."""
    code = failures[rank].exitcode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    what = f"process {rank}, pid {failures[rank].pid}, {how}"
    fix = "look at the memory of the machine; then type resume=auto"
    return MachineError(what, "", fix, name="RANK-DIED")
