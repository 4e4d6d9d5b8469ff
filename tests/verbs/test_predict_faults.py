"""`cvtrain predict` and what goes wrong: one line, the right code, what is done is kept."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from predicting import (
    frames_of,
    lines,
    predict,
    trained_classifier,
    write_photos,
    write_video,
)

from cvtrain.errors import CheckpointError, ConfigError, CvtrainError, DataError, MachineError


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path)


def test_a_bad_file_among_good_ones(classifier: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "cut, off.jpg").write_bytes((photos / "a (1).jpg").read_bytes()[:300])
    (photos / "text.png").write_text("no picture")
    with pytest.raises(DataError) as caught:
        predict(f"run={classifier}", f"source={photos}", out=tmp_path / "out")
    line = caught.value.line()
    assert "2 of 7" in line
    assert "cut, off.jpg" in line
    assert "text.png" in line
    assert str(tmp_path / "out") in line
    assert len(lines(tmp_path / "out")) == 5


def test_nothing_but_a_bad_file_leaves_nothing(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 no more")
    with pytest.raises(DataError, match=r"a\.jpg") as caught:
        predict(f"run={classifier}", f"source={tmp_path / 'a.jpg'}", out=tmp_path / "out")
    assert caught.value.name == "BAD-IMAGE"
    assert not (tmp_path / "out").exists()


def test_damage_in_a_video_keeps_the_rest(classifier: Path, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", count=80)
    data = bytearray(clip.read_bytes())
    middle = (data.index(b"mdat") + data.index(b"moov")) // 2
    data[middle : middle + 200] = bytes(200)
    clip.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        predict(f"run={classifier}", f"source={clip}", out=tmp_path / "out")
    said = lines(tmp_path / "out")
    assert 50 <= len(said) <= 80
    assert len(frames_of(tmp_path / "out" / "clip.mp4")) == len(said)


@pytest.mark.parametrize(
    ("typed", "kind"),
    [
        ("missing.jpg", DataError),
        ("empty", DataError),
        ("rtsp://127.0.0.1:9/a", MachineError),
        ("98", MachineError),
    ],
)
def test_no_source(
    typed: str, kind: type[CvtrainError], classifier: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(kind):
        predict(f"run={classifier}", f"source={typed}", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_av(classifier: Path, photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (photos / "a.mp4").write_bytes(b"")
    with pytest.raises(ConfigError) as caught:
        predict(f"run={classifier}", f"source={photos / 'a.mp4'}", out=tmp_path / "out")
    assert 'pip install "cvtrain[video]"' in caught.value.line()
    source = photos / "a (1).jpg"  # pictures need none
    assert len(predict(f"run={classifier}", f"source={source}", out=tmp_path / "out")) == 1


def test_no_place_to_write(classifier: Path, photos: Path) -> None:
    with pytest.raises(MachineError, match="type out=FOLDER"):
        predict(f"run={classifier}", f"source={photos}", out=Path("/proc/nowhere"))


def test_a_run_elsewhere_that_nobody_may_write(
    classifier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "elsewhere" / "run"
    shutil.copytree(classifier, copy)
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*")}
    for path in (*before, copy):
        path.chmod(0o555 if path.is_dir() else 0o444)
    monkeypatch.chdir(tmp_path)
    try:
        assert len(predict(f"run={copy}", f"source={photos}", out=tmp_path / "out")) == 5
        assert {p: p.stat().st_mtime_ns for p in copy.rglob("*")} == before
    finally:
        for path in (copy, *before):
            path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.mark.parametrize("target", ["os.system", "torch.nn.functional.torch.hub.load"])
def test_a_hostile_config_runs_nothing(
    target: str, classifier: Path, photos: Path, tmp_path: Path
) -> None:
    path = tmp_path / "hostile.pt"
    state = torch.load(classifier / "checkpoints" / "last.pt", weights_only=True)
    marker = tmp_path / "ran"
    config = yaml.safe_load(state["config"])
    config["model"] |= {"_target_": target, "command": f"touch {marker}"}
    state["config"] = yaml.safe_dump(config)
    torch.save(state, path)
    with pytest.raises(CheckpointError) as caught:
        predict(f"run={path}", f"source={photos}", out=tmp_path / "out")
    assert caught.value.code == 4
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_is_there(
    signum: signal.Signals, code: int, classifier: Path, tmp_path: Path
) -> None:
    clip = write_video(tmp_path / "clip.mp4", count=2000, size=(240, 320))
    words = ["predict", f"run={classifier}", f"source={clip}", "out=out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cvtrain", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    file = tmp_path / "out" / "predictions.jsonl"
    until = time.monotonic() + 60
    while (not file.exists() or file.stat().st_size < 5000) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signum)
    assert process.stderr is not None
    said = process.stderr.read().splitlines()
    assert process.wait(30) == code
    kept = lines(tmp_path / "out")
    assert 20 < len(kept) < 2000
    assert f"{len(kept)} results are kept" in said[-1]
    assert len(frames_of(tmp_path / "out" / "clip.mp4")) == len(kept)
