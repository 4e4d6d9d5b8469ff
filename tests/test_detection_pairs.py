"""Any detector with any data of boxes, through the command; two processes are one."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ranks import Run, start
from tiny import command, metrics, summary, write_data
from torch import nn

from cvtrain import build, targets
from cvtrain.compose import compose_config
from cvtrain.config import config_dir, options
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.window import mean_loss
from cvtrain.errors import ConfigError

CPU = torch.device("cpu")
FIGURES = {"mAP", "mAP50", "mAP75", "AR1", "AR10", "AR100"}


def of_detection(group: str) -> list[str]:
    files = {name: config_dir() / group / f"{name}.yaml" for name in options(group)}
    return [n for n, f in files.items() if yaml.safe_load(f.read_text())["task"] == "detection"]


MODELS, DATA = of_detection("model"), of_detection("data")
MOBILE = ("model.name=fasterrcnn_mobilenet_v3_large_320_fpn", "data.image_size=64")
# Those that two cores train, with what makes them small.
SMALL: dict[str, tuple[str, ...]] = {"torchvision_detector": MOBILE}
SMALL |= {name: () for name in MODELS if name.endswith("_tiny")}
GRID = ("data.proposals=grid", "data.proposals_count=200")
SMALL["rcnn_tiny"] = GRID  # its recipe's selective search is an extra


@pytest.fixture(scope="session")
def typed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Of each data set, tiny files and what to type for them."""
    return {name: write_data(name, tmp_path_factory.mktemp(name)) for name in DATA}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("model", MODELS)
def test_every_pair_composes(model: str, data: str) -> None:
    composed = compose_config([f"model={model}", f"data={data}"])
    assert composed.choices["task"] == "detection"
    assert composed.config.model.task == composed.config.data.task == "detection"


def parts_of(model: str, data: str, typed: dict[str, list[str]]) -> Any:
    line = [f"model={model}", f"data={data}", *typed[data], *SMALL[model], "debug=smoke"]
    config = compose_config([*line, "data.batch_size=2", "trainer.threads=1"]).config
    return build.build_parts(config, device=CPU, ranks=Ranks())


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("model", SMALL)
def test_small_ones_take_a_step(model: str, data: str, typed: dict[str, list[str]]) -> None:
    """One batch of drawn objects, through the parts as the command builds them."""
    parts = parts_of(model, data, typed)
    ((batch,), *_) = parts.train.epoch(0)
    batch = parts.transform(batch)
    network, task = parts.model.train(), parts.task
    if getattr(network, "needs_proposals", False) and batch.proposals is None:
        with pytest.raises(ConfigError, match="the data give none"):
            task.losses(network, batch)
        batch = batch._replace(proposals=[target["boxes"] for target in batch.targets])
    before = [p.detach().clone() for p in network.parameters()]
    torch.manual_seed(0)
    pairs = task.losses(network, batch)
    assert {name: count.item() for name, (_, count) in pairs.items()} == {
        name: count.item() for name, count in task.counts(network, batch).items()
    }
    parts.schedule.apply(parts.optimizer, 1)  # at 0 the warm-up's rate is 0
    mean_loss(pairs, {name: count for name, (_, count) in pairs.items()}).backward()
    parts.optimizer.step()
    after = [p.detach() for p in network.parameters()]
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert sum(moved) > 0.9 * len(moved)
    assert all(p.isfinite().all() for p in after)
    with torch.no_grad():
        found = task.predict(network.eval(), batch)
    assert [one.keys() >= {"boxes", "labels", "scores"} for one in found] == [True, True]


def needs_proposals(model: str) -> bool:
    target = compose_config([f"model={model}", f"data={DATA[0]}"]).config.model.args["_target_"]
    return getattr(targets.resolve(target, nn.Module, []), "needs_proposals", False)


@pytest.mark.parametrize("model", SMALL)
def test_through_the_command(model: str, typed: dict[str, list[str]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [f"model={model}", "data=shapes_boxes", *typed["shapes_boxes"], *SMALL[model]]
    words += ["debug=smoke", "data.batch_size=2", "trainer.accumulate=2", "eval.every=2st"]
    words += ["trainer.ema=0.9", *(GRID if needs_proposals(model) else ())]
    done = command(*words, f"hydra.run.dir={run}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = summary(run)
    assert told["steps"] == 2
    assert told["primary"] == "mAP"
    assert all(0 <= told[f"val/{name}"] <= 100 for name in FIGURES)
    assert len(told["per_category"]) == 8
    assert "pictures left out" not in done.stderr
    assert {"samples.png", "detections.png", "curves.png"} <= {p.name for p in run.glob("*.png")}
    assert re.search(r"\n  mAP50 +[\d.]+ %\n", done.stdout)
    lines = [line for line in metrics(run) if "train/loss" in line]
    assert len(lines) == 2
    # Each loss by its name; R-CNN has but one.
    named = re.findall(r"train/\w*(?:cls|box|loss_)\w*", " ".join(lines[-1]))
    assert len(named) >= (1 if model == "rcnn_tiny" else 2)


# Two processes. At a rate of 0 they hold the same network, although they draw other samples.
ALIKE = [
    *("model=faster_rcnn_tiny", "data=shapes_boxes", "data.size=64", "data.train=8", "data.val=7"),
    *("model.score=0.0", "data_dir=drawn", "data.batch_size=4", "eval.batch_size=3"),
    *("optimizer.lr=0", "trainer.duration=1st", "trainer.log_every=1st", "task.voc=2007"),
    *("eval.every=9ep", "recipe=none"),
]


# The first stage alone: what only the second trains gets no gradient, for which others would wait.
PROPOSALS = [*ALIKE, "optimizer.lr=0.01", "trainer.duration=3st", "task.losses=[rpn_cls,rpn_box]"]
HEAD = "[body.hidden,cls_score,bbox_pred]"


def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    frozen = f"model.freeze={HEAD}"
    runs = [
        Run("one", 1, [*ALIKE, "hydra.run.dir=one"]),
        Run("two", 2, [*ALIKE, "hydra.run.dir=two"]),
        Run("unfrozen", 2, [*PROPOSALS, "hydra.run.dir=unfrozen"]),
        Run("frozen", 2, [*PROPOSALS, frozen, "hydra.run.dir=frozen"]),
    ]
    start(tmp_path, runs)
    errors = "".join(file.read_text() for file in tmp_path.glob("*.err"))
    codes = {"one": [0], "two": [0, 0], "unfrozen": [2, 2], "frozen": [0, 0]}
    assert json.loads((tmp_path / "codes.json").read_text()) == codes, errors
    assert "task.losses; type model.freeze=" in (tmp_path / "unfrozen.0.err").read_text()
    one, two = summary(tmp_path / "one"), summary(tmp_path / "two")
    figures = {key: value for key, value in one.items() if key.startswith("val/")}
    assert len(figures) > 8
    assert figures["val/mAP"] > 0
    assert {key: two[key] for key in figures} == figures
    assert two["per_category"] == one["per_category"]
