"""What the tests of `cvtrain predict` share: small runs, pictures, videos, and how to ask."""

import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import command, write_data, write_objects

from cvtrain import cli


def trained(folder: Path, *words: str) -> Path:
    done = command(*words, "debug=smoke", "hydra.run.dir=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def trained_classifier(folder: Path) -> Path:
    """Of a folder's images; its data are gone."""
    words = write_data("folder", folder / "data")
    run = trained(folder, "model=resnet20", "data=folder", "data.image_size=32", *words)
    shutil.rmtree(folder / "data")
    return run


def write_photos(root: Path) -> Path:
    """Wide and tall JPEGs with names as people give them."""
    write_objects(root / "made", count=5)
    folder = root / "photos"
    (folder / "more").mkdir(parents=True)
    names = ["a (1).jpg", "b=c,d.jpg", "new\nline.jpg", "more/a (1).jpg", "UPPER.JPG"]
    for name, file in zip(names, sorted((root / "made" / "train").iterdir()), strict=True):
        shutil.copy(file, folder / name)
    return folder


def predict(*words: str, out: Path) -> list[dict[str, Any]]:
    assert cli.run(["predict", *words, f"out={out}"]) == 0
    return lines(out)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def write_video(path: Path, count: int = 20, size: tuple[int, int] = (72, 96)) -> Path:
    """A bright square that moves, 20 frames a second."""
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'cvtrain[video]'")
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=20, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number in range(count):
            pixels = np.full((*size, 3), 100, np.uint8)
            pixels[20:50, 2 * number % 60 :][:, :30] = 250
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 20)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def frames_of(path: Path) -> list[np.ndarray]:
    import av

    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
