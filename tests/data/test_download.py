"""Downloads from a real server on the loopback, which misbehaves as asked, by real processes."""

import hashlib
import logging
import os
import pty
import signal
import socket
import ssl
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path

import pytest

from cvtrain.data import download
from cvtrain.data.download import fetch, fetch_all, verify
from cvtrain.errors import ConfigError, CvtrainError, DataError, MachineError

CONTENT = os.urandom(1_000_003)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


class Handler(BaseHTTPRequestHandler):
    """The first part of the path says how to behave; what was asked and sent is recorded."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        behaviour = self.path.removeprefix("http://nobody.invalid").split("/")[1]  # as a proxy
        asked = self.headers.get("Range")
        number = len([path for path, _ in self.server.requests if path == self.path])
        self.server.requests.append((self.path, asked))
        self.close_connection = True
        getattr(self, f"do_{behaviour}".replace("-", "_"))(int(asked[6:-1]) if asked else 0, number)

    def head(self, code: int, **headers: object) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def body(self, start: int, end: int = len(CONTENT), content: bytes = CONTENT) -> None:
        """From `start` to `end`, promised to the content's end."""
        if start:
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.head(206, Content_Length=len(content) - start, Content_Range=span)
        else:
            self.head(200, Content_Length=len(content))
        self.server.sent += end - start
        self.wfile.write(content[start:end])

    def do_whole(self, start: int, number: int) -> None:
        self.body(start)

    def do_no_ranges(self, start: int, number: int) -> None:
        self.body(0)

    def do_early(self, start: int, number: int) -> None:
        self.body(start, HALF if number == 0 else len(CONTENT))

    def do_reset(self, start: int, number: int) -> None:
        """No answer at all at first."""
        if number:
            self.body(start)

    def do_overloaded(self, start: int, number: int) -> None:
        if number:
            self.body(start)
        else:
            self.head(503, Content_Length=0)

    def do_chunked(self, start: int, number: int) -> None:
        """No length is told; at first, the end of the last chunk is missing."""
        self.head(200, Transfer_Encoding="chunked")
        for part in (CONTENT[:HALF], CONTENT[HALF:]):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            if number == 0:
                return
        self.wfile.write(b"0\r\n\r\n")

    def do_cut(self, start: int, number: int) -> None:
        """Never more than half."""
        self.body(start, max(start, HALF))

    def do_wrong(self, start: int, number: int) -> None:
        self.body(start, content=bytes(len(CONTENT)))

    def do_too_far(self, start: int, number: int) -> None:
        if start:
            self.head(416, Content_Length=0)
        else:
            self.body(0)

    def do_other_range(self, start: int, number: int) -> None:
        """Answers a range with another one, which a careless client would append."""
        if start:
            self.head(206, Content_Length=10, Content_Range=f"bytes 0-9/{len(CONTENT)}")
            self.wfile.write(CONTENT[:10])
        else:
            self.body(0)

    def do_missing(self, start: int, number: int) -> None:
        self.head(404, Content_Length=0)

    def do_to(self, start: int, number: int) -> None:
        """/to/URL redirects there."""
        self.head(302, Location=self.path.removeprefix("/to/"), Content_Length=0)

    def do_held(self, start: int, number: int) -> None:
        """Half, and the other half when the test says `go`."""
        middle = max(start, HALF)
        self.body(start, middle)
        self.server.go.wait(20)
        self.server.sent += len(CONTENT) - middle
        self.wfile.write(CONTENT[middle:])

    def log_message(self, *arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []  # path, Range
        self.sent = 0  # bytes of content
        self.go = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    @property
    def ranges(self) -> list[str | None]:
        return [asked for _, asked in self.requests]

    def handle_error(self, *arguments: object) -> None:
        pass  # a client that is killed


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.go.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(download, "WAITS", (0.01, 0.02, 0.03))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    caplog.set_level(logging.INFO)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fails(kind: type[CvtrainError], url: str, path: Path, *texts: str, name: str = "") -> str:
    with pytest.raises(kind) as error:
        fetch(url, path, sha256=SHA256)
    assert error.value.name == (name or "DOWNLOAD")
    assert error.value.code == {DataError: 3, MachineError: 6, ConfigError: 2}[kind]
    line = error.value.line()
    for text in (*texts, str(path.absolute())):
        assert text in line, line
    assert not path.exists()
    assert not path.with_name(f"{path.name}.lock").exists()
    return line


def test_a_file_arrives_whole(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "new" / "folder" / "file.gz"
    fetch(f"{server.url}/whole/file.gz", path, sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert listing(path.parent) == ["file.gz"]
    assert caplog.messages == [f"downloading file.gz (1.00MB) to {path.parent}"]
    fetch("http://nobody.invalid/", path, sha256=SHA256)  # it is there: nobody is asked
    assert server.requests == [("/whole/file.gz", None)]


def test_a_part_is_gone_on_from(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:HALF])
    fetch(f"{server.url}/whole/", tmp_path / "file", sha256=SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == [f"bytes={HALF}-"]
    assert server.sent == len(CONTENT) - HALF
    assert listing(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("behaviour", "part", "asked"),
    [
        ("no-ranges", CONTENT[:HALF], 1),
        ("too-far", CONTENT + b"more", 2),
        ("other-range", CONTENT[:HALF], 2),
    ],
)
def test_a_part_that_cannot_be_gone_on_from(
    server: Server, tmp_path: Path, behaviour: str, part: bytes, asked: int
) -> None:
    (tmp_path / "file.part").write_bytes(part)
    fetch(f"{server.url}/{behaviour}/", tmp_path / "file", sha256=SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(part)}-", None][:asked]


@pytest.mark.fault("S4")
@pytest.mark.parametrize(
    ("behaviour", "second"),
    [("early", f"bytes={HALF}-"), ("chunked", "restart"), ("reset", None), ("overloaded", None)],
)
def test_a_connection_that_ends_early_is_tried_again(
    server: Server, tmp_path: Path, behaviour: str, second: str | None
) -> None:
    fetch(f"{server.url}/{behaviour}/", tmp_path / "file", sha256=SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(server.requests) == 2
    if second == "restart":
        assert str(server.ranges[1]).startswith("bytes=")  # but it was sent all of it
    else:
        assert server.ranges[1] == second
        assert server.sent == len(CONTENT)  # nothing twice
    assert listing(tmp_path) == ["file"]


@pytest.mark.fault("S4")
def test_a_server_that_always_ends_early(server: Server, tmp_path: Path) -> None:
    url, path = f"{server.url}/cut/file", tmp_path / "file"
    line = fails(MachineError, url, path, url, f"after {HALF} of {len(CONTENT)} bytes")
    assert "file.part is kept" in line
    assert len(server.requests) == 4
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:HALF]
    fetch(f"{server.url}/whole/file", path, sha256=SHA256)  # the next start goes on from it
    assert path.read_bytes() == CONTENT
    assert server.ranges[-1] == f"bytes={HALF}-"


@pytest.mark.fault("S4")
@pytest.mark.parametrize("part", [b"", CONTENT[:HALF]], ids=["new", "resumed"])
def test_the_wrong_content(server: Server, tmp_path: Path, part: bytes) -> None:
    if part:
        (tmp_path / "file.part").write_bytes(part)
    url, wrong = f"{server.url}/wrong/file", part + bytes(len(CONTENT) - len(part))
    got = hashlib.sha256(wrong).hexdigest()
    fails(DataError, url, tmp_path / "file", url, got[:12], SHA256[:12])
    assert listing(tmp_path) == []


def test_what_is_there_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    verify(path, SHA256)
    path.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    for _ in ("changed", "missing"):
        with pytest.raises(DataError) as error:
            verify(path, SHA256)
        assert (error.value.code, error.value.name) == (3, "DOWNLOAD")
        assert str(path) in error.value.line()
        if path.exists():
            got = hashlib.sha256(path.read_bytes()).hexdigest()
            assert got[:12] in error.value.line()
            assert SHA256[:12] in error.value.line()
        path.unlink(missing_ok=True)


@pytest.mark.fault("S4")
def test_what_cannot_be_had_says_where_to_put_it(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file"
    url = f"{server.url}/missing/file"
    fails(MachineError, url, path, url, "404")
    assert len(server.requests) == 1  # asking again would not help
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/file"
        fails(MachineError, url, path, url, "Connection refused")
    url = "http://nobody.invalid/file"
    fails(MachineError, url, path, url)
    for url in (f"file://{__file__}", "no-address"):
        fails(MachineError, url, path, url, "not an http(s) address")
    assert listing(tmp_path) == []


def test_a_silent_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts, and never says a word."""
    assert download.TIMEOUT == 30
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        fails(MachineError, url, tmp_path / "file", url, "timed out")


def test_a_proxy_is_asked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    fetch("http://nobody.invalid/whole/file", tmp_path / "file", sha256=SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.requests == [("http://nobody.invalid/whole/file", None)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_disk_that_is_full(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").symlink_to("/dev/full")
    url, path = f"{server.url}/whole/file", tmp_path / "file"
    with pytest.raises(MachineError) as error:
        fetch(url, path, sha256=SHA256)
    assert (error.value.code, error.value.name) == (6, "NO-SPACE")
    assert len(server.requests) == 1
    assert listing(tmp_path) == ["file.part"]


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where a directory has to be")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/1")):
        with pytest.raises(MachineError) as error:
            fetch(f"{server.url}/whole/", folder / "name", sha256=SHA256)
        assert (error.value.code, error.value.name) == (6, "NOT-WRITABLE")
        assert "data_dir=FOLDER" in error.value.line()
    assert server.requests == []


def test_a_whole_set(server: Server, tmp_path: Path) -> None:
    files = dict.fromkeys(("a", "b", "c"), SHA256)
    (tmp_path / "b").write_bytes(b"there already")
    fetch_all(f"{server.url}/whole/", files, tmp_path)
    assert [path for path, _ in server.requests] == ["/whole/a", "/whole/c"]
    assert listing(tmp_path) == ["a", "b", "c"]
    assert (tmp_path / "c").read_bytes() == CONTENT


@pytest.mark.parametrize(("behaviour", "kind"), [("missing", MachineError), ("wrong", DataError)])
def test_a_set_of_which_some_is_missing(
    server: Server, tmp_path: Path, behaviour: str, kind: type[CvtrainError]
) -> None:
    """All that is still missing is named at once, with the folder that it belongs into."""
    files = dict.fromkeys(("first", "second", "third", "fourth"), SHA256)
    (tmp_path / "first").write_bytes(CONTENT)
    (tmp_path / "third").write_bytes(CONTENT)
    with pytest.raises(kind) as error:
        fetch_all(f"{server.url}/{behaviour}", files, tmp_path)
    line = error.value.line()
    assert error.value.name == "DOWNLOAD"
    assert f"put second, fourth into {tmp_path}" in line
    assert "data_dir=FOLDER" in line
    assert f"{server.url}/{behaviour}/second" in line


CODE = """
import logging, sys
from pathlib import Path
from cvtrain.data.download import fetch
from cvtrain.engine.signals import StopFlag
from cvtrain.errors import CvtrainError
logging.basicConfig(level=logging.INFO, format="%(message)s")
try:
    with StopFlag().listening():
        fetch(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3])
    assert "torch" not in sys.modules
except CvtrainError as error:
    print(error.line(), file=sys.stderr)
    sys.exit(error.code)
"""


class Process:
    """A process that fetches, its lines on stderr as they come."""

    def __init__(self, url: str, path: Path, **environment: str) -> None:
        command = [sys.executable, "-c", CODE, url, str(path), SHA256]
        environment = os.environ | environment
        self.popen = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.pid = self.popen.pid
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stderr is not None
        self.lines.extend(line.rstrip("\n") for line in self.popen.stderr)

    def end(self) -> int:
        try:
            return self.popen.wait(20)
        finally:
            self.popen.kill()
            self._reader.join()
            assert self.popen.stderr is not None
            self.popen.stderr.close()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def half_there(path: Path) -> bool:
    part = path.with_name(f"{path.name}.part")
    return part.exists() and part.stat().st_size > HALF - 10_000


@pytest.mark.fault("X2")
def test_two_processes_share_one_download(server: Server, tmp_path: Path) -> None:
    url, path = f"{server.url}/held/file", tmp_path / "file"
    first = Process(url, path)
    until(lambda: len(server.requests) == 1)
    second = Process(url, path)
    waiting = f"waiting for process {first.pid} that downloads file"
    until(lambda: second.lines == [waiting])
    server.go.set()
    assert [first.end(), second.end()] == [0, 0]
    assert path.read_bytes() == CONTENT
    assert server.sent == len(CONTENT)
    assert server.ranges == [None]
    assert second.lines == [waiting]
    assert listing(tmp_path) == ["file"]


@pytest.mark.fault("X2")
def test_eight_processes_at_once(server: Server, tmp_path: Path) -> None:
    """Whoever comes first, and however the lock's file comes and goes: one download."""
    all_of_them = [Process(f"{server.url}/held/file", tmp_path / "file") for _ in range(8)]
    until(lambda: sum("waiting" in line for each in all_of_them for line in each.lines) == 7)
    server.go.set()
    assert [process.end() for process in all_of_them] == [0] * 8
    assert server.ranges == [None]
    assert listing(tmp_path) == ["file"]


@pytest.mark.fault("X2")
def test_the_second_goes_on_when_the_first_is_killed(server: Server, tmp_path: Path) -> None:
    url, path = f"{server.url}/held/file", tmp_path / "file"
    first = Process(url, path)
    until(lambda: half_there(path))
    second = Process(url, path)
    until(lambda: len(second.lines) == 1)
    have = (tmp_path / "file.part").stat().st_size
    os.kill(first.pid, signal.SIGKILL)
    assert first.end() == -signal.SIGKILL
    server.go.set()
    assert second.end() == 0
    assert path.read_bytes() == CONTENT
    assert server.ranges[0] is None
    assert len(server.ranges) == 2
    start = int(str(server.ranges[1]).removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= HALF
    assert start <= have
    assert listing(tmp_path) == ["file"]


@pytest.mark.parametrize("who", ["first", "second"])
def test_a_signal_ends_it_at_once(server: Server, tmp_path: Path, who: str) -> None:
    """The one that downloads and the one that waits; the part stays for the next start."""
    url, path = f"{server.url}/held/file", tmp_path / "file"
    first = Process(url, path)
    until(lambda: half_there(path))
    second = Process(url, path)
    until(lambda: len(second.lines) == 1)
    assert second.lines == [f"waiting for process {first.pid} that downloads file"]
    stopped, other = (first, second) if who == "first" else (second, first)
    os.kill(stopped.pid, signal.SIGTERM)
    assert stopped.end() == 143
    assert stopped.lines[-1] == "cvtrain: stopped by SIGTERM before the first step"
    # A lock was given up just now; that does not let a third one in beside the other.
    third = Process(url, path)
    until(lambda: third.lines == [f"waiting for process {other.pid} that downloads file"])
    server.go.set()
    assert [other.end(), third.end()] == [0, 0]
    assert server.ranges[0] is None
    assert len(server.ranges) == (2 if who == "first" else 1)
    assert path.read_bytes() == CONTENT
    assert listing(tmp_path) == ["file"]


def test_a_bar_on_a_terminal_only(server: Server, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    command = [sys.executable, "-c", CODE, f"{server.url}/whole/file", str(tmp_path / "file")]
    done = subprocess.run([*command, SHA256], stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "file: 100%" in shown
    assert "downloading" not in shown
    process = Process(f"{server.url}/whole/file", tmp_path / "again")
    assert process.end() == 0
    assert process.lines == [f"downloading again (1.00MB) to {tmp_path}"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that only those trust who are told to, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "certificate.pem", folder / "key.pem"
    options = {"-newkey": "rsa:2048", "-days": "2", "-subj": "/CN=127.0.0.1"}
    options |= {"-addext": "subjectAltName=IP:127.0.0.1"}
    options |= {"-out": str(files[0]), "-keyout": str(files[1])}
    command = ["openssl", "req", "-x509", "-nodes", *chain(*options.items())]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no certificate without the openssl command: {error}")
    return files


@pytest.fixture
def secure(server: Server, certificate: tuple[Path, Path]) -> Iterator[Server]:
    """A second server, of https."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with Server() as secure:
        secure.socket = context.wrap_socket(secure.socket, server_side=True)
        secure.url = secure.url.replace("http:", "https:")
        thread = threading.Thread(target=secure.serve_forever, args=(0.01,))
        thread.start()
        yield secure
        secure.shutdown()
        thread.join()


@pytest.mark.fault("S4")
def test_https_never_becomes_http(
    server: Server, secure: Server, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    trusted = {"SSL_CERT_FILE": str(certificate[0])}
    plain, path = f"{server.url}/whole/file", tmp_path / "file"
    there = f"{secure.url}/to/{plain}"
    # At once, and by way of http -> https -> http.
    for url in (there, f"{server.url}/to/{there}"):
        process = Process(url, path, **trusted)
        assert process.end() == 6
        assert process.lines[-1].startswith("cvtrain: error[DOWNLOAD]: cannot download ")
        assert f"it redirects from https to {plain}, which is refused" in process.lines[-1]
    assert [path for path, _ in server.requests] == [f"/to/{there}"]  # never asked for the file
    assert listing(tmp_path) == []
    # The same servers, the other way round: from http to https, with the range.
    (tmp_path / "file.part").write_bytes(CONTENT[:HALF])
    assert Process(f"{server.url}/to/{secure.url}/whole/file", path, **trusted).end() == 0
    assert path.read_bytes() == CONTENT
    assert secure.requests[-1] == ("/whole/file", f"bytes={HALF}-")


@pytest.mark.fault("S4")
def test_a_certificate_that_nobody_vouches_for(secure: Server, tmp_path: Path) -> None:
    process = Process(f"{secure.url}/whole/file", tmp_path / "file")
    assert process.end() == 6
    assert "certificate verify failed" in process.lines[-1]
    assert secure.requests == []
    assert listing(tmp_path) == []
