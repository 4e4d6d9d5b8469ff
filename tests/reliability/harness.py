"""Runs the command in a process of its own and holds what is left of it against one contract.

Most runs are forked, by forked.py; where the start itself matters a run asks for `fresh=True`.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forked import ALL_FRESH, fork

HERE = Path(__file__).parent
KILLS = int(os.environ.get("CVTRAIN_KILLS", 3))  # how often something happens at random moments

# Exit codes of a run that leaves its outcome in status.json; after the others it is as it was.
STATES = {0: "done", 3: "failed", 5: "failed", 130: "preempted", 143: "preempted"}
BEFORE_STEP_1 = {"config.yaml", "log.txt", "status.json", "bad_images.txt"} | {
    *("environment.json", "origins.json", "samples.png"),
}
OF_A_RUN = (
    BEFORE_STEP_1
    | {"metrics.jsonl", "checkpoints", "summary.json", "curves.png", "report.html"}
    | {
        *("confusion.png", "worst.png", "reliability.png", "profile"),
        *("detections.png", "precision_recall.png", "categories.png"),
        *("false_detections.png", "missed.png"),
    }
)


# Processes


class Process:
    """One command under way, in a session of its own; its output lies in files below `output`."""

    def __init__(
        self,
        arguments: list[str],
        *,
        folder: Path,
        output: Path,
        env: dict[str, str] | None = None,
        fresh: bool = False,
        user: int | None = None,
    ) -> None:
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {"PYTHONPATH": os.pathsep.join(paths), **(env or {})}
        output.mkdir(parents=True)
        self.output, self.arguments = output, arguments
        self._forked: Any = None
        # Another user may not be able to read the interpreter: it is forked.
        if fresh or (ALL_FRESH and user is None):
            with (output / "stdout").open("ab") as out, (output / "stderr").open("ab") as err:
                self._popen = subprocess.Popen(
                    [sys.executable, "-m", "cvtrain", *arguments],
                    cwd=folder,
                    env={**os.environ, **env},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                )
            self.pid = self._popen.pid
        else:
            self._forked = fork(arguments, folder=folder, output=output, env=env, user=user)
            self.pid = self._forked.pid

    def poll(self) -> int | None:
        """The exit code, -9 after SIGKILL; None while it runs."""
        return self._forked.exitcode if self._forked else self._popen.poll()

    def wait(self, seconds: float = 120) -> int:
        """The exit code; a process that takes longer is killed and fails the test."""
        if self._forked:
            self._forked.join(seconds)
        else:
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(seconds)
        code = self.poll()
        if code is None:
            self.kill()
            raise AssertionError(f"still running after {seconds} s: {self}")
        return code

    def wait_for(self, condition: Callable[[], Any], seconds: float = 60) -> bool:
        """Until `condition` holds or the process ends or the time is up; whether it holds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return True
            if self.poll() is not None:
                break
            time.sleep(0.0005)  # a checkpoint is written in milliseconds
        return bool(condition())

    def send(self, signum: int) -> None:
        with suppress(ProcessLookupError):  # it may have come to its end
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """SIGKILL to the command alone: its workers have to find out themselves."""
        if self.poll() is None:
            self.send(signal.SIGKILL)
        self.wait_for(lambda: False, 10)

    def pause(self, condition: Callable[[], Any] = lambda: True) -> None:
        """Wait until `condition` holds and it has stopped itself, as by a fault with SIGSTOP."""
        assert self.wait_for(lambda: condition() and _stat(self.pid)[:1] == ["T"]), str(self)

    def family(self) -> list[int]:
        """The processes of its session that are alive, itself the first."""
        alive = []
        for entry in Path("/proc").glob("[0-9]*"):
            state, _, _, session, *_ = _stat(int(entry.name)) or ("Z", "", "", "-1")
            if int(session) == self.pid and state != "Z":
                alive.append(int(entry.name))
        return sorted(alive)

    def alone(self, *, within: float) -> bool:
        """Whether no process of its session is left after so many seconds."""
        deadline = time.monotonic() + within
        while self.family() and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.family()

    @property
    def out(self) -> str:
        return (self.output / "stdout").read_text()

    @property
    def err(self) -> str:
        return (self.output / "stderr").read_text()

    @property
    def last_line(self) -> str:
        """The last line on stderr."""
        return (self.err.splitlines() or [""])[-1]

    def __str__(self) -> str:
        return f"cvtrain {' '.join(self.arguments)}\n{self.out}\n{self.err}"


def _stat(pid: int) -> list[str]:
    """State, parent, group, session and more of a process; nothing once it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


# Cases


class Case:
    """Commands run one after the other in `folder`, with `folder/run` as their run directory.

    `inputs` are what the commands may read and must not change.
    """

    def __init__(self, folder: Path, *overrides: str, inputs: tuple[Path, ...] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.overrides, self.inputs = folder, list(overrides), inputs
        self.run_dir = folder / "run"
        self.output = folder.parent / f"{folder.name}_output"  # not where the command runs
        self._count = 0
        self._inputs_before = [tree(path) for path in inputs]

    def start(
        self,
        *extra: str,
        fault: str = "",
        env: dict[str, str] | None = None,
        fresh: bool = False,
        user: int | None = None,
        where: bool = True,
    ) -> Process:
        """Begin a run; `fault` is for user_code.py, `where=False` leaves out hydra.run.dir."""
        self._count += 1
        self._before = tree(self.run_dir)
        place = [f"hydra.run.dir={self.run_dir}"] if where else []
        return Process(
            [*self.overrides, *place, *extra],
            folder=self.folder,
            output=self.output / str(self._count),
            env={**(env or {}), "FAULT": fault},
            fresh=fresh,
            user=user,
        )

    def run(self, *extra: str, **options: Any) -> Process:
        """`start` and `end`, each with its own of the options."""
        begin = {
            k: options.pop(k) for k in ("fault", "env", "fresh", "user", "where") if k in options
        }
        return self.end(self.start(*extra, **begin), **options)

    def end(
        self,
        process: Process,
        *,
        code: int | tuple[int, ...] = 0,
        last: str = "",
        state: str | None = "by code",
        seconds: float = 120,
    ) -> Process:
        """Wait for the end and hold it against the contract.

        `last` is a regular expression that the last line on stderr matches from its beginning.
        `state` is that of status.json; None: the run directory is as it was, or still not there;
        "unseen": a test looks at the run directory itself, having put something foreign there.
        """
        got = process.wait(seconds)
        codes = (code,) if isinstance(code, int) else code
        assert got in codes, f"exit code {got}, not {code}: {process}"
        if got:
            assert re.match(f"cvtrain: {last}", process.last_line), (
                f"{last!r} not at the end: {process}"
            )
        assert "Traceback" not in process.err, str(process)
        assert process.alone(within=2), f"processes left behind by: {process}"
        state = STATES.get(got) if state == "by code" else state
        if state == "unseen":
            pass
        elif state is None:
            assert tree(self.run_dir) == self._before, f"files changed by: {process}"
        else:
            self.check_status(state, got, process)
            check_run_dir(self.run_dir)
        self.check_surroundings()
        return process

    def check_status(self, state: str, code: int, process: Process) -> None:
        status = self.status()
        assert (status["state"], status["exit_code"]) == (state, code), status
        named = re.match(r"cvtrain: error\[(.+?)\]", process.last_line)
        assert named is None or status["error"] == named[1]
        if os.path.lexists(self.run_dir / "checkpoints/last.pt"):
            last = os.readlink(self.run_dir / "checkpoints/last.pt")
            assert status.get("last_checkpoint") == last

    def check_surroundings(self) -> None:
        """Nothing else was written: not beside the run directory, not into the data."""
        assert {path.name for path in self.folder.iterdir()} <= {"run"}
        assert [tree(path) for path in self.inputs] == self._inputs_before

    def kill(self, process: Process) -> None:
        """SIGKILL, then the contract: whole files, one temporary one at most, workers gone."""
        process.kill()
        assert process.poll() in (-signal.SIGKILL, 0), str(process)
        assert process.alone(within=10), f"workers left behind by: {process}"
        if self.run_dir.exists():
            check_run_dir(self.run_dir, killed=True)
        self.check_surroundings()

    def run_until_killed(self, *extra: str, losses: int) -> None:
        """SIGKILL in the training batch of this number."""
        process = self.start(*extra, fault=f"losses {losses} SIGKILL")
        assert process.wait() == -signal.SIGKILL, str(process)
        self.kill(process)

    # What a run wrote

    def status(self) -> dict[str, Any]:
        return json.loads((self.run_dir / "status.json").read_text())

    def lines(self) -> list[dict[str, Any]]:
        """Of metrics.jsonl, without the speed; one that a kill has cut off is left out."""
        file = self.run_dir / "metrics.jsonl"
        texts = file.read_text().split("\n")[:-1] if file.exists() else []
        lines = [json.loads(text) for text in texts]
        return [{k: v for k, v in line.items() if k != "train/images_per_sec"} for line in lines]

    @property
    def steps(self) -> list[int]:
        """The steps whose training figures are logged."""
        return [line["step"] for line in self.lines() if "train/loss" in line]


@dataclass(frozen=True)
class Result:
    """Everything in which two runs that compute the same thing have to agree."""

    state: str  # sha256 of what is trained, bit for bit
    lines: list[dict[str, Any]]
    best: tuple[Any, Any]


def result(case: Case) -> Result:
    saved = checkpoint(case.run_dir / "checkpoints/last.pt")
    steps = case.steps
    assert steps == sorted(set(steps)), f"a step was taken twice: {steps}"
    names = ("model", "ema", "optimizer", "scaler", "schedule")
    position = saved["position"]
    return Result(
        state=digest({name: saved[name] for name in names}),
        lines=case.lines(),
        best=(position["best"], position["best_step"]),
    )


def checkpoint(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def digest(value: Any) -> str:
    """sha256 over nested dicts, lists, plain values and the bytes of tensors."""
    hashed = hashlib.sha256()

    def add(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            hashed.update(f"{item.dtype}{tuple(item.shape)}".encode())
            hashed.update(item.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(item, dict):
            for key in sorted(item, key=str):
                hashed.update(f"{key}:".encode())
                add(item[key])
        elif isinstance(item, list | tuple):
            for number, inner in enumerate(item):
                hashed.update(f"{number}:".encode())
                add(inner)
        else:
            hashed.update(repr(item).encode())

    add(value)
    return hashed.hexdigest()


def forge(case: Case, **changes: Any) -> Path:
    """The last checkpoint, rewritten with other contents and listed under its new hash."""
    folder = case.run_dir / "checkpoints"
    path = (folder / "last.pt").resolve()
    torch.save({**checkpoint(path), **changes}, path)
    manifest = json.loads((folder / "checkpoints.json").read_text())
    manifest["files"][path.name] |= {"sha256": sha256(path), "size": path.stat().st_size}
    (folder / "checkpoints.json").write_text(json.dumps(manifest))
    return path


# Files


def tree(path: Path) -> dict[str, tuple[str, int]]:
    """Of every file below `path` its content's sha256 and its time; {} where there is nothing."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {
        str(file.relative_to(path)): (
            os.readlink(file) if file.is_symlink() else "" if file.is_dir() else sha256(file),
            file.lstat().st_mtime_ns,
        )
        for file in files
    }


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def temporary_files(run_dir: Path) -> list[Path]:
    return [path for path in run_dir.rglob("*") if path.name.endswith(".tmp")]


def check_run_dir(run_dir: Path, *, killed: bool = False) -> None:
    """All that is listed verifies, and nothing lies about; a kill may leave one unfinished file."""
    temporary = temporary_files(run_dir)
    assert len(temporary) <= killed, temporary
    names = {path.name for path in run_dir.iterdir()} - {path.name for path in temporary}
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    names -= {name for name in names if re.fullmatch(r"git(_\d+)?\.diff", name)}  # one a start
    folder = run_dir / "checkpoints"
    trained = (run_dir / "metrics.jsonl").exists() or folder.exists()
    # Curves are opened before the first line of metrics.jsonl is written.
    foreign = names - events - (OF_A_RUN if trained or killed else BEFORE_STEP_1)
    assert not foreign, foreign
    assert trained or killed or not events
    if (folder / "checkpoints.json").exists():
        check_checkpoints(folder, killed=killed)
    else:  # the first write of all has come to nothing
        assert killed or not list(folder.glob("*"))


def check_checkpoints(folder: Path, *, killed: bool) -> None:
    manifest = json.loads((folder / "checkpoints.json").read_text())
    listed = manifest["files"]
    for name, entry in listed.items():
        assert (folder / name).stat().st_size == entry["size"]
        assert sha256(folder / name) == entry["sha256"]
        assert checkpoint(folder / name)["position"]["step"] == entry["step"]
    assert manifest["last"] in listed
    there = {path.name for path in folder.iterdir() if not path.name.endswith(".tmp")}
    wanted = {*listed, "checkpoints.json", "last.pt"}
    if killed:  # between two steps of a write: a file not yet listed, or no longer
        assert {name for name in there if not name.startswith("step_")} <= {*wanted, "best.pt"}
        return
    assert there - {"best.pt"} == wanted
    assert os.readlink(folder / "last.pt") == manifest["last"]
    assert ("best.pt" in there) == (manifest["best"] is not None)
    if manifest["best"]:
        assert os.readlink(folder / "best.pt") == manifest["best"]


# Small runs

# One line of metrics.jsonl a step: what two runs did is compared step by step.
EVERY_STEP = ("trainer.log_every=1st", "trainer.threads=1")
# A signal can be made to arrive at an exact place in the run.
FAULTY = ("trust=[user_code]", "task._target_=user_code.Faulty")


def mlp_case(folder: Path, mnist: Path) -> Case:
    """A small network on small digits: six steps an epoch, 24 in all."""
    return Case(
        folder,
        *("data=mnist", f"data_dir={mnist}", "data.batch_size=16"),
        *("model=mlp", "model.hidden=[16]", "optimizer.lr=0.02", "scheduler=constant"),
        *("trainer.duration=4ep", *EVERY_STEP, *FAULTY),
        inputs=(mnist,),
    )


def write_mnist(root: Path, *, train: int = 96, val: int = 20) -> Path:
    """IDX files of random prototypes under noise: digits that can be learnt."""
    rng = np.random.default_rng(0)
    prototypes = rng.integers(0, 256, (10, 28, 28))
    for split, count in (("train", train), ("t10k", val)):
        labels = np.arange(count) % 10
        images = 0.6 * prototypes[labels] + 0.4 * rng.integers(0, 256, (count, 28, 28))
        write_idx(root / f"MNIST/raw/{split}-images-idx3-ubyte", images)
        write_idx(root / f"MNIST/raw/{split}-labels-idx1-ubyte", labels)
    return root


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + shape + array.astype(np.uint8).tobytes())
