"""Times how fast the command answers beside a bare Hydra application: --help, and a misspelt key.

python scripts/bench_startup.py
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BARE = """
import hydra

@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    pass

main()
"""


def main(repeats: int = 9) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bare.py").write_text(BARE)
        commands = {
            "bare Hydra application": [sys.executable, "bare.py"],
            "cvtrain --help": [sys.executable, "-m", "cvtrain", "--help"],
            "cvtrain optimizer.lrr=0.1": [sys.executable, "-m", "cvtrain", "optimizer.lrr=0.1"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for repeat in range(repeats + 1):  # the first round warms the file cache
            for name, command in commands.items():
                start = time.perf_counter()
                subprocess.run(command, cwd=folder, capture_output=True)
                if repeat:
                    times[name].append(time.perf_counter() - start)
    bare = times["bare Hydra application"]
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, bare, strict=True))
        print(f"{name:<28} {statistics.median(seconds):6.3f} s   {ratio:5.2f} x bare")


if __name__ == "__main__":
    main()
