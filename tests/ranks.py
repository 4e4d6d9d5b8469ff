"""Several processes of one run, as torchrun would start them."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

# Starts the command once per rank, with the environment that torchrun would give. Forked from one
# process that has the imports behind it, for they take longer than all of these runs.
DRIVER = """
import json, os, signal, sys, time
import matplotlib.backends.backend_agg, torch.utils.tensorboard
import cvtrain.verbs.eval, cvtrain.verbs.train
from cvtrain.cli import main
from cvtrain.engine.logs import Logs

def rank(number, world_size, port, late, arguments, env, errors):
    os.environ |= env
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.alarm(60)  # whoever waits for ever dies of it
    if world_size > 1:
        os.environ |= {
            "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
        }
    if number == 0 and late:
        opened = Logs.open
        Logs.open = lambda *a, **k: (time.sleep(late), opened(*a, **k))[1]
    sys.argv = ["cvtrain", *arguments]
    main()

def start(name, world_size, port, late, arguments, env):
    children = []
    for number in range(world_size):
        child = os.fork()
        if child == 0:
            try:
                rank(number, world_size, port, late, arguments, env, f"{name}.{number}.err")
            except SystemExit as end:
                os._exit(end.code)
            finally:
                os._exit(99)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

print(json.dumps({run["name"]: start(**run) for run in json.loads(sys.argv[1])}))
"""


@dataclass(frozen=True)
class Run:
    """A command in so many processes; `late`: the seconds by which the first begins later."""

    name: str
    world_size: int
    arguments: list[str]
    late: float = 0
    env: dict[str, str] = field(default_factory=dict)


def start(root: Path, runs: list[Run]) -> None:
    """One after the other; how the processes of each ended is then in `root/codes.json`, what they
    said in `root/NAME.RANK.err`.
    """
    told = [{**asdict(run), "port": free_port()} for run in runs]
    command = [sys.executable, "-c", DRIVER, json.dumps(told)]
    paths = [str(Path(__file__).parent / "reliability"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    file = root / "codes.json"
    codes = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(codes | json.loads(done.stdout.splitlines()[-1])))


def succeeded(root: Path, name: str) -> None:
    codes = json.loads((root / "codes.json").read_text())[name]
    said = "\n".join(file.read_text() for file in sorted(root.glob(f"{name}.*.err")))
    assert not any(codes), f"{codes}: {said}"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
