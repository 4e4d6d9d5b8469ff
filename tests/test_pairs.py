"""Any network with any data set of its task, with no further key."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import command, summary, write_data

from cvtrain import build, targets
from cvtrain.compose import compose_config
from cvtrain.config import config_dir, options
from cvtrain.data.source import Source
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.window import mean_loss


def of_classification(group: str) -> list[str]:
    files = {name: config_dir() / group / f"{name}.yaml" for name in options(group)}
    return [
        n for n, f in files.items() if yaml.safe_load(f.read_text())["task"] == "classification"
    ]


MODELS, DATA = of_classification("model"), of_classification("data")
META = torch.device("meta")


@pytest.fixture(scope="session")
def typed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Of each data set, tiny files and what to type for them."""
    return {name: write_data(name, tmp_path_factory.mktemp(name)) for name in DATA}


@pytest.fixture(scope="session")
def sources(typed: dict[str, list[str]]) -> dict[str, Source]:
    def source(name: str) -> Source:
        config = compose_config([f"data={name}", *typed[name]]).config
        return targets.make(config.data.args, Source, key="data", trust=[])

    return {name: source(name) for name in DATA}


def needs(model: str) -> None:
    if model == "timm":  # an extra
        pytest.importorskip("timm")


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("model", MODELS)
def test_every_pair_runs_forward(
    model: str, data: str, typed: dict[str, list[str]], sources: dict[str, Source]
) -> None:
    """On the meta device: shapes without numbers, the real sizes without their cost."""
    needs(model)
    config = compose_config([f"model={model}", f"data={data}", *typed[data]]).config
    source = sources[data]
    size = build.input_size(config.model.input, config.data.image_size or source.info.image_size)
    channels, network = build.build_model(config, source, size, device=META)
    images = torch.zeros(4, channels, size, size, device=META)
    outputs = network.eval()(images)
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    assert logits.shape == (4, len(source.info.classes))


@pytest.mark.parametrize("model", MODELS)
def test_every_network_takes_a_step(
    model: str, typed: dict[str, list[str]], tmp_path: Path
) -> None:
    """One batch of real digits through the parts as the command builds them."""
    needs(model)
    line = [f"model={model}", "data=mnist", *typed["mnist"], "debug=smoke", "trainer.threads=1"]
    parts = build.build_parts(
        compose_config(line).config, device=torch.device("cpu"), ranks=Ranks()
    )
    ((batch,), *_) = parts.train.epoch(0)
    before = [p.detach().clone() for p in parts.model.parameters()]
    parts.schedule.apply(parts.optimizer, 1)  # at 0 the warm-up's rate is 0
    pairs = parts.task.losses(parts.model.train(), parts.transform(batch))
    loss = mean_loss(pairs, {name: count for name, (_, count) in pairs.items()})
    assert torch.isfinite(loss)
    loss.backward()
    parts.optimizer.step()
    after = [p.detach() for p in parts.model.parameters()]
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    # timm's residual branches start at zero: behind it nothing moves yet.
    assert sum(moved) > (0.7 if model == "timm" else 0.9) * len(moved)
    assert all(p.isfinite().all() for p in after)


PAIRS: list[tuple[str, str, list[str]]] = [
    ("lenet5", "mnist", []),
    ("lenet5_1998", "fashion_mnist", []),
    ("mlp", "cifar100", []),
    ("cnn", "shapes", []),
    ("cnn", "folder", ["augment=[scale_jitter,flip,color_jitter,lighting,mixup,cutmix]"]),
    ("cnn", "cifar10", ["augment=[pad_crop,rand_augment,random_erasing,affine]"]),
    ("resnet20", "cifar10", []),
    ("resnet18", "folder", ["data.image_size=64"]),
    ("resnet18", "imagenet", ["trainer.workers=2"]),
    ("resnet50", "cifar10", []),
    ("resnet32", "fashion_mnist", ["trainer.ema=0.9"]),
    ("torchvision", "mnist", ["model.name=squeezenet1_1"]),
    ("googlenet", "mnist", ["trainer.accumulate=2", "trainer.ema=0.9"]),
]


@pytest.mark.parametrize(("model", "data", "more"), PAIRS, ids=[f"{m}-{d}" for m, d, _ in PAIRS])
def test_pairs_through_the_command(
    model: str, data: str, more: list[str], typed: dict[str, list[str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words: list[Any] = [f"model={model}", f"data={data}", *typed[data], *more]
    done = command("debug=smoke", *words, f"hydra.run.dir={run}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert summary(run)["steps"] == 2
    assert 0 <= summary(run)["val/top1_err"] <= 100
