"""`cvtrain predict` on a video against its peer: the network alone, on frames that lie ready.

    python scripts/bench_predict.py RUN VIDEO    # rates; memory after 100 and 1,000 frames

The network alone is timed before and after, in the same process, with the same batches. Memory is
the peak of a process of its own, on a video of so many frames (VIDEO, again and again).
"""

import argparse
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from time import perf_counter

import av
import torch

from cvtrain.compose import compose_config
from cvtrain.engine.machine import settings
from cvtrain.engine.signals import StopFlag
from cvtrain.media.sources import find
from cvtrain.trained.network import of_run
from cvtrain.verbs import predict as verb

CPU = torch.device("cpu")
KEYS = {"format": "jsonl", "top_k": "5", "threshold": "", "nms": "", "draw": "true"}
KEYS |= {"show": "false", "precision": "", "compile": "false"}


def rates(run: str, video: Path, out: Path, *, rest: float) -> None:
    composed = compose_config([])
    network = of_run(run, composed, [], device=CPU)
    asked = verb.read_keys(str(out), **KEYS)
    working = verb.Predicting(network, asked, CPU, verb.prepare(network, asked))
    with settings(network.config.trainer), StopFlag().listening() as stop:
        before = alone(working, video, rest)
        begun, waited = perf_counter(), waiting()
        working.all_of(find(str(video), out), stop)
        seconds, waited = perf_counter() - begun, waiting() - waited
        rate = working.done / seconds
        after = alone(working, video, rest)
    peer = max(before, after)  # others may have been at work in one of them
    print(f"predict {rate:.1f} frames/s; the network alone {before:.1f} before, {after:.1f} after")
    print(
        f"share   {rate / peer:.2f}; of {seconds:.1f} s the network waited {waited:.1f} for a core"
    )


def waiting() -> float:
    """Seconds that this thread was ready and had no core: with more than none, measure again."""
    file = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
    return int(file.read_text().split()[1]) / 1e9 if file.exists() else 0.0


def alone(working: verb.Predicting, video: Path, seconds: float) -> float:
    """Frames a second of the network on the video, without what makes frames and draws on them."""
    inputs, size = working.inputs, verb.FRAMES
    with av.open(str(video)) as file:
        seen = [
            inputs.of(frame.to_ndarray(format="rgb24"))
            for frame, _ in zip(file.decode(video=0), range(64 * size), strict=False)
        ]
    groups = [seen[first : first + size] for first in range(0, len(seen) - size + 1, size)]
    done, begun = 0, perf_counter()
    with torch.no_grad():
        while perf_counter() - begun < seconds:
            for group in groups:
                found = working.task.predict(network_of(working), inputs.batch(group))
                working.task.told(found, group, working.wanted)
                done += len(group)
    return done / (perf_counter() - begun)


def network_of(working: verb.Predicting) -> torch.nn.Module:
    return working.network.model


def repeated(video: Path, frames: int, to: Path) -> None:
    """The packets of a video again and again, until there are so many frames."""
    with av.open(str(to), "w") as out:
        stream, done, start = None, 0, 0
        while done < frames:
            with av.open(str(video)) as file:
                own = file.streams.video[0]
                stream = stream or out.add_stream_from_template(own)
                for packet in file.demux(own):
                    if packet.dts is None or done == frames:
                        break
                    packet.stream, done = stream, done + 1
                    packet.pts, packet.dts = packet.pts + start, packet.dts + start
                    out.mux(packet)
                start += own.duration


def memory(run: str, video: Path, out: Path) -> int:
    """The peak of `cvtrain predict` in MB."""
    words = ["predict", f"run={run}", f"source={video}", f"out={out}"]
    # A process's own ru_maxrss would begin with that of the one that started it.
    code = f"from cvtrain import cli; cli.run({words}); print(open('/proc/self/status').read())"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    peak = re.search(r"VmHWM:\s+(\d+)", done.stdout)
    if done.returncode or peak is None:
        sys.exit("cvtrain predict has failed")
    return int(peak[1]) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("video", type=Path)
    parser.add_argument("--seconds", type=float, default=5, help="for the network alone, twice")
    parser.add_argument("--frames", type=int, nargs="+", default=[100, 1000], help="for memory")
    arguments = parser.parse_args()
    verb.speak(30)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rates(arguments.run, arguments.video, folder / "out", rest=arguments.seconds)
        for frames in arguments.frames:
            repeated(arguments.video, frames, folder / f"{frames}.mp4")
            peak = memory(arguments.run, folder / f"{frames}.mp4", folder / "out")
            print(f"{frames:6} frames, peak {peak} MB")


if __name__ == "__main__":
    main()
