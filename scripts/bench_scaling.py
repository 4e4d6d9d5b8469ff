"""Images a second of 1, 2, ... processes that share each batch, beside one process alone.

    python scripts/bench_scaling.py                          # two processes, a ResNet-20
    python scripts/bench_scaling.py --devices 1 2 4 8 model=resnet50 data=imagenet

Each is the whole command, of `--steps` steps on data that it draws itself, in turns; of the speeds
that the runs tell (waiting for data and computing) the medians. Each process has one
thread: what a further core brings. Efficiency is the speed over that of as many times one process.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WORDS = ["model=resnet20", "data=shapes", "data.size=32", "data.batch_size=128", "recipe=none"]


def speed(folder: Path, devices: int, words: list[str], steps: int, threads: int | None) -> float:
    """Images a second of one run."""
    run = folder / f"{devices}_{len(list(folder.iterdir()))}"
    command = [sys.executable, "-m", "cvtrain", *words, f"trainer.devices={devices}"]
    command += [f"trainer.duration={steps}st", f"trainer.log_every={steps // 2}st"]
    command += ["eval.max_batches=1", f"eval.every={steps}st", "report=false"]
    command += [f"trainer.threads={threads or 'null'}", f"hydra.run.dir={run}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads((run / "summary.json").read_text())["train/images_per_sec"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--threads", type=int, help="of each process; the default is one on the CPU"
    )
    parser.add_argument("words", nargs="*", help="of the command, in place of the small ResNet's")
    options = parser.parse_args()
    words, threads = options.words or WORDS, options.threads
    if not options.words:
        threads = threads or 1
    with tempfile.TemporaryDirectory() as name:
        speeds: dict[int, list[float]] = {devices: [] for devices in options.devices}
        for _ in range(options.repeats):
            for devices, found in speeds.items():
                found.append(speed(Path(name), devices, words, options.steps, threads))
    one = statistics.median(speeds[options.devices[0]]) / options.devices[0]
    print("| processes | images/s (range) | efficiency |\n|---|---|---|")
    for devices, found in speeds.items():
        middle, share = statistics.median(found), statistics.median(found) / (devices * one)
        print(f"| {devices} | {middle:.0f} ({min(found):.0f} to {max(found):.0f}) | {share:.2f} |")


if __name__ == "__main__":
    main()
