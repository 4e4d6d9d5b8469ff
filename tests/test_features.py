"""`cvtrain features` against a hook, a crop and a normalisation written here."""

import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny import command
from torch import Tensor, nn

from cvtrain import cli
from cvtrain.errors import CheckpointError, ConfigError, CvtrainError, DataError
from cvtrain.models import lenet
from cvtrain.models.cnn import CNN
from cvtrain.models.resnet import ResNet

FIT = Path(__file__).parents[1] / "scripts" / "fit_linear.py"
MEAN, STD = 0.5, 0.25  # of data=shapes


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("shapes")
    sizes = ["data.size=32", "data.train_per_class=60", "data.val_per_class=15"]
    return ["data=shapes", f"data.root={root}", *sizes]


@pytest.fixture(scope="module")
def run(shapes: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network, trained for some seconds, with averaged weights."""
    folder = tmp_path_factory.mktemp("runs")
    done = command(
        *("model=cnn", *shapes, "data.batch_size=32", "trainer.ema=0.9"),
        *("trainer.duration=8ep", "eval.every=8ep", "hydra.run.dir=run"),
        cwd=folder,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return folder / "run"


def features(*typed: str, out: Path) -> dict[str, np.ndarray]:
    assert cli.run(["features", *typed, f"out={out}"]) == 0
    with np.load(out) as file:
        return dict(file)


def by_hook(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    seen: dict[str, Tensor] = {}
    model.eval()
    model.get_submodule(layer).register_forward_hook(lambda _m, _i, o: seen.update(it=o))
    with torch.no_grad():
        model(images)
    return seen["it"]


def read(files: list[Path]) -> Tensor:
    pixels = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    return (images - MEAN) / STD


def images_of(shapes: list[str], split: str) -> list[Path]:
    root = Path(shapes[1].partition("=")[2])
    return sorted(root.glob(f"*/{split}/*/*.jpg"))


@pytest.mark.parametrize("pool", ["avg", "none"])
def test_features_of_a_run(run: Path, shapes: list[str], pool: str, tmp_path: Path) -> None:
    found = features(f"run={run}", "layer=stages.2.1", f"pool={pool}", out=tmp_path / "f.npz")
    state = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    model = CNN(num_classes=8)
    averaged = {key[7:]: value for key, value in state["ema"].items() if key[:7] == "module."}
    model.load_state_dict(averaged)
    assert not torch.equal(averaged["fc.weight"], state["model"]["fc.weight"])
    files = images_of(shapes, "val")
    expected = by_hook(model, "stages.2.1", read(files))
    expected = expected.mean((2, 3)) if pool == "avg" else expected
    np.testing.assert_allclose(found["features"], expected.numpy(), rtol=1e-4, atol=1e-5)
    assert found["features"].dtype == np.float32
    assert found["names"].tolist() == [str(file) for file in files]
    assert found["classes"].tolist() == sorted({file.parent.name for file in files})
    labels = [found["classes"].tolist().index(file.parent.name) for file in files]
    assert found["labels"].tolist() == labels
    assert [path.name for path in tmp_path.iterdir()] == ["f.npz"]


def fit(
    train: Path,
    test: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["fit_linear.py", str(train), str(test)])
    runpy.run_path(str(FIT), run_name="__main__")
    return capsys.readouterr().out


def test_a_linear_fit_is_far_better_than_chance(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also: what a fit on shuffled labels gives, so that the score is no accident."""
    typed = (f"run={run}", "layer=stages.3")
    train = features(*typed, "eval.split=train", out=tmp_path / "train.npz")
    features(*typed, out=tmp_path / "test.npz")
    assert len(train["labels"]) == 480
    train["labels"] = np.random.default_rng(0).permutation(train["labels"])
    np.savez(tmp_path / "shuffled.npz", **train)
    error = {}
    for name in ("train", "shuffled"):
        out = fit(tmp_path / f"{name}.npz", tmp_path / "test.npz", monkeypatch, capsys)
        error[name] = float(out.split()[1])
    assert error["train"] < 40  # chance is 87.5 %
    assert error["shuffled"] > 70


def test_fit_linear_finds_what_is_separable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    points = np.eye(3)[labels] * 9 + rng.normal(size=(90, 3))
    for name, rows in (("a", slice(0, 60)), ("b", slice(60, 90))):
        file = {"features": points[rows], "labels": labels[rows], "classes": list("xyz")}
        file["labels"] = np.where(np.arange(len(file["labels"])) == 7, -1, file["labels"])
        np.savez(tmp_path / f"{name}.npz", **file)
    out = fit(tmp_path / "a.npz", tmp_path / "b.npz", monkeypatch, capsys)
    assert out == "top1_err 0.00 %  (59 training, 29 test samples)\n"


# Files of one's own


def photo(path: Path, *, seed: int, size: tuple[int, int] = (64, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_a_photo_and_weights_of_a_file(tmp_path: Path) -> None:
    """No data set is read: sizes and normalisation are those of the config's data."""
    torch.manual_seed(1)
    model = ResNet(depth=18, num_classes=8, image_size=64)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    file = photo(tmp_path / "a (1)=2.png", seed=0)
    found = features(
        *("model=resnet18", "data=shapes", f"data.root={tmp_path}/nowhere", f"source={file}"),
        *(f"init.weights={tmp_path}/weights.pt", "layer=layer3"),
        out=tmp_path / "f.npz",
    )
    expected = by_hook(model, "layer3", read([file])).mean((2, 3))
    np.testing.assert_allclose(found["features"], expected.numpy(), rtol=1e-3, atol=1e-5)
    assert found["labels"].tolist() == [-1]
    assert found["names"].tolist() == [str(file)]
    assert len(found["classes"]) == 8
    assert not (tmp_path / "nowhere").exists()


def test_an_evaluation_crop(run: Path, tmp_path: Path) -> None:
    """Of data=folder: 0.875 of the short side, the middle; here of a constant and a frame."""
    image = np.full((320, 256, 3), 255, np.uint8)
    image[48:272, 16:240] = 90
    Image.fromarray(image).save(tmp_path / "a.png")
    typed = (
        "model=cnn",
        "data=folder",
        f"source={tmp_path}/a.png",
        "layer=stages.0.0",
        "pool=none",
    )
    found = features(*typed, out=tmp_path / "f.npz")["features"]
    inner = found[0, :, 2:-2, 2:-2]
    np.testing.assert_allclose(inner, np.broadcast_to(inner[:, :1, :1], inner.shape), rtol=1e-5)
    assert found.shape == (1, 16, 224, 224)


def test_a_folder_of_ones_own(run: Path, tmp_path: Path) -> None:
    files = [
        photo(tmp_path / "in" / name, seed=i) for i, name in enumerate(("x/1.png", "y/b/2.png"))
    ]
    files.append(photo(tmp_path / "in" / "z.png", seed=3))
    photo(tmp_path / "in" / ".hidden" / "4.png", seed=4)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    found = features(f"run={run}", f"source={tmp_path}/in", "layer=fc", out=tmp_path / "f.npz")
    assert found["names"].tolist() == [str(file) for file in files]
    assert found["classes"].tolist() == ["x", "y"]
    assert found["labels"].tolist() == [0, 1, -1]


def test_a_folder_of_the_runs_classes(run: Path, shapes: list[str], tmp_path: Path) -> None:
    """Of the very images of its data: the same features and labels."""
    folder = images_of(shapes, "val")[0].parents[1]
    typed = (f"run={run}", "layer=stages.1")
    ours = features(*typed, f"source={folder}", out=tmp_path / "a.npz")
    data = features(*typed, out=tmp_path / "b.npz")
    assert all(np.array_equal(ours[key], data[key]) for key in data)


def test_a_network_of_grey_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pixels[:] = pixels[:, :, :1]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "b.png")
    typed = ("model=lenet5", "data=mnist", "layer=c3", "pool=none", "recipe=none")
    found = [
        features(*typed, f"source={tmp_path}/{name}.png", out=tmp_path / "f.npz") for name in "ab"
    ]
    np.testing.assert_array_equal(found[0]["features"], found[1]["features"])
    assert found[0]["features"].shape == (1, 16, 10, 10)


def test_other_data_for_a_run(run: Path, shapes: list[str], tmp_path: Path) -> None:
    other = [word.replace("=15", "=3") for word in shapes]
    found = features(f"run={run}", *other, "layer=fc", out=tmp_path / "f.npz")
    assert found["features"].shape == (24, 8)
    assert "-3/" in found["names"][0]


@pytest.mark.parametrize("pool", ["avg", "none"])
def test_what_follows_does_not_write_into_it(pool: str, tmp_path: Path) -> None:
    """A convolution before ReLU(inplace=True) keeps its negative values."""
    file = photo(tmp_path / "a.png", seed=0)
    typed = ("model=torchvision", "model.name=squeezenet1_1", f"source={file}", f"pool={pool}")
    before = features(*typed, "layer=features.0", out=tmp_path / "f.npz")["features"]
    after = features(*typed, "layer=features.1", out=tmp_path / "f.npz")["features"]
    assert before.min() < 0 <= after.min()
    if pool == "none":
        np.testing.assert_array_equal(np.maximum(before, 0), after)


def test_aliases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lenet, "ALIASES", {"C3": "c3"}, raising=False)
    file = photo(tmp_path / "a.png", seed=0)
    typed = ("model=lenet5", "data=mnist", f"source={file}")
    one, two = (
        features(*typed, f"layer={name}", out=tmp_path / "f.npz")["features"]
        for name in ("C3", "c3")
    )
    np.testing.assert_array_equal(one, two)


# Mistakes


def refusal(*typed: str) -> CvtrainError:
    with pytest.raises(CvtrainError) as caught:
        cli.run(["features", *typed])
    assert "\n" not in caught.value.line()
    return caught.value


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("layer=stage.2", "no layer stage.2; .* one of stages.2.*cvtrain summary"),
        ("", "no layer is named.*one of stages, pool"),
        ("layer=fc pool=max", "type pool=avg or pool=none"),
        ("layer=fc out=f.txt", "type out=f.txt.npz"),
        ("layer=fc out=nowhere/f.npz", "no folder nowhere"),
        ("layer=fc model=cnn", "a run has its own config; model=cnn"),
        ("layer=fc eval.splitt=train", "type eval.split=train"),
        ("layer=fc eval.split=test", "has no split test; eval.split=test; type eval.split=train"),
        ("layer=fc eval.split=tset", "tset"),
        ("layer=stages", "takes no part in evaluation"),
    ],
)
def test_a_mistake_in_the_command(typed: str, words: str, run: Path, tmp_path: Path) -> None:
    out = () if "out=" in typed else (f"out={tmp_path}/f.npz",)
    error = refusal(f"run={run}", *typed.split(), *out)
    assert isinstance(error, ConfigError)
    assert re.search(words, error.line())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: (folder / "a.jpg").write_bytes(b""), "a.jpg (is empty"),
        (lambda folder: (folder / "a.jpg").write_text("text"), "a.jpg (cannot identify"),
        (lambda folder: None, "no images in the folder"),
        (lambda folder: folder.rmdir(), "is not there"),
    ],
)
def test_bad_files(make: Any, words: str, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    make(folder)
    error = refusal(f"run={run}", f"source={folder}", "layer=fc", f"out={tmp_path}/f.npz")
    assert isinstance(error, DataError)
    assert words in error.line()
    assert not (tmp_path / "f.npz").exists()


def test_a_path_is_taken_as_it_is(run: Path, tmp_path: Path) -> None:
    error = refusal(f"run={run}", "layer=fc", "data.root=/dev/null/a: [b", f"out={tmp_path}/f.npz")
    assert "/dev/null/a: [b" in error.line()


def test_no_gpu_of_that_number(run: Path, tmp_path: Path) -> None:
    error = refusal(f"run={run}", "layer=fc", "trainer.device=cuda:99", f"out={tmp_path}/f.npz")
    assert (error.code, error.name) == (6, "NO-CUDA")


def test_no_run_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        assert isinstance(refusal(f"run={path}", "layer=fc"), CheckpointError)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("model: {_target_: os.system, command: touch x}", "TARGET"),
        ("model: {_target_: my.Net}\ntrust: [my]", "TARGET"),
        ("model: [", "CKPT-CORRUPT"),
        ("- a list", "CKPT-CORRUPT"),
        ("model: {_target_: cvtrain.models.cnn.CNN}", "CKPT-CORRUPT"),
    ],
)
def test_a_checkpoint_of_anothers_making(
    config: str, name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    stored = yaml.safe_load(state["config"])
    if name == "TARGET":
        config = yaml.safe_dump({**stored, **yaml.safe_load(config)})
    torch.save({**state, "config": config}, tmp_path / "bad.pt")
    error = refusal(f"run={tmp_path}/bad.pt", "layer=fc", f"out={tmp_path}/f.npz")
    assert (error.code, error.name) == (4, name)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pt"]


def test_random_weights_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = photo(tmp_path / "a.png", seed=0)
    monkeypatch.chdir(tmp_path)
    assert cli.run(["features", "model=cnn", f"source={file}", "layer=fc"]) == 0
    out, err = capsys.readouterr()
    more = "model.pretrained=imagenet, or init.weights=FILE"
    assert err == f"warning: the weights are random; type run=DIR, {more}\n"
    assert out == "features.npz: features [1, 8] of fc, 8 classes\n"
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "features.npz"}
