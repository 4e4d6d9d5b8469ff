"""`cvtrain export`: the folder as another program finds it, and what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny import TINY_SHAPES, command, write_data
from torch import Tensor, nn

from cvtrain import cli
from cvtrain.compose import compose_config
from cvtrain.errors import CheckpointError, ConfigError, CvtrainError
from cvtrain.exports.pictures import drawn
from cvtrain.models.cnn import CNN
from cvtrain.trained.network import build, described

CPU = torch.device("cpu")
FORMATS = ("onnx", "torchscript", "torch_export", "safetensors")
SUFFIXES = {"onnx": "onnx", "torchscript": "pt", "torch_export": "pt2"}
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

BESIDE = ["README.md", "classes.json", "config.yaml", "preprocessing.json"]
SHAPES = ["circle", "cross", "diamond", "hexagon", "ring", "square", "star", "triangle"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    return


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of the small network; its data are there."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    typed = ["model=cnn", "model.widths=[4,8]", "data=shapes", *TINY_SHAPES, "debug=smoke"]
    root = folder.parent / "shapes"
    assert cli.run([*typed, f"data.root={root}", f"hydra.run.dir={folder}"]) == 0
    return folder


def network_of(run: Path) -> nn.Module:
    network = CNN(num_classes=8, widths=[4, 8])
    state = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    network.load_state_dict(state["model"])
    return network.eval()


def test_a_run_as_onnx(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert cli.run(["export", f"run={run}"]) == 0
    folder = tmp_path / "export_a run"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*BESIDE, "model.onnx"])
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    said = capsys.readouterr().out.splitlines()
    assert "takes images batch x 3 x height x width" in said[0]
    sizes = [re.match(r"(\d+)x3x(\d+)x(\d+): logits differ by (.*) at most", s) for s in said[1:]]
    shapes = {found.groups()[:3] for found in sizes if found}
    assert len(shapes) == 3
    assert {batch for batch, *_ in shapes} == {"1", "2", "3"}
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    images = torch.randn(5, 3, 33, 20)
    [logits] = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, network_of(run)(images), atol=1e-5)
    assert json.loads((folder / "classes.json").read_text()) == SHAPES
    held = session.get_modelmeta().custom_metadata_map
    assert json.loads(held["classes"]) == SHAPES
    preprocessing = json.loads((folder / "preprocessing.json").read_text())
    assert json.loads(held["preprocessing"]) == preprocessing
    assert (preprocessing["mean"], preprocessing["std"]) == ([0.5] * 3, [0.25] * 3)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config == yaml.safe_load((run / "config.yaml").read_text())


def scripted(folder: Path, picture: Path, cwd: Path) -> list[str]:
    """What the lines of the card print, in a folder where only they and the export are."""
    [code] = re.findall(r"```python\n(.*?)\n```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 15
    (folder / "run.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "run.py", picture], cwd=folder, capture_output=True, text=True, check=False
    )
    (folder / "run.py").unlink()
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def normalised(picture: Path, box: tuple[int, int, int, int], size: int) -> Tensor:
    image = Image.open(picture).resize((size, size), Image.Resampling.BILINEAR, box=box)
    return (torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25


@pytest.mark.parametrize("name", SUFFIXES)
def test_the_lines_of_the_card_run(run: Path, name: str, tmp_path: Path) -> None:
    assert cli.run(["export", f"run={run}", f"format={name}", "out=x"]) == 0
    assert sorted(p.name for p in Path("x").iterdir()) == sorted(
        [*BESIDE, f"model.{SUFFIXES[name]}"]
    )
    picture, network = tmp_path / "a picture.png", network_of(run)
    for number in range(3 if name == "onnx" else 1):  # torch is slow to start
        Image.fromarray(np.rot90(drawn(2 * number + 1, 64))).save(picture)  # 48 wide, 64 high
        logits = network(normalised(picture, (0, 8, 48, 56), 16))
        assert scripted(Path("x"), picture, tmp_path) == [SHAPES[int(logits.argmax())]]
    card = Path("x/README.md").read_text()
    for figure in ("val/top1_err", "trained on Shapes", "-2.00 to 2.00", "batch x 3 x height"):
        assert figure in card


def test_grey_pictures_in_a_frame(tmp_path: Path) -> None:
    """LeNet-5 sees digits of 28 pixels in a frame of two."""
    words = write_data("mnist", tmp_path)
    assert cli.run(["export", "model=lenet5", "data=mnist", *words, "recipe=none"]) == 0
    card = Path("export_lenet5/README.md").read_text()
    assert "0.95 (MNIST; LeCun" in card
    assert "random" in card
    Image.fromarray(drawn(0, 28)).save("picture.png")
    grey = torch.from_numpy(np.array(Image.open("picture.png").convert("L")))
    image = nn.functional.pad(grey[None, None] / 255, (2, 2, 2, 2))
    session = onnxruntime.InferenceSession("export_lenet5/model.onnx")
    [logits] = session.run(None, {"images": ((image - 0.1307) / 0.3081).numpy()})
    [said] = scripted(Path("export_lenet5"), tmp_path / "picture.png", tmp_path)
    assert said == str(logits[0].argmax())


def test_weights_are_read_back(run: Path, tmp_path: Path) -> None:
    assert cli.run(["export", f"run={run}", "format=safetensors", "out=w"]) == 0
    again = ["model=cnn", "model.widths=[4,8]", "data=shapes", *TINY_SHAPES, "recipe=none"]
    file = "model.pretrained=w/model.safetensors"
    assert cli.run(["export", *again, file, "format=torchscript", "out=t"]) == 0
    images = torch.randn(2, 3, 16, 16)
    module = torch.jit.load("t/model.pt")
    torch.testing.assert_close(module(images)[0], network_of(run)(images))
    [code] = re.findall(r"```python\n(.*?)\n```", Path("w/README.md").read_text(), re.DOTALL)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{code}\nprint(sum(p.double().sum() for p in network.parameters()))",
        ],
        cwd="w",
        capture_output=True,
        text=True,
        check=True,
    )
    total = sum(p.double().sum() for p in network_of(run).parameters())
    assert done.stdout.strip() == str(total)


def test_a_detector(tmp_path: Path) -> None:
    """Random weights, with scores that tell its boxes apart, by the lines of the card."""
    words = ["model=faster_rcnn_tiny", "data=shapes_boxes", "recipe=none", "model.score=0.2"]
    config = compose_config(words).config
    network = build(config, described(config), device=CPU).model
    with torch.no_grad():
        network.cls_score.weight *= 30
        network.rpn.cls.weight *= 10
    torch.save(network.state_dict(), "w.pt")
    assert cli.run(["export", *words, "init.weights=w.pt", "out=d"]) == 0
    Image.fromarray(drawn(1, 240)).save("picture.png")  # 240 wide, 180 high; its short side to 160
    image = Image.open("picture.png").resize((213, 160), Image.Resampling.BILINEAR)
    pixels = (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - 0.5) / 0.25
    with torch.no_grad():
        [found] = network([pixels])
    scale = torch.tensor([240 / 213, 180 / 160]).repeat(2)
    wanted = [
        (SHAPES[label - 1], round(score, 2), (torch.tensor(box) * scale).tolist())
        for box, label, score in zip(*(found[k].tolist() for k in found), strict=True)
    ]
    said = scripted(Path("d"), tmp_path / "picture.png", tmp_path)
    assert len(said) == len(wanted) > 5
    for line, (name, score, box) in zip(said, wanted, strict=True):
        given = re.match(r"(\w+) ([\d.]+) \[(.*)\]$", line)
        assert given
        assert given[1] == name
        assert abs(float(given[2]) - score) < 0.01
        assert np.abs(np.array(given[3].split(", "), float) - box).max() < 0.2


def test_a_run_from_elsewhere(run: Path, tmp_path: Path) -> None:
    """Copied, read-only, its data gone, by someone who may write elsewhere only."""
    copy = tmp_path / "far (a,b=c)" / "run"
    shutil.copytree(run, copy, symlinks=True)
    text = (copy / "config.yaml").read_text()
    assert "shapes" in text
    shutil.move(run.parent / "shapes", tmp_path / "hidden")
    try:
        for path in (copy, *copy.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o222)
        assert cli.run(["export", f"run={copy}", "format=torch_export"]) == 0
        assert cli.run(["export", f"run={copy}/checkpoints/best.pt", "format=torch_export"]) == 0
    finally:
        shutil.move(tmp_path / "hidden", run.parent / "shapes")
    assert Path("export_run/model.pt2").exists()
    assert not (run.parent / "shapes2").exists()


def test_not_into_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    assert cli.run(["export", "run=.", "format=safetensors"]) == 0
    assert not [path for path in run.iterdir() if path.name.startswith("export")]
    assert (run.parent / "export_a run" / "model.safetensors").exists()


# Refused


def refused(*typed: str, error: type[CvtrainError] = ConfigError) -> str:
    before = sorted(Path().rglob("*"))
    with pytest.raises(error) as raised:
        cli.run(["export", *typed])
    assert sorted(Path().rglob("*")) == before
    return raised.value.line()


@pytest.mark.parametrize(
    ("typed", "fix"),
    [("onx", "onnx"), ("torch-export", "torch_export"), ("ONNX", "onnx")],
)
def test_no_such_format(run: Path, typed: str, fix: str) -> None:
    line = refused(f"run={run}", f"format={typed}")
    assert f"type format={fix};" in line
    assert all(name in line for name in FORMATS)


def test_a_place_that_is_taken(run: Path) -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").touch()
    assert "chapter.tex" in refused(f"run={run}", "out=thesis")
    assert "make it first" in refused(f"run={run}", "out=no/where")


@pytest.mark.parametrize("library", ["onnx", "onnxruntime", "onnxscript"])
def test_an_extra_that_is_missing(run: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # as Python says that there is none
    line = refused(f"run={run}")
    assert f'{library} is not installed; format=onnx; type pip install "cvtrain[onnx]"' in line


def test_what_no_graph_holds(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=faster_rcnn_tiny", "recipe=none", "model.nms_method=gaussian"]
    assert "nms_method=hard" in refused(*words)
    words = ["model=torchvision_detector", "data=shapes_boxes", "recipe=none"]
    words += ["model.name=ssdlite320_mobilenet_v3_large", "format=torch_export"]
    assert "type format=onnx or format=torchscript" in refused(*words)


class Reads:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch code_has_run",)


def test_a_hostile_checkpoint(run: Path) -> None:
    path = Path("from the internet.pt")
    torch.save({"model": Reads(), "config": ""}, path)
    assert "CKPT-UNSAFE" in refused(f"run={path}", error=CheckpointError)
    state = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    for target in ("os.system", "torch.nn.functional.torch.hub.load"):
        config = yaml.safe_load(state["config"])
        config["model"]["_target_"] = target
        torch.save({**state, "config": yaml.safe_dump(config)}, path)
        line = refused(f"run={path}", error=CvtrainError)
        assert "TARGET" in line
        assert target in line
    assert not Path("code_has_run").exists()


BRANCHES = """
from torch import nn


class Pools(nn.Module):
    def __init__(self, *, num_classes):
        super().__init__()
        self.fc = nn.Linear(3 * 8 * 8, num_classes)

    def forward(self, images):
        return self.fc(nn.functional.adaptive_avg_pool2d(images, 8).flatten(1))


class Branches(Pools):
    def forward(self, images):
        logits = super().forward(images)
        return 2 * logits if len(images) == 3 else logits
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A user's own networks."""
    (tmp_path / "branches.py").write_text(BRANCHES)
    (tmp_path / "tree" / "model").mkdir(parents=True)
    for name in ("Branches", "Pools"):
        lines = (f"_target_: branches.{name}", "task: classification", "input: any")
        (tmp_path / "tree" / "model" / f"{name.lower()}.yaml").write_text("\n".join(lines))
    return tmp_path / "tree"


def test_a_file_that_says_something_else_is_kept_under_a_name_that_says_so(
    tmp_path: Path, tree: Path
) -> None:
    """A trace has the one branch that it saw: the network of another batch is another."""
    done = command(
        *("export", "--config-dir", str(tree), "model=branches", "data=shapes", "recipe=none"),
        *("trust=[branches]", "format=torchscript", "out=x"),
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        fresh=True,
    )
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "error[DIFFERS]: model.pt does not say what the network says: 3x3x64x64" in last
    assert "x_differs" in last
    assert not Path("x").exists()
    assert sorted(path.name for path in Path("x_differs").iterdir()) == sorted(
        [*BESIDE, "model.pt"]
    )
    assert "TorchScript" in done.stderr


def test_a_graph_of_one_size(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Adaptive pooling has the windows of one size in the graph; the network takes any."""
    monkeypatch.syspath_prepend(str(tree.parent))
    words = ["model=pools", "data=shapes", "recipe=none", "trust=[branches]", "out=x"]
    assert cli.run(["export", "--config-dir", str(tree), *words]) == 0
    said = capsys.readouterr()
    assert "takes images batch x 3 x 64 x 64" in said.out
    assert "images of 64 px only: 3x3x80x80: " in said.err
    session = onnxruntime.InferenceSession("x/model.onnx")
    assert session.get_inputs()[0].shape == ["batch", 3, 64, 64]


# The papers' networks, minutes of them


LARGE = {"alexnet": 227, "vgg16": 224, "googlenet": 224, "resnet50": 224, "xception": 299}


def made_up(words: list[str], size: int, part: str = "") -> nn.Module:
    """Random weights, batch norm that has seen pictures: numbers as large as of a trained one's."""
    config = compose_config(words).config
    network = build(config, described(config), device=CPU).model
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.train()
    pictures = np.stack([drawn(2 * number, size) for number in range(4)])
    with torch.no_grad():
        network.get_submodule(part)(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 63.75 - 2)
    return network


@pytest.mark.nightly
@pytest.mark.parametrize("name", LARGE)
def test_a_large_classifier(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"model={name}", "data=folder", "recipe=none", f"data.image_size={LARGE[name]}"]
    torch.save(made_up(words, LARGE[name]).state_dict(), "w.pt")
    assert cli.run(["export", *words, "init.weights=w.pt", "out=large"]) == 0
    said = capsys.readouterr().out
    print(name, *said.splitlines(), sep="\n  ")
    shutil.rmtree("large")
    apart = [float(n) for n in re.findall(r"logits differ by (\S+) at most", said)]
    assert len(apart) == 3
    assert max(apart) <= 1e-4


@pytest.mark.nightly
def test_torchvisions_detector(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=fasterrcnn_resnet50_fpn", "data=shapes_boxes", "recipe=none"]
    network = made_up(words, 160, "backbone")
    with torch.no_grad():  # scores that tell boxes apart
        network.roi_heads.box_predictor.cls_score.weight *= 10
        network.rpn.head.cls_logits.weight *= 10
    torch.save(network.state_dict(), "w.pt")
    words += ["data.image_size=480", "init.weights=w.pt", "out=large"]
    assert cli.run(["export", *words]) == 0
    said = capsys.readouterr().out
    print("fasterrcnn_resnet50_fpn", *said.splitlines(), sep="\n  ")
    assert all(int(count) > 20 for count in re.findall(r"(\d+) of \d+ detections", said))
