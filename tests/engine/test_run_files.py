"""What a run leaves to look at: figures, times, pictures, settings; the same after a resume."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tiny import metrics, summary, write_mnist

from cvtrain.build import build_parts
from cvtrain.compose import compose_config
from cvtrain.engine.checkpoint import read_checkpoint
from cvtrain.engine.distributed import Ranks
from cvtrain.verbs.train import train

PICTURES = {"samples", "confusion", "worst", "reliability"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    write_mnist(root, train=50, val=23)
    return root


def started(digits: Path, run: Path, *typed: str) -> None:
    words = [
        *("model=lenet5", "data=mnist", "recipe=none", "scheduler=constant", f"data_dir={digits}"),
        *("data.batch_size=10", "trainer.duration=2ep", "trainer.threads=1", "eval.batch_size=9"),
        *(f"hydra.run.dir={run}", *typed),
    ]
    try:
        train(compose_config(words), words)
    finally:
        logging.getLogger("cvtrain").handlers = []


@pytest.fixture(scope="module")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    started(digits, run, "trainer.ema=0.5", "trainer.log_every=1st")
    return run


def events(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run), size_guidance={"images": 0, "scalars": 0}).Reload()


def image_steps(run: Path) -> dict[str, list[int]]:
    shown = events(run)
    return {tag: [event.step for event in shown.Images(tag)] for tag in shown.Tags()["images"]}


def test_every_file(trained: Path) -> None:
    names = {path.name for path in trained.iterdir() if "events" not in path.name}
    names = {name for name in names if not name.endswith(".diff")}
    assert names == {
        *("config.yaml", "metrics.jsonl", "checkpoints", "summary.json", "status.json"),
        *("environment.json", "origins.json", "curves.png"),
        *(f"{name}.png" for name in PICTURES),
    }
    for name in PICTURES:
        with Image.open(trained / f"{name}.png") as picture:
            picture.verify()


def test_the_time_is_split_and_kept(trained: Path) -> None:
    told, saved = summary(trained), read_checkpoint(trained / "checkpoints/last.pt")["position"]
    assert told["time"].keys() == {"data", "compute", "eval", "save"}
    assert all(seconds > 0 for seconds in saved["time"].values())
    assert sum(told["time"].values()) <= told["seconds"] + 0.05  # rounded
    assert sum(saved["time"].values()) <= saved["seconds"]
    assert saved["seconds"] <= told["seconds"] + 0.01  # the last save is not in itself


def test_errors_of_classes_make_up_the_error(trained: Path) -> None:
    told = summary(trained)
    rows = told["per_class"]
    assert [*rows] == [str(digit) for digit in range(10)]
    assert sum(row["samples"] for row in rows.values()) == 23
    wrong = sum(row["samples"] * (row["error"] or 0) / 100 for row in rows.values())
    assert 100 * wrong / 23 == pytest.approx(told["val/top1_err"], abs=1e-3)
    assert told["skipped_steps"] == 0


def test_pictures_in_tensorboard_are_the_files(trained: Path) -> None:
    assert image_steps(trained) == {
        "pictures/samples": [0],
        "pictures/confusion": [10],
        "pictures/worst": [10],
        "pictures/reliability": [10],
    }
    shown = events(trained)
    for name in PICTURES:
        [event] = shown.Images(f"pictures/{name}")
        with Image.open(trained / f"{name}.png") as picture:
            assert (event.width, event.height) == picture.size
        image = np.array(Image.open(io.BytesIO(event.encoded_image_string)))
        assert (image == np.array(Image.open(trained / f"{name}.png"))).all()


def test_settings_and_figures_are_beside_the_curves(trained: Path) -> None:
    assert not [path for path in trained.iterdir() if path.is_dir() and path.name != "checkpoints"]
    found = events(trained)
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    given = HParamsPluginData.FromString(content).session_start_info.hparams
    settings = {
        name: getattr(value, value.WhichOneof("kind") or "") for name, value in given.items()
    }
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert (settings["model"], settings["data"], settings["recipe"]) == ("lenet5", "mnist", "none")
    assert settings["optimizer.lr"] == config["optimizer"]["lr"]
    assert settings["trainer.ema"] == 0.5
    assert settings["trainer.clip_norm"] == "None"
    assert (settings["seed"], settings["data.batch_size"]) == (0, 10)
    assert not {"trainer.workers", "data_dir", "data.root"} & settings.keys()
    figures = {key for key in summary(trained) if key.startswith("val/")}
    assert figures
    assert figures <= set(found.Tags()["scalars"])


def curves(run: Path) -> dict[str, list[int]]:
    shown = events(run)
    return {tag: [event.step for event in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def change_status(run: Path, **changes: Any) -> None:
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | changes))


def test_killed_after_its_last_evaluation(digits: Path, tmp_path: Path) -> None:
    """Nothing is left to train: the evaluation is done again for its pictures, shown once."""
    run = tmp_path / "run"
    started(digits, run, "trainer.log_every=1st")
    before, told = curves(run), summary(run)
    files = {name: (run / f"{name}.png").read_bytes() for name in PICTURES}
    change_status(run, state="running")
    for name in ("confusion.png", "worst.png", "summary.json"):
        (run / name).unlink()
    started(digits, run, "trainer.log_every=1st", "resume=auto")
    assert curves(run) == before
    assert before["train/loss"] == [*range(1, 11)]
    assert all(len(steps) == 1 for steps in image_steps(run).values())
    assert {name: (run / f"{name}.png").read_bytes() for name in PICTURES} == files
    again = summary(run)
    for name in ("per_class", "val/loss", "val/top1_err", "steps"):
        assert again[name] == told[name]
    assert len(metrics(run)) == 12
    starts = json.loads((run / "environment.json").read_text())["starts"]
    assert len(starts) == 2


def test_an_extended_run_has_each_picture_once_a_step(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    started(digits, run)
    seconds = summary(run)["time"]
    extended = ("trainer.duration=3ep", "resume=auto", "resume_allow=[trainer.duration]")
    started(digits, run, *extended)
    assert all(len(steps) == len(set(steps)) for steps in image_steps(run).values())
    assert image_steps(run)["pictures/confusion"][-1] == 15
    assert image_steps(run)["pictures/samples"] == [0]
    assert summary(run)["time"]["compute"] > seconds["compute"]  # over both


def test_begun_anew_before_its_first_checkpoint(digits: Path, tmp_path: Path) -> None:
    """Killed so early that nothing was saved: the old pictures and curves go."""
    run = tmp_path / "run"
    started(digits, run, "trainer.log_every=1st")
    change_status(run, state="running")
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    started(digits, run, "trainer.log_every=1st", "resume=auto")
    assert image_steps(run) == {f"pictures/{n}": [0 if n == "samples" else 10] for n in PICTURES}
    assert curves(run)["train/loss"] == [*range(1, 11)]


def test_a_picture_that_fails_ends_no_run(
    digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(self: Any, index: int, split: str = "val") -> torch.Tensor:
        raise KeyError(f"no picture of {split}[{index}]")

    monkeypatch.setattr("cvtrain.data.mnist.MNIST.image_of", broken)
    run = tmp_path / "run"
    started(digits, run)
    said = capsys.readouterr()
    assert "warning: pictures left out: KeyError: 'no picture of val[" in said.err
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert "samples.png" in said.out


def test_one_batch_is_learnt_by_heart(digits: Path, tmp_path: Path) -> None:
    """debug=overfit, with a recipe that warms up and distorts: neither is left."""
    typed = ["recipe=lenet5_mnist_distorted", "debug=overfit", f"data_dir={digits}"]
    typed += ["data.batch_size=10", "trainer.threads=1", f"hydra.run.dir={tmp_path / 'run'}"]
    composed = compose_config(typed)
    parts = build_parts(composed.config, device=torch.device("cpu"), ranks=Ranks())
    seen = [
        next(iter(loader.epoch(epoch)))[0]
        for loader in (parts.train, parts.val)
        for epoch in (0, 7)
    ]
    images = [batch.images[batch.ids.argsort()] for batch in seen]
    assert all(torch.equal(image, images[0]) for image in images)
    assert len(images[0]) == 10
    assert parts.train.steps == parts.val.steps == 1
    try:
        train(composed, typed)
    finally:
        logging.getLogger("cvtrain").handlers = []
    told = summary(tmp_path / "run")
    assert (told["steps"], told["val/top1_err"]) == (200, 0)
    assert told["val/loss"] < 0.1
    rates = {line["train/lr"] for line in metrics(tmp_path / "run") if "train/lr" in line}
    assert len(rates) == 1


def test_where_the_time_of_a_step_goes(
    digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    started(digits, run, "debug=profile", "trainer.profile=3")
    [trace] = (run / "profile").iterdir()
    names = [event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]]
    assert len({name for name in names if name.startswith("ProfilerStep#")}) == 3
    assert any("conv" in name for name in names)
    said = capfd.readouterr()
    assert "convolution_backward" in said.out
    assert "ERROR" not in said.err
    rows = [line for line in said.out.splitlines() if "us  " in line or "ms  " in line]
    assert len(rows) == 15
    shown = events(run)
    [text] = shown.Tensors("profile/text_summary")
    assert "convolution_backward" in text.tensor_proto.string_val[0].decode()


def test_too_short_for_a_profile(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started(digits, tmp_path / "run", "trainer.profile=3", "trainer.duration=2st")
    assert "warning: no profile: the run has less than 6 steps" in capsys.readouterr().err
    assert not (tmp_path / "run/profile").exists()


def test_files_that_were_left_out_are_listed(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = ("a/1.jpg\tcut off", "b/two\nlines.png\tnot an image")
    monkeypatch.setattr("cvtrain.data.mnist.MNIST.bad", bad, raising=False)
    started(digits, tmp_path / "run", "trainer.duration=1st")
    text = (tmp_path / "run/bad_images.txt").read_text()
    assert text == "a/1.jpg\tcut off\nb/two lines.png\tnot an image\n"
