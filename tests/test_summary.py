"""`cvtrain summary`: its figures against the papers' and sums by hand, for every model here."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import command, write_images
from torch import nn

from cvtrain import cli
from cvtrain.compose import compose_config
from cvtrain.config import config_dir, options
from cvtrain.errors import ConfigError
from cvtrain.verbs.summary import Costs, is_beside, measure, read_papers, rounded, sizes

# Parameters (without auxiliary heads) and multiply-adds, of published tables and other counts.
ORACLE = {
    "lenet5": (61_706, 416_520),
    "resnet50": (25_557_032, 3_857_973_248),
    "alexnet": (60_965_224, 724_406_816),
    "vgg16": (138_357_544, 15_470_264_320),
    "googlenet": (6_998_552, 1_582_671_872),
    "xception": (22_855_952, 8_357_403_496),
}
PAPERS = yaml.safe_load(
    (Path(cli.__file__).parent / "models" / "papers.yaml").read_text(encoding="utf-8")
)


def costs_of(name: str, *typed: str, input: str = "", depth: int = 3) -> Costs:
    """Skips the test where the network cannot be had here."""
    config = compose_config([f"model={name}", *typed]).config
    try:
        source, size, _ = sizes(name, config, input=input, data_given=False)
        return measure(config, source, size, depth=depth)[0]
    except ConfigError as error:
        if error.name == "TARGET" or "not installed" in str(error):
            pytest.skip(str(error))
        raise


def summary(capsys: pytest.CaptureFixture[str], *typed: str) -> str:
    assert cli.run(["summary", *typed]) == 0
    return capsys.readouterr().out


def row(out: str, layer: str) -> list[str]:
    """The cells of a layer's first row, by its name."""
    [line, *_] = [line for line in out.splitlines() if f"({layer})" in line]
    return re.split(r"\s{2,}", line)


def test_resnet50_as_it_is_typed(tmp_path: Path) -> None:
    done = command("summary", "model=resnet50", cwd=tmp_path, fresh=True)
    assert (done.returncode, done.stderr) == (0, "")
    out = done.stdout
    assert "parameters     25,557,032; 102.23 MB" in out  # 4 bytes each
    assert "multiply-adds  3,857,973,248 (paper: 3.8 G)\n" in out
    assert "53 Conv2d, 53 BatchNorm2d, 1 MaxPool2d, 1 Linear" in out
    assert "4 Conv2d, 4 BatchNorm2d of these off the main path" in out
    assert "49 relu, 16 add, 1 mean" in out
    assert "images 3x224x224, 1000 classes (the network's own)" in out
    assert "mult-adds" not in out.lower()  # torchinfo's own
    # Table 1: conv1 is 7x7, 64, stride 2; conv4_x gives 14x14 of 1024.
    wanted = ["[1, 3, 224, 224]", "[1, 64, 112, 112]", "[7, 7]", "9,408", f"{64 * 147 * 112**2:,}"]
    assert row(out, "conv1")[1:] == wanted
    assert row(out, "layer3")[2] == "[1, 1024, 14, 14]"
    assert not list(tmp_path.iterdir())


def test_a_container_has_the_sum_of_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    out = summary(capsys, "model=resnet18", "depth=1")
    parts = ("conv1", "layer1", "layer2", "layer3", "layer4", "fc")
    numbers = [int(row(out, part)[-1].replace(",", "")) for part in parts]
    assert sum(numbers) == int(row(out, "ResNet")[-1].replace(",", "")) == 1_814_073_344


@pytest.mark.parametrize("name", [name for name in ORACLE if name in options("model")])
def test_totals_to_the_unit(name: str) -> None:
    costs = costs_of(name)
    assert (costs.used, costs.multiply_adds) == ORACLE[name]


def test_activations_of_lenet_by_hand() -> None:
    values = 2 * 6 * 28**2 + 6 * 14**2 + 2 * 16 * 10**2 + 16 * 5**2 + 2 * 120 + 2 * 84 + 10
    assert costs_of("lenet5").activations == 4 * values


def test_a_downsample_that_ends_a_stage_is_no_shortcut() -> None:
    stage = nn.ModuleDict({"downsample": nn.Sequential(nn.Linear(2, 2))})
    assert not is_beside(stage, "ModuleDict.downsample.0")
    stage["conv1"] = nn.Linear(2, 2)
    assert is_beside(stage, "ModuleDict.downsample.0")
    assert not is_beside(stage, "ModuleDict.conv1")


def test_auxiliary_heads_are_told_apart() -> None:
    costs = costs_of("googlenet")
    assert costs.parameters == 13_378_280
    assert costs.used == 6_998_552


# What a detector does goes by its numbers; they are counted in test_torchvision_detectors.py.
YAMLS = {name: config_dir() / "model" / f"{name}.yaml" for name in options("model")}
CLASSIFIERS = [n for n, f in YAMLS.items() if yaml.safe_load(f.read_text())["task"] != "detection"]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_model(name: str) -> None:
    costs = costs_of(name)
    assert 0 < costs.used <= costs.parameters
    assert costs.multiply_adds > 0
    assert sum(costs.layers.values()) >= 3
    paper = read_papers().get(name, {})
    for key, count in (("parameters", costs.used), ("multiply_adds", costs.multiply_adds)):
        if key in paper:  # as far as a paper's rounding, or its table's omissions, go
            assert count == pytest.approx(paper[key], rel=0.06), key


@pytest.mark.parametrize("name", PAPERS)
def test_every_paper_is_whole(name: str) -> None:
    paper = PAPERS[name]
    detects = YAMLS.keys() - {*CLASSIFIERS}
    assert re.fullmatch(r"[13]x(\d+)x\1", paper.get("input", "3x1x1" if name in detects else ""))
    if "title" in paper:
        assert {"year", "source"} <= paper.keys()
        assert str(paper["year"]) in paper["source"]
        if name in detects:
            assert all(0 < figure < 100 for figure in paper["mAP"].values())
        else:
            assert "error_of" in paper
            assert {"top1_err", "top5_err"} & paper.keys()
    file = config_dir() / "model" / f"{name}.yaml"
    if file.exists() and (fixed := re.search(r"^input: fixed (\d+)", file.read_text(), re.M)):
        assert paper["input"].endswith(f"x{fixed[1]}")


def test_published_errors_are_those_of_the_recipes() -> None:
    """Where a recipe reproduces the same figure, the two files agree."""
    for name in ("lenet5", "resnet20", "resnet56", "resnet110"):
        data = "mnist" if name == "lenet5" else "cifar10"
        recipe = yaml.safe_load((config_dir() / "recipe" / f"{name}_{data}.yaml").read_text())
        assert PAPERS[name]["top1_err"] == recipe["published"]["top1_err"]


def test_depth(capsys: pytest.CaptureFixture[str]) -> None:
    lines = {
        depth: summary(capsys, "model=resnet18", f"depth={depth}").splitlines() for depth in "123"
    }
    # conv1, bn1, maxpool, 4 stages, fc; 8 blocks; in these 2 x 2 layers, and 3 projections.
    rows = [sum("─" in line for line in lines[depth]) for depth in "123"]
    assert rows == [8, 8 + 8, 8 + 8 + 32 + 3]
    assert lines["1"][-5:] == lines["3"][-5:]  # totals


def test_input() -> None:
    fully = 512 * 1000  # the linear layer does not grow
    small, large = costs_of("resnet18"), costs_of("resnet18", input="448")
    assert large.multiply_adds - fully == 4 * (small.multiply_adds - fully)
    assert large.parameters == small.parameters
    grey = costs_of("resnet18", input="1x224x224")
    assert small.parameters - grey.parameters == 2 * 64 * 7 * 7


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["model=cnn", "data=cifar10"], "images 3x32x32, 10 classes (of the data)"),
        (["model=cnn", "data=mnist"], "images 1x28x28, 10 classes (of the data)"),
        (["model=lenet5", "data=mnist"], "images 1x32x32, 10 classes"),
        (["model=cnn", "data=cifar100"], "100 classes"),
        (["model=cnn", "data=shapes"], "images 3x64x64, 8 classes"),
        (["model=cnn", "data=imagenet"], "images 3x224x224, 1000 classes"),
        (["model=cnn", "data=folder", "data.root=photos"], "images 3x224x224, 2 classes"),
        (["model=cnn", "data=folder", "data.image_size=96"], "images 3x96x96, 1000 classes"),
        (["model=resnet20"], "images 3x32x32, 10 classes (the network's own)"),
        (["model=resnet20", "input=64"], "(the network's own, but input=64)"),
        (["model=resnet50", "input=96"], "(paper: 3.8 G for 3x224x224)"),
        (["recipe=resnet20_cifar10", "input=48"], "images 3x48x48, 10 classes (of the data, but"),
    ],
)
def test_sizes_come_from_what_is_typed(
    typed: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_images(tmp_path / "photos", count=1)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CVTRAIN_DATA", raising=False)
    assert expected in summary(capsys, *typed)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is drawn, downloaded or written


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("summary model=lenet5 input=64", "lenet5 takes images of 32 px, not 64.*input=32"),
        ("summary model=resnet50 input=2x3", "type input=224 or input=3x224x224"),
        ("summary model=resnet50 input=0", "type input=224"),
        ("summary model=resnet50 depth=x", "type depth=3"),
        ("summary model=cnn input=4", "at least 8 px"),
        ("summary model=torchvision model.name=alexnet input=32", "cannot take images of 32 px"),
        ("summary modle=cnn", "type model="),
        ("summary layer=fc", "layer is a key of cvtrain features; layer=fc; type cvtrain features"),
        ("model=cnn depth=3", "depth is a key of cvtrain summary"),
        ("-m summary model=cnn,mlp", "summary has no sweep"),
    ],
)
def test_mistakes(typed: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cli.run(typed.split())
    assert re.search(words, caught.value.line())
    assert "\n" not in caught.value.line()


def test_a_network_that_fails_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says of an image that is too small, in one line."""
    from cvtrain.models.lenet import LeNet5

    def forward(self: nn.Module, images: torch.Tensor) -> Any:
        return nn.functional.max_pool2d(images, 64)

    monkeypatch.setattr(LeNet5, "forward", forward)
    with pytest.raises(ConfigError, match=r"cannot take images of 32 px \(.*too small.*input="):
        costs_of("lenet5")


def test_help_lists_verbs_with_their_keys() -> None:
    text = cli.help_text()
    for verb, about in cli.VERBS.items():
        assert f"  {verb} " in text
        assert all(f"{key}=" in text for key in about.keys)


def test_keys_are_split_off() -> None:
    keys, rest = cli.split_keys("features", ["model=cnn", "layer=fc", "source=a (1)=b.jpg"])
    assert rest == ["model=cnn"]
    assert (keys["layer"], keys["source"], keys["pool"]) == ("fc", "a (1)=b.jpg", "avg")
    # No verb's key may stand in the way of the config's own.
    config = compose_config([]).config
    assert not {key for verb in cli.VERBS.values() for key in verb.keys} & vars(config).keys()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (60_000, "60,000"),
        (270_000, "0.27 M"),
        (133_000_000, "133 M"),
        (22_855_952, "22,855,952"),
        (3_800_000_000, "3.8 G"),
    ],
)
def test_rounded(number: int, text: str) -> None:
    assert rounded(number) == text
