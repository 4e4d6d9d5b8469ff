"""Real videos, written here by PyAV, read and written back."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from cvtrain.errors import CvtrainError, DataError, MachineError
from cvtrain.media.record import Recording
from cvtrain.media.sources import Item, Kind
from cvtrain.media.video import Frame, Video

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'cvtrain[video]'")

RED, GREEN, BLUE = (200, 30, 40), (20, 180, 60), (40, 60, 220)


def flag(height: int = 96, width: int = 144) -> np.ndarray:
    """Red, green and blue columns."""
    pixels = np.empty((height, width, 3), np.uint8)
    for number, colour in enumerate((RED, GREEN, BLUE)):
        pixels[:, number * width // 3 : (number + 1) * width // 3] = colour
    return pixels


def write(
    path: Path, times: Sequence[int], *, size: tuple[int, int] = (96, 144), codec: str = "libx264"
) -> Path:
    """Frames at times in milliseconds; each has a white row, as far down as it is late."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25, options={"g": "10"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(times):
            pixels = flag(*size)
            pixels[2 * number % size[0]] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def item(path: Path) -> Item:
    return Item(str(path), path, Kind.video, path.stem)


def frames(path: Path) -> list[Frame]:
    return [*Video(item(path))]


def record(path: Path, pictures: Sequence[np.ndarray], times: Sequence[Fraction]) -> Path:
    recording = Recording(path, base=Fraction(1, 1000), rate=Fraction(25))
    for picture, time in zip(pictures, times, strict=True):
        recording.add(picture, time)
    recording.close()
    return path


def near(pixels: np.ndarray, colour: tuple[int, int, int], by: int = 12) -> bool:
    return bool((abs(pixels.astype(int) - colour) <= by).all())


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".mov"])
def test_all_frames_in_order_with_their_times(suffix: str, tmp_path: Path) -> None:
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    clip = Video(item(write(tmp_path / f"a (1)=,{suffix}", range(0, 1200, 40), codec=codec)))
    got = [*clip]
    assert [frame.number for frame in got] == [*range(30)]
    assert [float(frame.time) for frame in got] == pytest.approx([0.04 * k for k in range(30)])
    assert near(got[0].pixels[60, 20], RED, 30)
    assert near(got[0].pixels[60, 130], BLUE, 30)
    assert clip.flaw == ""


def test_a_variable_rate_stays_what_it_is(tmp_path: Path) -> None:
    times = [0, 10, 15, 200, 233, 1000, 1001]
    got = frames(write(tmp_path / "a.mp4", times))
    assert [round(1000 * frame.time) for frame in got] == times
    copy = record(tmp_path / "b.mp4", [f.pixels for f in got], [f.time for f in got])
    assert [round(1000 * frame.time) for frame in frames(copy)] == times


def test_colours_survive(tmp_path: Path) -> None:
    copy = record(tmp_path / "a.mp4", [flag()] * 3, [Fraction(k, 25) for k in range(3)])
    [first, *_] = frames(copy)
    for column, colour in ((20, RED), (70, GREEN), (120, BLUE)):
        assert near(first.pixels[40:60, column], colour, 6)


def test_odd_sides_and_a_size_that_changes(tmp_path: Path) -> None:
    pictures = [flag(97, 145), flag(97, 145), flag(40, 60)]
    got = frames(record(tmp_path / "a.mp4", pictures, [Fraction(k, 25) for k in range(3)]))
    assert [frame.pixels.shape for frame in got] == [(98, 146, 3)] * 3
    assert near(got[2].pixels[50, 20], RED, 20)


def test_two_frames_of_one_time_are_both_there(tmp_path: Path) -> None:
    times = [Fraction(0), Fraction(0), Fraction(1, 25), Fraction(1, 50)]
    assert len(frames(record(tmp_path / "a.mp4", [flag()] * 4, times))) == 4


def test_a_phone_held_upright(tmp_path: Path) -> None:
    """The matrix in the track's header says that a player is to turn it clockwise."""
    path = write(tmp_path / "a.mp4", range(0, 200, 40))
    one, zero, minus = b"\x00\x01\x00\x00", bytes(4), b"\xff\xff\x00\x00"
    upright = one + zero * 3 + one + zero * 3 + b"\x40\x00\x00\x00"
    turned = zero + one + zero + minus + zero * 4 + b"\x40\x00\x00\x00"
    data = path.read_bytes()
    header = data.index(b"tkhd")
    path.write_bytes(data[:header] + data[header:].replace(upright, turned, 1))
    pixels = frames(path)[0].pixels
    assert pixels.shape == (144, 96, 3)
    assert near(pixels[20, 40:60], RED, 30)  # what was left is above
    assert near(pixels[130, 40:60], BLUE, 30)


def test_damage_in_the_middle_is_named_and_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", range(0, 4000, 40))
    data = bytearray(path.read_bytes())
    start, end = data.index(b"mdat"), data.index(b"moov")
    middle = (start + end) // 2
    data[middle : middle + 300] = bytes(300)
    path.write_bytes(data)
    clip = Video(item(path))
    got = [*clip]
    assert 80 <= len(got) <= 100
    assert "damaged" in clip.flaw
    assert got[-1].time > 3.8


def test_a_file_that_breaks_off_says_so(tmp_path: Path) -> None:
    options = {"movflags": "+faststart"}  # its index stands before its frames
    path = tmp_path / "a.mp4"
    given = str(write(tmp_path / "b.mp4", range(0, 4000, 40)))
    with av.open(given) as whole, av.open(str(path), "w", options=options) as file:
        stream = file.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux():
            if packet.dts is not None:
                packet.stream = stream
                file.mux(packet)
    assert Video(item(path)).count == 100
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    clip = Video(item(path))
    got = [*clip]
    assert 30 < len(got) < 90
    assert clip.flaw == f"it breaks off after {len(got)} of 100 frames"


def fails(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        frames(path)
    assert caught.value.name == "BAD-VIDEO"
    return caught.value.line()


def test_what_is_no_video(tmp_path: Path) -> None:
    for name, data in (("empty.mp4", b""), ("text.mp4", b"no video\n" * 50)):
        (tmp_path / name).write_bytes(data)
        assert name in fails(tmp_path / name)
    path = write(tmp_path / "codec.mp4", range(0, 400, 40))
    path.write_bytes(path.read_bytes().replace(b"avc1", b"xyz1"))
    assert "codec" in fails(path)
    with av.open(str(tmp_path / "sound.wav"), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.rate = 8000
        file.mux(stream.encode(sound))
    assert "no video in it" in fails(tmp_path / "sound.wav")


def stream_fails(address: str, timeout: float) -> CvtrainError:
    with pytest.raises(MachineError) as caught:
        [*Video(Item(address, address, Kind.live, "stream"), timeout=timeout)]
    assert caught.value.name == "STREAM"
    return caught.value


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_streams_that_do_not_answer(scheme: str) -> None:
    stream_fails(f"{scheme}://127.0.0.1:9/live", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the call, says nothing
        stream_fails(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/live", 0.5)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def test_a_video_from_an_address(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", range(0, 1000, 40))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        address = f"http://127.0.0.1:{http.server_port}/a.mp4"
        assert len([*Video(Item(address, address, Kind.video, "a"), timeout=5)]) == 25
        http.shutdown()
        thread.join()


def test_a_camera_that_is_not_there() -> None:
    with pytest.raises(MachineError, match="camera 97"):
        Video(Item("camera 97", "97", Kind.live, "camera"))


def test_a_recording_can_be_played_after_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, sys, numpy as np\n"
        "from fractions import Fraction\n"
        "from pathlib import Path\n"
        "from cvtrain.media.record import Recording\n"
        "to = Recording(Path(sys.argv[1]), base=Fraction(1, 25), rate=Fraction(25))\n"
        "rng = np.random.default_rng(0)\n"
        "for k in range(400):\n"
        "    to.add(rng.integers(0, 256, (96, 144, 3), np.uint8), Fraction(k, 25))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.mp4")], check=False)
    assert done.returncode == -signal.SIGKILL
    got = 0
    with av.open(str(tmp_path / "a.mp4")) as file:
        for packet in file.demux(video=0):
            try:
                got += len(packet.decode())
            except av.FFmpegError:
                break  # where it is torn
    assert got > 100


def test_no_place_to_write() -> None:
    recording = Recording(Path("/proc/a.mp4"), base=Fraction(1, 25), rate=Fraction(25))
    with pytest.raises(MachineError, match="type out=FOLDER"):
        recording.add(flag(), Fraction(0))
