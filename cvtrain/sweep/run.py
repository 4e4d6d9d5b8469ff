"""`cvtrain -m`: every job checked first, then made by Hydra, each once in its own place.

A job that is finished is not run again, one that was broken off goes on from its last checkpoint,
one that failed is tried again: a sweep goes on when the same command is typed.
"""

import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import active_children
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from omegaconf import DictConfig, OmegaConf

from cvtrain.compose import COMPOSITION_ERRORS, compose_config, explain
from cvtrain.config import MAXIMISED, config_dir
from cvtrain.engine.signals import end_with_parent
from cvtrain.errors import ConfigError, CvtrainError, Stopped, SweepError
from cvtrain.job import run_job
from cvtrain.recipes import plain, ready, with_augment_key
from cvtrain.sweep import ledger
from cvtrain.sweep.names import ROOT, Typed, job_name

CHECKED = 64  # jobs that are all composed before any begins; of more those that show a new word
# The choices that come with `pip install 'cvtrain[sweep]'`, and the package of each.
PLUGINS = {
    "hydra/launcher=joblib": "hydra_joblib_launcher",
    "hydra/launcher=submitit_local": "hydra_submitit_launcher",
    "hydra/launcher=submitit_slurm": "hydra_submitit_launcher",
    "hydra/sweeper=optuna": "hydra_optuna_sweeper",
}


def sweep(flags: list[str], overrides: list[str], name: str, extra_dir: Path | None) -> None:
    """Run a sweep. Raises ConfigError, BusyError, and SweepError if a job failed."""
    if "WORLD_SIZE" in os.environ:
        fix = "type cvtrain -m ... trainer.devices=2"
        raise ConfigError("a sweep is begun by one process", "torchrun", fix)
    check_plugins(overrides)
    begun = beginning(overrides, extra_dir)
    # A comma stands between values, also between those of a path.
    words = [with_augment_key(word) if "," in word else ready(word) for word in overrides]
    words += [f"{key}={value}" for key, value in begun.items() if key != "search"]
    try:
        typed = Typed.parse(words)
        if not typed.axes:
            words += [f"{key}={value}" for key, value in begun.get("search", {}).items()]
            typed = Typed.parse(words)
    except COMPOSITION_ERRORS as error:
        raise explain(error, overrides) from error
    check_jobs(typed, extra_dir)
    folder, words = placed(typed, words, name)
    words += direction(typed, extra_dir)
    start = time.time()
    with ledger.held(folder), stopping(folder) as stopped:
        number = f", {len(typed.jobs)} jobs" if typed.jobs else ""
        print(f"sweep {folder}{number}", flush=True)
        command = shlex.join(["cvtrain", *flags, *overrides, *([f"sweep={name}"] if name else [])])
        ledger.write_sweep(folder, command=command, fixed=[*map(plain, typed.fixed)])
        try:
            run_hydra(flags, words, Jobs(folder, typed, extra_dir, os.getpid()))
            signum = stopped()
        except SystemExit as end:  # of a job in this process
            signum = int(end.code or 0) - 128
        except Exception:  # as of a launcher whose processes were told to end before they could
            if not (signum := stopped()):
                raise
        if signum:
            what, fix = "the sweep was stopped", f"to go on type: {command}"
            raise Stopped(what, str(folder), fix, signum=signum)
    if failed := ledger.failures(folder, start):
        raise failed_jobs(failed, folder)


def check_plugins(words: list[str]) -> None:
    for word in words:
        package = PLUGINS.get(word)
        try:
            there = package is None or find_spec(f"hydra_plugins.{package}") is not None
        except ModuleNotFoundError:
            there = False
        if not there:
            raise ConfigError(f"{word} is not installed", "", "type pip install 'cvtrain[sweep]'")


def beginning(words: list[str], extra_dir: Path | None) -> dict[str, Any]:
    """What configs/sweep/ sets for the launcher and the sweeper, and nobody has typed."""
    found: dict[str, Any] = {}
    names = [word.partition("=")[2] for word in words if word in PLUGINS]
    for name in names:
        folders = [folder / "sweep" for folder in (extra_dir, config_dir()) if folder]
        file = next(f for folder in folders if (f := folder / f"{name}.yaml").exists())
        found |= yaml.safe_load(file.read_text())
    typed = {word.partition("=")[0].lstrip("+") for word in words}
    return {key: value for key, value in found.items() if key not in typed}


def check_jobs(typed: Typed, extra_dir: Path | None) -> None:
    """A mistake in the last of a hundred values is told before the first is tried."""
    jobs, seen = typed.jobs, set[str]()
    for words in jobs:
        if len(jobs) <= CHECKED or not seen.issuperset(words):
            compose_config(words, extra_dir=extra_dir)
        seen.update(words)


def placed(typed: Typed, words: list[str], name: str) -> tuple[Path, list[str]]:
    """The folder of the sweep, and the words that tell Hydra."""
    own = [word.partition("=")[2] for word in typed.hydra if word.startswith("hydra.sweep.dir=")]
    if own and name:
        raise ConfigError("a sweep has one place", f"sweep={name}", "type hydra.sweep.dir= alone")
    if "/" in name:
        raise ConfigError(f"sweep={name} is no name", "", "type hydra.sweep.dir= for a folder")
    folder = ROOT / (name or typed.name)
    if own:  # it may hold the time
        setup_globals()
        folder = Path(str(OmegaConf.create({"dir": own[0].strip("'\"")}).dir))
    rest = [word for word in words if not word.startswith("hydra.sweep.dir=")]
    return folder, [*rest, ready(f"hydra.sweep.dir={folder}")]


def direction(typed: Typed, extra_dir: Path | None) -> list[str]:
    """Which way Optuna is to go, unless that is typed: mAP is to grow, an error to fall."""
    if "hydra/sweeper=optuna" not in typed.hydra:
        return []
    task = compose_config(typed.fixed, extra_dir=extra_dir).config.data.task
    told = any(word.startswith("hydra.sweeper.direction=") for word in typed.hydra)
    return ["hydra.sweeper.direction=maximize"] if task in MAXIMISED and not told else []


def run_hydra(flags: list[str], words: list[str], jobs: Callable[[], float | None]) -> None:
    """Hand the command line to Hydra, whose jobs come back one by one. Raises ConfigError."""

    def sweep_job(_: DictConfig) -> float | None:
        return jobs()

    # An error must reach `main` as itself; without this Hydra prints its own text and exits 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = ["cvtrain", *flags, *words]
    decorate = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")
    try:
        decorate(sweep_job)()
    except COMPOSITION_ERRORS as error:
        raise explain(error, words) from error


class Jobs:
    """The jobs of a sweep, here or in a process of a launcher's."""

    def __init__(self, folder: Path, typed: Typed, extra_dir: Path | None, parent: int) -> None:
        self.folder, self.fixed = folder.absolute(), typed.fixed_keys
        self.extra_dir, self.parent = extra_dir, parent

    def __call__(self) -> float | None:
        """The job that Hydra is at; its figure. A job that fails has none, and ends nothing."""
        config = HydraConfig.get()
        words = [plain(word) for word in config.overrides.task]
        values = dict(word.split("=", 1) for word in words)
        swept = {key: value for key, value in values.items() if key not in self.fixed}
        name = job_name(words, swept)
        run_dir, number = self.folder / name, config.job.num
        if str(config.sweep.subdir) != ".":  # typed
            run_dir = Path(config.runtime.output_dir)
        done, figure = ledger.finished(run_dir)
        title = f"job {number}: {' '.join(f'{key}={value}' for key, value in swept.items())}"
        if done or (self.folder / ledger.STOP).exists():
            print(f"# {title}: {'finished before' if done else 'not begun'}", flush=True)
            return figure
        about = {"overrides": words, "swept": swept, "figure": None, "error": None}
        ledger.write_job(self.folder, name, **about, state="running", exit_code=None)
        print(f"\n# {title}", flush=True)
        if os.getpid() != self.parent:  # of a launcher: Ctrl-C reaches the sweep's alone
            os.setpgid(0, 0)
            end_with_parent()
        above = os.getppid()
        go_on, start = ["resume=auto"] if run_dir.exists() else [], time.time()
        outcome = self.outcome([*words, *go_on], run_dir)
        end = time.time()
        ledger.write_job(self.folder, name, **outcome, seconds=round(end - start, 2), ended=end)
        if outcome["state"] == "stopped" and os.getpid() == self.parent:
            sys.exit(outcome["exit_code"])  # an exception would only end this job
        if os.getppid() != above:  # it was killed: nobody asks for the next one
            os._exit(outcome["exit_code"])
        return outcome["figure"]

    def outcome(self, words: list[str], run_dir: Path) -> dict[str, Any]:
        """Of a job's run, as its file tells it."""
        alone = HydraConfig.get().runtime.choices["hydra/launcher"] == "basic"
        locks = None if alone else self.folder / "gpus"
        try:
            figure = run_job(words, extra_dir=self.extra_dir, run_dir=run_dir, gpus=locks)
            return {"state": "done", "figure": figure, "exit_code": 0}
        except CvtrainError as error:
            failed = error
        except Exception as error:
            traceback.print_exc()
            failed = CvtrainError(f"{type(error).__name__}: {error}", str(run_dir), name="BUG")
        stopped = isinstance(failed, Stopped)
        state, line = (
            ("stopped", f"cvtrain: {failed.what}") if stopped else ("failed", failed.line())
        )
        print(line, file=sys.stderr, flush=True)
        return {"state": state, "figure": None, "error": line, "exit_code": failed.code}


@contextmanager
def stopping(folder: Path) -> Iterator[Callable[[], int]]:
    """A signal is passed on to the processes of a launcher; none of the jobs that are left begins.

    (In this process a job has its own handlers.) A second one ends all at once.
    """
    told: list[int] = []

    def receive(signum: int, frame: FrameType | None) -> None:
        if told or not active_children():
            raise Stopped("the sweep was stopped", str(folder), signum=signum)
        told.append(signum)
        (folder / ledger.STOP).touch()
        for child in active_children():
            if child.pid is not None:
                os.kill(child.pid, signal.SIGTERM)

    old = {signum: signal.signal(signum, receive) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: told[0] if told else 0
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)


def failed_jobs(failed: list[dict[str, Any]], folder: Path) -> SweepError:
    first = failed[0]
    why = str(first.get("error")).removeprefix("cvtrain: ").partition(";")[0]
    number = "1 job" if len(failed) == 1 else f"{len(failed)} jobs"
    what = f"{number} failed: {first['run']}: {why}{' and others' * (len(failed) > 1)}"
    fix = "see leaderboard.csv; the same command tries again what failed"
    error = SweepError(what, str(folder), fix)
    error.code = int(first.get("exit_code") or 1)
    return error
