"""Data sets that are not there: fetched from the address in their YAML, or named."""

import hashlib
import http.server
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from tiny import command, summary, write_cifar, write_mnist

from cvtrain.compose import compose_config
from cvtrain.config import config_dir
from cvtrain.data.cifar import CIFAR10
from cvtrain.data.mnist import MNIST
from cvtrain.errors import MachineError


class Server(http.server.SimpleHTTPRequestHandler):
    """Files below a folder; remembers what was asked for."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """A folder, the address at which it is served, and what was asked of it."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = type("Handler", (Server,), {"asked": []})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(handler, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/", handler.asked
    server.shutdown()
    server.server_close()


def hashes(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()}


def test_mnist_is_fetched_once_and_trained_on(
    tmp_path: Path, served: tuple[Path, str, list[str]]
) -> None:
    folder, url, asked = served
    for file in write_mnist(tmp_path / "made").iterdir():
        file.rename(folder / file.name)
    mine = yaml.safe_load((config_dir() / "data/mnist.yaml").read_text())
    mine |= {"url": url, "sha256": hashes(folder)}
    configs = tmp_path / "configs/data"
    configs.mkdir(parents=True)
    (configs / "mine.yaml").write_text(yaml.safe_dump(mine))
    line = ["--config-dir", str(tmp_path / "configs"), "data=mine", f"data_dir={tmp_path / 'data'}"]
    for run in ("first", "second"):
        run_dir = tmp_path / run
        done = command(*line, "debug=smoke", f"hydra.run.dir={run_dir}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert summary(run_dir)["steps"] == 2
    assert len(asked) == 4
    assert hashes(tmp_path / "data/MNIST/raw") == mine["sha256"]


def test_only_what_is_missing_is_fetched(
    tmp_path: Path, served: tuple[Path, str, list[str]]
) -> None:
    """A file that lies there unpacked is there."""
    folder, url, asked = served
    raw = write_mnist(tmp_path / "data", packed=False)
    for file in write_mnist(tmp_path / "made").iterdir():
        file.rename(folder / file.name)
    (raw / "t10k-labels-idx1-ubyte").unlink()
    root, mean, std = str(tmp_path / "data"), [0.1], [0.3]
    MNIST(root=root, mean=mean, std=std, url=url, sha256=hashes(folder))
    assert asked == ["/t10k-labels-idx1-ubyte.gz"]


@pytest.mark.fault("S4")
def test_offline_the_files_and_their_place_are_named(tmp_path: Path) -> None:
    done = command(
        *("data=mnist", f"data_dir={tmp_path / 'data'}", "data.url=https://127.0.0.1:9/"),
        *("debug=smoke", f"hydra.run.dir={tmp_path / 'run'}"),
        cwd=tmp_path,
    )
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 6
    assert line.startswith("cvtrain: error[DOWNLOAD]: ")
    wanted = compose_config(["data=mnist"]).config.data.args["sha256"]
    for word in (*wanted, str(tmp_path / "data/MNIST/raw"), "data_dir="):
        assert word in line
    assert "Traceback" not in done.stderr


def test_cifar_is_fetched_and_unpacked(tmp_path: Path, served: tuple[Path, str, list[str]]) -> None:
    folder, url, asked = served
    write_cifar(tmp_path / "made")
    with tarfile.open(folder / "cifar.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "made/cifar-10-batches-py", "cifar-10-batches-py")
    given = {"root": str(tmp_path / "data"), "mean": [0.5] * 3, "std": [0.2] * 3}
    for _ in range(2):
        source = CIFAR10(**given, url=url, sha256=hashes(folder))
    assert len(source.val(32)) == 24
    assert asked == ["/cifar.tar.gz"]
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert names == {"cifar.tar.gz", "cifar-10-batches-py"}


def test_without_an_address_nothing_is_fetched(tmp_path: Path) -> None:
    done = command("data=cifar10", "data.url=null", f"data_dir={tmp_path}", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("cvtrain: error[NO-DATA]: ")


def test_the_addresses_are_https() -> None:
    for name in ("mnist", "fashion_mnist", "cifar10", "cifar100"):
        arguments = compose_config([f"data={name}"]).config.data.args
        assert arguments["url"].startswith("https://")
        assert all(len(sha256) == 64 for sha256 in arguments["sha256"].values())


def test_a_closed_port_is_a_machine_error(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"cifar-10-python\.tar\.gz"):
        CIFAR10(
            root=str(tmp_path),
            mean=[0.5] * 3,
            std=[0.2] * 3,
            url="http://127.0.0.1:9/",
            sha256={"cifar-10-python.tar.gz": "0" * 64},
        )
