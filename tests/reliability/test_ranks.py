"""Several processes of one run: one dies, all are told to end, and what is left goes on exactly."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import (
    EVERY_STEP,
    FAULTY,
    HERE,
    Case,
    check_run_dir,
    mlp_case,
    result,
    write_mnist,
)
from ranks import Run, free_port, start
from small_disk import SmallDisk

from cvtrain import launch, outcome
from cvtrain.config import TrainerConfig, check
from cvtrain.engine.signals import StopFlag
from cvtrain.errors import ConfigError, DataError, MachineError, Stopped

LINE = "cvtrain: error"


def alive(token: str) -> list[int]:
    """The processes that have this word in their environment: a launcher's are no family."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if token.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            pass
    return found


@pytest.fixture
def token() -> Iterator[str]:
    """For the environment of a command, none of whose processes may be left behind."""
    word = uuid.uuid4().hex
    yield word
    deadline = time.monotonic() + 10
    while alive(word) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = alive(word)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.fixture
def shared(mlp: Case) -> Case:
    """24 steps on two processes; the classes of user_code.py."""
    mlp.overrides += ["trainer.devices=2", "trainer.checkpoint_every=5st"]
    return mlp


# One process dies


@pytest.mark.fault("P7")
def test_one_is_killed(shared: Case, token: str) -> None:
    """The other ends by itself, in good order; the launcher says what happened."""
    env = {"FAULT_RANK": "1", "TOKEN": token}
    line = r"error\[RANK-DIED\]: process 1, pid \d+, was killed by SIGKILL;.*resume=auto"
    shared.run(fault="losses 8 SIGKILL", env=env, code=6, last=line, state="failed", seconds=120)
    assert shared.status()["step"] == 6  # the end of an epoch
    shared.run("resume=auto", env={"TOKEN": token})
    assert shared.status()["step"] == 24


@pytest.mark.fault("P7")
@pytest.mark.parametrize("what", ["DATA-ERROR", "RAISE"])
def test_one_raises(shared: Case, token: str, what: str) -> None:
    """Its own line and exit code, also in status.json, which is the first one's to write."""
    env = {"FAULT_RANK": "1", "TOKEN": token}
    process = shared.start(fault=f"losses 8 {what}", env=env)
    code, line = (
        (3, f"{LINE}[BAD-IMAGE]: is cut off; photos/7.jpg; mend it")
        if what == "DATA-ERROR"
        else (1, f"{LINE}[BUG]: ZeroDivisionError: a bug of the user's; process 1 of 2; its ")
    )
    assert process.wait(120) == code, str(process)
    assert process.last_line.startswith(line)
    assert process.err.count(LINE) == 1
    assert process.err.count("Traceback") == (what == "RAISE")
    shared.check_status("failed", code, process)
    check_run_dir(shared.run_dir)


@pytest.mark.fault("P7")
def test_the_disk_of_the_first_is_full(
    tmp_path: Path, mnist: Path, small_disk: SmallDisk, token: str
) -> None:
    run_dir = small_disk.path / "run"
    case = mlp_case(tmp_path / "case", mnist)
    case.run_dir = run_dir
    case.overrides += ["trainer.devices=2", "model.hidden=[2000]", "trainer.checkpoint_every=3st"]
    small_disk.fill(leave=40_000_000)
    process = case.start(env={"TOKEN": token})
    assert process.wait(120) == 6, str(process)
    assert re.match(rf"{LINE}\[NO-SPACE\]: .*bytes needed.*bytes free", process.last_line)
    assert json.loads((run_dir / "status.json").read_text())["error"] == "NO-SPACE"
    check_run_dir(run_dir)


# All are told to end


@pytest.mark.fault("R6")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_told_to_end_and_resumed(shared: Case, token: str, name: str) -> None:
    """All stop after one step, saved; what goes on ends with the bits of what never stopped."""
    whole = Case(shared.folder.parent / "whole", *shared.overrides, inputs=shared.inputs)
    if name == "SIGTERM":
        whole.run(env={"TOKEN": token})
    process = shared.start(fault="losses 9 SLEEP 1", env={"TOKEN": token})
    assert process.wait_for(lambda: shared.steps[-1:] == [8])
    process.send(signal.Signals[name])
    code = 128 + signal.Signals[name]
    shared.end(process, code=code, last=rf"stopped by {name} at step \d+; .*resume=auto")
    assert 0 < shared.status()["step"] < 24
    if name == "SIGTERM":
        shared.run("resume=auto", env={"TOKEN": token})
        assert result(shared) == result(whole)


@pytest.mark.fault("P7")
def test_the_launcher_is_killed(shared: Case, token: str) -> None:
    """Its processes find out, save and end."""
    process = shared.start(fault="losses 9 SLEEP 1", env={"TOKEN": token})
    assert process.wait_for(lambda: shared.steps[-1:] == [8])
    process.send(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while alive(token) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(token)
    assert shared.status()["state"] == "preempted", str(process)
    check_run_dir(shared.run_dir)


# Killed again and again

CHAIN = [
    *("data=mnist", "data_dir=mnist", "data.batch_size=7", "model=cnn", "model.widths=[4,8]"),
    *("model.dropout=0.3", "trainer.ema=0.9", "recipe=none", "augment=[flip]", "eval.batch_size=5"),
    *("optimizer.lr=0.02", "trainer.checkpoint_every=1st", *EVERY_STEP, *FAULTY),
]


@pytest.mark.fault("R6")
@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.nightly)])
def test_killed_every_seven_steps(tmp_path: Path, kills: int) -> None:
    """50 samples in batches of 7: shares of 4 and 3."""
    write_mnist(tmp_path / "mnist", train=50, val=11)
    words = [*CHAIN, f"trainer.duration={6 * kills + 5}st"]
    runs = [Run("whole", 2, [*words, "hydra.run.dir=whole"])]
    killed = {"FAULT": "losses 7 SIGKILL"}
    for number in range(kills):
        go_on = [*words, "hydra.run.dir=run", *(["resume=auto"] if number else [])]
        runs.append(Run(f"life_{number}", 2, go_on, env=killed))
    runs.append(Run("last", 2, [*words, "hydra.run.dir=run", "resume=auto"]))
    start(tmp_path, runs)
    codes = json.loads((tmp_path / "codes.json").read_text())
    assert codes.pop("whole") == codes.pop("last") == [0, 0]
    assert len(codes) == kills
    assert all(-signal.SIGKILL in life for life in codes.values()), codes
    cases = [Case(tmp_path / name) for name in ("a", "b")]
    for case, name in zip(cases, ("whole", "run"), strict=True):
        case.run_dir = tmp_path / name
    assert result(cases[0]) == result(cases[1])


# Other launchers


def torchrun(*words: str, folder: Path, token: str) -> subprocess.Popen[str]:
    env = {**os.environ, "TOKEN": token, "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True, env=env)


@pytest.mark.fault("P8")
def test_torchrun_is_told_to_end(tmp_path: Path, mlp: Case, token: str) -> None:
    """Both stop at one step, saved, in much less time than it gives them."""
    mlp.folder.mkdir(exist_ok=True)
    words = ["--standalone", "--nproc-per-node=2", "-m", "cvtrain", *mlp.overrides]
    words += [f"hydra.run.dir={mlp.run_dir}", "task._target_=user_code.Slow"]
    process = torchrun(*words, "trainer.duration=400st", folder=mlp.folder, token=token)
    deadline = time.monotonic() + 60
    while len(mlp.steps) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 25
    status = mlp.status()
    assert (status["state"], status["exit_code"]) == ("preempted", 143), said
    assert said.count("cvtrain: stopped by SIGTERM") == 2
    check_run_dir(mlp.run_dir)


@pytest.mark.fault("P8")
def test_a_port_in_use(mlp: Case) -> None:
    """Where nobody looked for a free one: by hand, or under SLURM."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        env = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
        line = rf"error\[PORT-IN-USE\]: port {port} is in use; .*torchrun --standalone"
        mlp.run(env=env, code=6, last=line, state=None)


@pytest.mark.nightly
def test_two_nodes(tmp_path: Path, mlp: Case, token: str) -> None:
    """Two of torch's agents on loopback, with two processes each."""
    port = free_port()
    mlp.folder.mkdir(exist_ok=True)
    agents = [
        torchrun(
            *("--nnodes=2", f"--node-rank={node}", "--nproc-per-node=2"),
            *("--master-addr=127.0.0.1", f"--master-port={port}", "-m", "cvtrain"),
            *(*mlp.overrides, f"hydra.run.dir={mlp.run_dir}"),
            folder=mlp.folder,
            token=token,
        )
        for node in (0, 1)
    ]
    said = [agent.communicate(timeout=120)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert mlp.status()["step"] == 24
    assert "4 processes share each batch of 16" in said[0]


# Without processes


class Failure:
    def __init__(self, exitcode: int) -> None:
        self.exitcode, self.pid = exitcode, 7


def test_whose_error_it_is(tmp_path: Path) -> None:
    lost = MachineError("another process ended", name="RANK-DIED")
    outcome.write_error(tmp_path, 0, lost)
    assert launch.cause(tmp_path, {1: Failure(-9), 2: Failure(-15)}).what.startswith("process 1,")
    stopped = Stopped("stopped by SIGTERM", signum=15)
    outcome.write_error(tmp_path, 2, stopped)
    assert launch.cause(tmp_path, {}).code == 143
    outcome.write_error(tmp_path, 1, DataError("is cut off", "a.jpg", "mend it", name="BAD-IMAGE"))
    found = launch.cause(tmp_path, {0: Failure(6)}, 15)
    assert (type(found), found.code, found.line()) == (
        *(DataError, 3),
        "cvtrain: error[BAD-IMAGE]: is cut off; a.jpg; mend it",
    )


@pytest.mark.parametrize("value", ["none", "0", "-1"])
def test_a_number_that_is_none(value: str) -> None:
    config = TrainerConfig(devices=int(value) if value.lstrip("-").isdigit() else value)
    with pytest.raises(ConfigError, match=f"devices={value}"):
        check(config, "trainer.")


def test_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.processes(3, "cpu") == 3
    assert launch.processes("auto", "cpu") == 1
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert launch.processes("auto", "auto") == 2
    with pytest.raises(MachineError, match="3 processes were asked for, 2 GPUs are there") as error:
        launch.processes(3, "auto")
    assert error.value.name == "NO-CUDA"
    with pytest.raises(ConfigError, match="2 processes on one device"):
        launch.processes(2, "cuda:1")


def test_all_goes_back() -> None:
    """The launcher's handlers, its environment."""
    before = {signum: signal.getsignal(signum) for signum in launch.SIGNALS}
    environment = dict(os.environ)
    with launch.surroundings(2):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM"
        assert os.environ["OMP_NUM_THREADS"] == "1"
    assert {signum: signal.getsignal(signum) for signum in launch.SIGNALS} == before
    assert dict(os.environ) == environment


def test_an_echo_is_no_second_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux tells of a parent's end once for each of its threads."""
    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)
    monkeypatch.setattr(StopFlag, "echo", 0.2)
    with StopFlag().listening() as stop:
        stop.finish_the_step()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.signum, codes) == (signal.SIGTERM, [])
        time.sleep(0.25)
        os.kill(os.getpid(), signal.SIGTERM)
        assert codes == [143]
