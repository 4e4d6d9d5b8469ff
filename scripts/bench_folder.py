"""Times the start on an image folder, and the memory that it takes, by the number of its files.

    python scripts/bench_folder.py DIR                     # folders of 1,000, 10,000, 100,000 JPEGs
    python scripts/bench_folder.py DIR --classes 2         # in two folders, not in a hundred
    python scripts/bench_folder.py DIR --split             # `train`, and `val` with a tenth

Below DIR, which is made and may stay for another time, there are small JPEGs, and a cache of its
own: the user's is left alone. A start is the construction of `ImageFolder` in a process of its own,
which has imported all and looked at a folder of a few files before; the first one finds no cache,
the second one the first one's. The files are in the memory of the system, not on the disk. Memory
is resident bytes above those of the process before, by file: the most at any time, and what stays.
Medians of `--repeats`.
"""

import argparse
import gc
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
DIFFERENT = 300  # pictures, which are written again and again
AGE = 3  # seconds that a file has not been changed for, before its header is kept in the cache


def write_folder(root: Path, count: int, classes: int, *, split: bool) -> None:
    """`count` JPEGs of 64x48 pixels; with `split` every tenth in `val`."""
    rng, jpegs = np.random.default_rng(0), []
    for _ in range(min(DIFFERENT, count)):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((64, 48), Image.Resampling.BICUBIC).save(jpeg := io.BytesIO(), "JPEG")
        jpegs.append(jpeg.getvalue())
    partial = root.with_name(f"{root.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    for number in range(count):
        part = ("val" if number // classes % 10 == 9 else "train") if split else ""
        folder = partial / part / f"class_{number % classes:03d}"
        if number < 10 * classes:
            folder.mkdir(parents=True, exist_ok=True)
        (folder / f"image_{number:06d}.jpg").write_bytes(jpegs[number % len(jpegs)])
    partial.rename(root)
    time.sleep(AGE)


def resident(name: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def start(root: str, small: str) -> None:
    """In a process of its own: imports, a few files, then what is measured, as a line of JSON."""
    begin = time.perf_counter()
    from cvtrain.data.image_folder import ImageFolder

    imports = time.perf_counter() - begin
    ImageFolder(root=small, mean=MEAN, std=STD)
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    begin = time.perf_counter()
    source = ImageFolder(root=root, mean=MEAN, std=STD)
    seconds = time.perf_counter() - begin
    most, after = resident("VmHWM") - before, resident("VmRSS") - before
    found = {"imports": imports, "seconds": seconds, "most": most, "after": after}
    print(json.dumps(found | {"fingerprint": source.info.fingerprint}))


def measure(root: Path, small: Path, cache: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--start", str(root), str(small)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def bench(options: argparse.Namespace) -> None:
    kind = f"{options.classes}{'-split' if options.split else ''}"
    small, cache = options.folder / "small", options.folder / "cache"
    for root, count in [
        (small, 40),
        *((options.folder / f"{n}-{kind}", n) for n in options.counts),
    ]:
        if not root.exists():
            classes = min(options.classes, count // 20)
            write_folder(root, count, classes, split=options.split and root != small)
    print("| files | start | seconds | most bytes a file | bytes a file after | imports, seconds |")
    print("|---|---|---|---|---|---|")
    for count in options.counts:
        root, runs = options.folder / f"{count}-{kind}", {"first": [], "second": []}
        for _ in range(options.repeats):
            shutil.rmtree(cache, ignore_errors=True)
            for found in runs.values():
                found.append(measure(root, small, cache))
        prints = {run["fingerprint"] for found in runs.values() for run in found}
        assert len(prints) == 1, prints
        for name, found in runs.items():
            middle = {
                key: statistics.median(run[key] for run in found)
                for key in found[0].keys() - {"fingerprint"}
            }
            most, after = (middle[key] / count for key in ("most", "after"))
            print(
                f"| {count:,} | {name} | {middle['seconds']:.2f} | {most:,.0f} | {after:,.0f} "
                f"| {middle['imports']:.1f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="where the JPEGs and the cache are")
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--split", action="store_true", help="folders train and val")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--start", nargs=2, metavar=("ROOT", "SMALL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        start(*options.start)
    elif options.folder is None:
        parser.error("DIR is missing")
    else:
        bench(options)


if __name__ == "__main__":
    sys.exit(main())
