"""Faster R-CNN by four alternating steps: what moves in which, and that it can be stopped."""

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from tiny import summary, write_data
from torch import Tensor

from cvtrain.compose import compose_config
from cvtrain.errors import ConfigError
from cvtrain.models.detection.faster_rcnn import FasterRCNN
from cvtrain.trained.network import build, described, of_run

SCRIPT = Path(__file__).parents[1] / "scripts" / "alternate.py"
STEPS = ("1_rpn", "2_fast_rcnn", "3_rpn", "4_faster_rcnn")
CPU = torch.device("cpu")


def start(folder: Path, words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), "--out", "out", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def tree(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of all four steps; the start is a body of its own."""
    root = tmp_path_factory.mktemp("data")
    torch.manual_seed(123)
    model = FasterRCNN(num_classes=9, body={"name": "tiny"}, rpn={"channels": 8})
    body = {n: t for n, t in model.state_dict().items() if n.startswith("body.layers.")}
    torch.save(body, root / "start.pt")
    begin = [f"init.weights={root / 'start.pt'}", "init.reset_head=true"]
    return [*write_data("shapes_boxes", root), *begin, "trainer.duration=4st", "eval.max_batches=1"]


@pytest.fixture(scope="module")
def out(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped in its first step, then done, then typed once more."""
    folder = tmp_path_factory.mktemp("alternate")
    process = start(folder, words)
    status, end = folder / "out" / STEPS[0] / "status.json", time.monotonic() + 60
    while not status.exists() and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "# out/2_fast_rcnn" not in said
    process = start(folder, words)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    (folder / "log").write_text(said)
    return folder / "out"


@pytest.fixture(scope="module")
def states(out: Path) -> list[dict[str, Tensor]]:
    files = [out / step / "checkpoints" / "last.pt" for step in STEPS]
    return [torch.load(file, weights_only=True)["model"] for file in files]


def changed(old: dict[str, Tensor], new: dict[str, Tensor]) -> set[str]:
    """The parts in which any bit of any tensor that both have is another."""
    both = [name for name in new if name in old]
    parts = [name for name in both if not torch.equal(old[name], new[name])]
    return {".".join(name.split(".")[: 2 if name.startswith("body") else 1]) for name in parts}


@pytest.mark.nightly  # a minute of runs, for all of them
def test_what_moves_in_each_step(words: list[str], states: list[dict[str, Tensor]]) -> None:
    head = {"body.hidden", "cls_score", "bbox_pred"}
    rpn, fast, again, whole = states
    begin = torch.load(words[-4].partition("=")[2], weights_only=True)
    assert changed(begin, rpn) == changed(begin, fast) == {"body.layers"}  # each its own
    assert changed(rpn, fast) == {"body.layers", *head}
    assert not [name for name in fast if name.startswith("rpn.")]
    assert changed(fast, again) == set()
    assert changed(rpn, again) >= {"rpn", "body.layers"}
    assert changed(again, whole) == head
    shared = [name for name in whole if name.startswith("body.layers.")]
    assert len(shared) == 15
    assert all(torch.equal(whole[name], fast[name]) for name in shared)
    assert whole.keys() == rpn.keys() == again.keys()


@pytest.mark.nightly
def test_what_each_step_starts_from(out: Path, words: list[str]) -> None:
    said = (out.parent / "log").read_text()
    configs = [yaml.safe_load((out / step / "config.yaml").read_text()) for step in STEPS]
    begin = words[-4].partition("=")[2]
    last = [f"out/{step}/checkpoints/last.pt" for step in STEPS]
    assert [c["init"]["weights"] for c in configs] == [begin, begin, last[1], last[2]]
    assert f"weights of {last[1]}; new: rpn.conv.weight, rpn.conv.bias, rpn.cls.weight" in said
    assert f"weights of {last[2]}\n" in said  # nothing is new
    assert [c["data"]["proposals"] for c in configs] == [None, "out/1_rpn", None, None]
    assert "train: out/1_rpn proposes" in said
    assert [c["trainer"]["duration"] for c in configs] == ["4st"] * 4
    assert {c["optimizer"]["_target_"] for c in configs} == {"torch.optim.AdamW"}  # the recipe's


@pytest.mark.nightly
def test_the_first_heads_stand_still(states: list[dict[str, Tensor]], words: list[str]) -> None:
    """At the values that chance gave them; and without a start both bodies are the same."""
    pair = ["model=faster_rcnn_tiny", "data=shapes_boxes", *words]
    config = compose_config(pair).config
    begin = build(config, described(config), device=CPU).model.state_dict()
    assert changed(begin, states[0]) == {"body.layers", "rpn"}
    fast = "model._target_=cvtrain.models.detection.fast_rcnn.FastRCNN"
    config = compose_config([*pair, fast, "~model.rpn"]).config
    assert changed(begin, build(config, described(config), device=CPU).model.state_dict()) == set()


@pytest.mark.nightly
def test_the_last_is_a_whole_detector(out: Path) -> None:
    found = summary(out / STEPS[3])
    assert 0 <= found["val/mAP"] <= 100
    assert json.loads((out / STEPS[3] / "status.json").read_text())["state"] == "done"
    network = of_run(str(out / STEPS[3]), compose_config([]), [], device=CPU)
    assert isinstance(network.model, FasterRCNN)
    with torch.no_grad():
        [detections] = network.model([torch.randn(3, 64, 64)])
    assert detections.keys() == {"boxes", "labels", "scores"}


@pytest.mark.nightly
def test_typed_again_it_trains_nothing(out: Path, words: list[str]) -> None:
    before = tree(out)
    process = start(out.parent, words)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    steps = [f"# out/{step}\nfinished already: out/{step}\n" for step in STEPS]
    assert said == "".join(steps) + "# the detector: out/4_faster_rcnn\n"
    assert tree(out) == before


# Parts


@pytest.fixture(scope="module")
def alternate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("alternate", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("model", "shared", "rest"),
    [
        ("faster_rcnn", ["features"], ["classifier"]),
        ("faster_rcnn_resnet50_c4", ["conv1", "layer1", "layer2", "layer3"], ["layer4"]),
        ("faster_rcnn_resnet50_c5", ["conv1", *(f"layer{n}" for n in (1, 2, 3, 4))], ["hidden"]),
    ],
)
def test_what_is_shared(
    alternate: ModuleType, model: str, shared: list[str], rest: list[str]
) -> None:
    """The paper's convolutions; of the residual network, all up to conv4_x (C4) or conv5_x."""
    found = alternate.layers_of([f"model={model}", "data=voc"])
    assert found == tuple([f"body.{name}" for name in names] for names in (shared, rest))


def test_what_the_weights_settled_goes_on(alternate: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    mean = [0.48, 0.45, 0.4]
    followed = {"data.mean": mean, "data.std": [1.0, 1.0, 1.0], "model.body.stride_in": "3x3"}
    torch.save({"followed": followed}, tmp_path / "checkpoints" / "last.pt")
    typed = ["data.std=[0.5,0.5,0.5]"]
    words = [*typed, *alternate.settled(tmp_path, typed), *alternate.weights_of(tmp_path)]
    begin = "model.pretrained_backbone=imagenet"  # of the recipe
    pair = ["model=faster_rcnn_resnet50_c4", "data=voc", begin]
    config = compose_config([*pair, *words]).config
    assert (config.data.args["mean"], config.data.args["std"]) == (mean, [0.5] * 3)
    assert config.model.args["body"]["stride_in"] == "3x3"
    assert (config.model.pretrained, config.model.pretrained_backbone) == (None, None)
    assert config.init.weights == str(tmp_path / "checkpoints" / "last.pt")


@pytest.mark.parametrize(
    ("model", "word", "said"),
    [
        ("faster_rcnn_tiny", "model.freeze=[body]", "the four steps settle that themselves"),
        ("faster_rcnn_tiny", "resume=auto", "leave it out"),
        ("faster_rcnn_tiny", "~model", "leave it out"),
        ("fast_rcnn_tiny", "seed=1", "FastRCNN is not made of an RPN and Fast R-CNN"),
        ("retinanet_resnet50_fpn", "seed=1", "RetinaNet is not made"),
        ("faster_rcnn_tiny", "trainer.durations=1ep", "type trainer.duration="),
    ],
)
def test_what_is_refused(
    alternate: ModuleType, model: str, word: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        alternate.alternate(model, "shapes_boxes", tmp_path, [word])
    assert said in caught.value.line()
    assert os.listdir(tmp_path) == []
