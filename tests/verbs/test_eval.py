"""A run measured again: the same figures to the last bit, other data, several runs, two of them."""

import csv
import hashlib
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import command, digits, write_images, write_mnist
from torch import Tensor

from cvtrain import cli
from cvtrain.errors import CheckpointError, ConfigError, CvtrainError, DataError, MachineError
from cvtrain.evaluation.stored import compared
from cvtrain.models.lenet import LeNet5

VAL = 60
MEAN, STD = 0.1307, 0.3081  # of data=mnist


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, and two runs `a` and `b` of a small LeNet that is often wrong."""
    folder = tmp_path_factory.mktemp("eval")
    write_mnist(folder / "data", train=160, val=VAL)
    for run, seed in (("a", 0), ("b", 1)):
        words = [f"seed={seed}", "trainer.threads=1", "trainer.duration=4ep", "eval.every=2ep"]
        words += ["optimizer.lr=0.02", "trainer.ema=0.5"] if run == "a" else ["optimizer.lr=0.015"]
        train(folder, *words, f"hydra.run.dir={folder / run}")
    return folder


def train(home: Path, *words: str) -> None:
    typed = ["model=lenet5", "data=mnist", f"data_dir={home / 'data'}", "recipe=none", *words]
    assert cli.run([*typed, "data.batch_size=16", "trainer.progress=no"]) == 0


def evaluated(*words: Any, out: Path | None = None) -> dict[str, Any]:
    """Returns the summary, if there is an `out`."""
    where = [f"out={out}"] if out else []
    assert cli.run(["eval", *map(str, words), *where]) == 0
    return json.loads((out / "summary.json").read_text()) if out else {}


def table(out: Path) -> list[dict[str, str]]:
    with (out / "samples.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files_of(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(file.relative_to(folder)): (
            hashlib.sha256(file.read_bytes()).hexdigest(),
            file.stat().st_mtime_ns,
        )
        for file in folder.rglob("*")
        if file.is_file()
    }


def logits_of(run: Path) -> tuple[Tensor, Tensor]:
    """By torch alone: of the evaluated images, and their labels."""
    state = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    weights = state["model"]
    if state["ema"]:
        weights = {k[7:]: v for k, v in state["ema"].items() if k.startswith("module.")}
    model = LeNet5(num_classes=10)
    model.load_state_dict(weights)
    images, labels = digits(VAL, seed=1)
    pixels = torch.from_numpy(np.pad(images, ((0, 0), (2, 2), (2, 2)))).float()[:, None] / 255
    with torch.no_grad():
        return model.eval()((pixels - MEAN) / STD), torch.from_numpy(labels).long()


def stored(run: Path) -> dict[str, float]:
    state = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    return state["position"]["metrics"]


@pytest.mark.parametrize("run", ["a", "b"])
def test_exactly_the_stored_figures(
    home: Path, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(home / run)
    summary = evaluated(f"run={home / run}", out=tmp_path / "out")
    assert files_of(home / run) == before
    metrics = stored(home / run)
    assert {name: summary[name] for name in metrics} == metrics  # to the last bit
    logits, labels = logits_of(home / run)
    wrong = (logits.argmax(1) != labels).sum().item()
    assert 0 < wrong < VAL
    assert summary["val/top1_err"] == 100 * wrong / VAL
    printed = capsys.readouterr().out
    assert re.search(r"stored +exactly these 3 figures", printed)
    assert f"{metrics['val/top1_err']:.4g} %" in printed
    low, high = summary["intervals"]["val/top1_err"]
    error = wrong / VAL
    assert low < 100 * error < high
    assert high - low == pytest.approx(2 * 196 * math.sqrt(error * (1 - error) / VAL), rel=0.25)


def test_rows_of_samples(home: Path, tmp_path: Path) -> None:
    evaluated(f"run={home / 'b'}", out=tmp_path)
    rows, (logits, labels) = table(tmp_path), logits_of(home / "b")
    shares = logits.softmax(1)
    assert [int(row["id"]) for row in rows] == list(range(VAL))
    assert [int(row["label"]) for row in rows] == labels.tolist()
    assert [int(row["prediction"]) for row in rows] == logits.argmax(1).tolist()
    probability = torch.tensor([float(row["probability"]) for row in rows])
    torch.testing.assert_close(probability, shares.amax(1), rtol=1e-4, atol=1e-5)
    loss = torch.tensor([float(row["loss"]) for row in rows])
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-4)
    right = [int(row["correct"]) for row in rows]
    assert right == (logits.argmax(1) == labels).int().tolist()
    for name in ("confusion", "reliability", "worst"):
        assert Image.open(tmp_path / f"{name}.png").size[0] > 100


@pytest.mark.parametrize("size", [1, 7, 64])
def test_any_batch_size_counts_the_same(
    home: Path, size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = evaluated(f"run={home / 'a'}", f"eval.batch_size={size}", out=tmp_path)
    metrics = stored(home / "a")
    for name in ("val/top1_err", "val/top5_err"):
        assert summary[name] == metrics[name]
    assert summary["val/loss"] == pytest.approx(metrics["val/loss"], rel=1e-6)
    assert f"settings differ: eval.batch_size 256 -> {size}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["eval.split=train"], "eval.split val -> train"),
        (["task.label_smoothing=0.1"], "task.label_smoothing 0.0 -> 0.1"),
        (["trainer.precision=bf16"], "precision fp32 -> bf16"),
        (["eval.max_batches=1", "eval.batch_size=8"], "eval.max_batches null -> 1"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_other_settings_are_named_and_nothing_compared(
    home: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(f"run={home / 'a'}", *words)
    [line] = [x for x in capsys.readouterr().out.splitlines() if "stored  " in x]
    assert "not compared, for settings differ: " in line
    assert says in line


def copied(home: Path, tmp_path: Path) -> Path:
    """A run and its data elsewhere."""
    shutil.copytree(home / "data", tmp_path / "data")
    shutil.copytree(home / "b", tmp_path / "b", symlinks=True)
    return tmp_path / "b"


def relabel(data: Path, name: str) -> None:
    import gzip

    file = data / "MNIST" / "raw" / f"{name}-labels-idx1-ubyte.gz"
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[-10:] = bytes((label + 1) % 10 for label in content[-10:])
    file.write_bytes(gzip.compress(bytes(content)))


def test_other_figures_at_the_same_settings_are_an_error(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(home, tmp_path)
    relabel(tmp_path / "data", "t10k")
    with pytest.raises(CheckpointError, match=r"top1_err is .*, stored ") as caught:
        evaluated(f"run={run}", f"data.root={tmp_path / 'data'}")
    assert (caught.value.name, caught.value.code) == ("EVAL-DIFFERS", 4)
    assert "\n" not in caught.value.line()
    assert "OTHER FIGURES" in capsys.readouterr().out  # the table is shown all the same
    relabel(tmp_path / "data", "train")  # and now it is other data
    evaluated(f"run={run}", f"data.root={tmp_path / 'data'}")
    assert "settings differ: other data" in capsys.readouterr().out


def test_what_is_the_same_figure() -> None:
    """To the last bit, but for COCO's two engines, and for a GPU that may round otherwise."""
    state = {"position": {"step": 5, "evaluated_at": 5, "metrics": {"val/top1_err": 7.5}}}
    for figure, exact, raised in (
        (7.5, True, False),
        (7.5 + 1e-14, True, False),
        (7.51, True, True),
        (7.51, False, False),
        (7.7, False, True),
    ):
        said, error = compared({"top1_err": figure}, state, [], "x.pt", exact=exact)
        assert (error is not None) == raised
        assert said.startswith("exactly") == (figure == 7.5)


def test_a_run_elsewhere_that_cannot_be_written_to(home: Path, tmp_path: Path) -> None:
    run = copied(home, tmp_path)
    everything = [run, *run.rglob("*")]
    for path in everything:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)
    here = tmp_path / "here"
    here.mkdir()
    words = (f"run={run}", f"data.root={tmp_path / 'data'}", "trainer.device=cpu")
    done = command("eval", *words, "out=found", cwd=here, fresh=True)
    for path in everything:
        if path.is_dir():
            path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert "exactly these 3 figures" in done.stdout
    assert [path.name for path in here.iterdir()] == ["found"]


def test_nothing_is_written_into_a_run(home: Path) -> None:
    for out in (home / "a", home / "a" / "eval"):
        with pytest.raises(ConfigError, match="nothing is written into a run"):
            evaluated(f"run={home / 'a'}", out=out)


def changed(run: Path, file: Path, **values: Any) -> Path:
    state = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    for key, value in values.items():
        state[key] = {**state[key], **value} if isinstance(value, dict) else value
    torch.save(state, file)
    return file


def test_a_checkpoint_that_was_not_evaluated(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one of a run that was stopped before its first evaluation, or between two."""
    for name, position in (("never", {"evaluated_at": 0, "metrics": {}}), ("then", {"step": 99})):
        file = changed(home / "a", tmp_path / f"{name}.pt", position=position)
        evaluated(f"run={file}")
        assert re.search(r"stored +none: .* was not evaluated", capsys.readouterr().out)


def refused(kind: type[CvtrainError], name: str, *words: Any) -> CvtrainError:
    with pytest.raises(kind) as caught:
        evaluated(*words)
    assert caught.value.name == name
    assert "\n" not in caught.value.line()
    return caught.value


def test_refused_checkpoints(home: Path, tmp_path: Path) -> None:
    newer = changed(home / "a", tmp_path / "newer.pt", format=2)
    assert "newer" in str(refused(CheckpointError, "CKPT-NEWER", f"run={newer}"))
    (tmp_path / "empty").mkdir()
    refused(CheckpointError, "CKPT-MISSING", f"run={tmp_path / 'empty'}")
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    refused(CheckpointError, "CKPT-MISSING", f"run={tmp_path / 'begun'}")
    refused(CheckpointError, "CKPT-MISSING", f"run={tmp_path / 'nothing'}")
    weights = {"model": {"w": torch.zeros(1)}}
    torch.save(weights, tmp_path / "weights.pt")
    refused(CheckpointError, "CKPT-MISMATCH", f"run={tmp_path / 'weights.pt'}")
    refused(ConfigError, "CONFIG", "eval.batch_size=8")


@pytest.mark.parametrize("target", ["os.system", "torch.nn.functional.torch.hub.load"])
@pytest.mark.parametrize("group", ["model", "data", "task"])
def test_a_hostile_config_is_not_followed(
    home: Path, tmp_path: Path, target: str, group: str
) -> None:
    state = torch.load(home / "a" / "checkpoints" / "best.pt", weights_only=True)
    text, old = state["config"], re.compile(rf"(?s)(\n{group}:\n.*?_target_: )[\w.]+")
    assert old.search(text)
    command_line = f"touch {tmp_path / 'ran'}"
    config = old.sub(rf"\g<1>{target}\n  command: {command_line}", text)
    file = changed(home / "a", tmp_path / "hostile.pt", config=config)
    error = refused(CheckpointError, "TARGET", f"run={file}")
    assert error.code == 4
    assert not (tmp_path / "ran").exists()


def test_data_that_are_gone(home: Path, photos: Path, tmp_path: Path) -> None:
    error = refused(DataError, "NO-DATA", f"run={photos / 'run'}", f"data.root={tmp_path}/gone")
    assert "data.root=" in error.fix
    # Nor can they be fetched anew: nobody listens there.
    words = (f"data.root={tmp_path}/gone", "data.url=http://127.0.0.1:9")
    error = refused(MachineError, "DOWNLOAD", f"run={home / 'b'}", *words)
    assert "data.root=" in error.fix


# Other data


def write_digits(root: Path, names: Any = str) -> None:
    images, labels = digits(VAL, seed=1)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / names(int(label))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:03}.png")


def test_the_same_digits_in_files(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In grey, in their frame, by the run's own mean; whole, for the folder is not split."""
    write_digits(tmp_path / "photos")
    words = ("data=folder", f"data.root={tmp_path / 'photos'}", "data.crop_fraction=1")
    summary = evaluated(f"run={home / 'b'}", *words, out=tmp_path / "out")
    metrics = stored(home / "b")
    assert summary["all/top1_err"] == metrics["val/top1_err"]
    assert summary["all/loss"] == pytest.approx(metrics["val/loss"], rel=1e-5)
    assert summary["samples"] == VAL
    names = {Path(row["name"]).name for row in table(tmp_path / "out")}
    assert names == {f"{number:03}.png" for number in range(VAL)}
    evaluated(f"run={home / 'b'}", *words, "eval.split=val", out=tmp_path / "out")
    assert 0 < len(table(tmp_path / "out")) < VAL / 4
    evaluated(f"run={home / 'b'}", *words, "eval.split=test", out=tmp_path / "out")
    assert 0 < len(table(tmp_path / "out")) < VAL / 4


def test_classes_that_differ_are_named(home: Path, tmp_path: Path) -> None:
    write_digits(tmp_path / "photos", lambda label: "nine" if label == 9 else str(label))
    words = ("data=folder", f"data.root={tmp_path / 'photos'}")
    error = refused(DataError, "CLASSES", f"run={home / 'b'}", *words)
    assert "only the data have nine" in error.what
    assert "only the run has 9" in error.what


def test_data_without_some_classes_if_that_is_wanted(home: Path, tmp_path: Path) -> None:
    write_digits(tmp_path / "photos")
    shutil.rmtree(tmp_path / "photos" / "3")
    words = ("data=folder", f"data.root={tmp_path / 'photos'}", "data.crop_fraction=1")
    refused(DataError, "CLASSES", f"run={home / 'b'}", *words)
    more = "data.allow_other_classes=true"
    summary = evaluated(f"run={home / 'b'}", *words, more, out=tmp_path / "out")
    logits, labels = logits_of(home / "b")
    wrong = (logits.argmax(1) != labels)[labels != 3]
    assert summary["all/top1_err"] == pytest.approx(100 * wrong.double().mean().item())
    assert summary["per_class"]["3"]["samples"] == 0


def test_data_of_another_task(home: Path) -> None:
    refused(ConfigError, "CONFIG", f"run={home / 'b'}", "data=coco")


NAMES = ("ants, red", 'bees "sp."', "new\nline", "wasps")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with train, val and test, and the run of a small network."""
    home = tmp_path_factory.mktemp("photos")
    write_images(home / "photos", classes=NAMES, splits=("train", "val", "test"), count=5)
    words = ["model=cnn", "data=folder", f"data.root={home / 'photos'}", "recipe=none"]
    words += ["data.image_size=32", "data.batch_size=4", "trainer.duration=2ep"]
    assert cli.run([*words, "trainer.workers=0", f"hydra.run.dir={home / 'run'}"]) == 0
    return home


def test_names_that_a_table_has_to_quote(photos: Path, tmp_path: Path) -> None:
    """Also: which classes they are does not hang on the order of their names."""
    summary = evaluated(f"run={photos / 'run'}", out=tmp_path / "out")
    rows = table(tmp_path / "out")
    files = {row["name"] for row in rows}
    assert files == {str(f) for f in (photos / "photos" / "val").rglob("*.jpg")}
    assert {row["label"] for row in rows} == set(NAMES)
    assert all(Path(row["name"]).parent.name == row["label"] for row in rows)
    wrong = sum(row["correct"] == "0" for row in rows)
    assert summary["val/top1_err"] == 100 * wrong / len(rows)


@pytest.mark.parametrize("split", ["val", "test"])
def test_without_the_training_data(
    photos: Path, split: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = evaluated(f"run={photos / 'run'}", f"eval.split={split}", out=tmp_path / "whole")
    alone = tmp_path / "alone"
    shutil.copytree(photos / "photos" / split, alone / split)
    capsys.readouterr()
    words = (f"data.root={alone}", f"eval.split={split}")
    found = evaluated(f"run={photos / 'run'}", *words, out=tmp_path / "found")
    for name in (f"{split}/loss", f"{split}/top1_err", "samples"):
        assert found[name] == whole[name]
    assert "not compared" in capsys.readouterr().out
    names = [{Path(row["name"]).parts[-3] for row in table(tmp_path / f)} for f in ("found",)]
    assert names == [{split}]


def test_a_folder_that_is_not_split(photos: Path, tmp_path: Path) -> None:
    """That of the run, wherever it lies: its share of validation. Any other one: all of it."""
    whole = tmp_path / "whole"
    shutil.copytree(photos / "photos" / "train", whole)
    words = ["model=cnn", "data=folder", f"data.root={whole}", "recipe=none", "data.image_size=32"]
    words += ["data.batch_size=4", "trainer.duration=1ep", f"hydra.run.dir={tmp_path / 'run'}"]
    assert cli.run([*words, "trainer.workers=0", "data.split=[0.6,0.2,0.2]"]) == 0
    whole.rename(tmp_path / "moved")
    run, moved = f"run={tmp_path / 'run'}", f"data.root={tmp_path / 'moved'}"
    found = evaluated(run, moved, out=tmp_path / "val")
    assert found["stored"].startswith("exactly these 3 figures")
    assert found["samples"] == 4  # of each of four classes one of five
    assert evaluated(run, moved, "eval.split=test", out=tmp_path / "test")["samples"] == 4
    other = f"data.root={photos / 'photos' / 'test'}"
    found = evaluated(run, other, out=tmp_path / "all")
    assert (found["split"], found["samples"]) == ("all", 20)


def test_a_split_that_is_not_there(photos: Path, home: Path) -> None:
    for run in (photos / "run", home / "a"):
        refused(ConfigError, "CONFIG", f"run={run}", "eval.split=all")


def test_ten_crop(photos: Path, tmp_path: Path) -> None:
    one = evaluated(f"run={photos / 'run'}", out=tmp_path / "one")
    ten = evaluated(f"run={photos / 'run'}", "eval.views=ten_crop", out=tmp_path / "ten")
    assert one["samples"] == ten["samples"] == 20
    assert one["val/loss"] != ten["val/loss"]


# Several runs


def test_an_ensemble_is_the_mean_of_probabilities(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = f"run=[{home / 'a'},{home / 'b'}]"
    summary = evaluated(runs, f"compare={home / 'b'}", out=tmp_path)
    pairs = [logits_of(home / name) for name in ("a", "b")]
    labels = pairs[0][1]
    mean = torch.stack([logits.double().softmax(1) for logits, _ in pairs]).mean(0)
    assert summary["val/top1_err"] == 100 * (mean.argmax(1) != labels).double().mean().item()
    loss = -mean[torch.arange(VAL), labels].log().mean().item()
    assert summary["val/loss"] == pytest.approx(loss, rel=1e-4)
    members = {Path(name).name: of["top1_err"] for name, of in summary["members"].items()}
    assert members == {name: stored(home / name)["val/top1_err"] for name in ("a", "b")}
    printed = capsys.readouterr().out
    assert "exactly those of 2 of the 2 runs" in printed
    # Against the better one: McNemar by hand.
    wrong = [(mean.argmax(1) != labels), (pairs[1][0].argmax(1) != labels)]
    alone = [int((wrong[0] & ~wrong[1]).sum()), int((wrong[1] & ~wrong[0]).sum())]
    tail = sum(math.comb(sum(alone), k) for k in range(min(alone) + 1))
    p = min(1.0, 2 * tail / 2 ** sum(alone))
    assert summary["compare"]["alone"] == alone
    assert summary["compare"]["p"] == pytest.approx(p)
    assert summary["compare"]["difference"] == pytest.approx(100 * (alone[0] - alone[1]) / VAL)
    assert summary["compare"]["says"] in printed
    low, high = summary["compare"]["interval"]
    assert low <= summary["compare"]["difference"] <= high


def test_an_ensemble_of_what_was_not_trained_alike(home: Path, photos: Path) -> None:
    runs = f"[{home / 'a'},{photos / 'run'}]"
    refused(ConfigError, "CONFIG", f"run={runs}")
    refused(ConfigError, "CONFIG", f"run={home / 'a'}", f"compare={photos / 'run'}")
    refused(ConfigError, "CONFIG", f"run=[{home / 'a'},{home / 'a'}]")


def test_a_run_is_no_different_from_itself(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated(f"run={home / 'a'}", f"compare={home / 'a'}")
    assert "there is no difference (p = 1)" in capsys.readouterr().out
