"""The recipe of each paper: its settings, as far as the paper has them, and two steps of it."""

import re
from pathlib import Path

import pytest
import torch
from tiny import command, summary, write_data

from cvtrain.build import build_parts
from cvtrain.compose import compose_config
from cvtrain.config import Duration, Unit, config_dir, options
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.evaluate import evaluate
from cvtrain.engine.window import mean_loss

IMAGES = {"mnist": 60_000, "cifar10": 50_000, "imagenet": 1_281_167}
# Batch, first rate, momentum, weight decay; passes over the training images. What a paper leaves
# open is None. Krizhevsky 2012, section 5; Simonyan, Zisserman 2014, 3.1; Szegedy 2014, 6; He 2015,
# 3.4 and 4.2; Chollet 2016, 4.4; LeCun 1998, III-B.
PAPERS = {
    "lenet5_1998_mnist": (None, None, None, None, 20),
    "alexnet_imagenet": (128, 0.01, 0.9, 5e-4, 90),
    "vgg11_imagenet": (256, 0.01, 0.9, 5e-4, 73.9),
    "vgg11_lrn_imagenet": (256, 0.01, 0.9, 5e-4, 73.9),
    "vgg13_imagenet": (256, 0.01, 0.9, 5e-4, 73.9),
    "vgg16_c_imagenet": (256, 0.01, 0.9, 5e-4, 73.9),
    "vgg16_imagenet": (256, 0.01, 0.9, 5e-4, 73.9),
    "vgg19_imagenet": (256, 0.01, 0.9, 5e-4, 73.9),
    "googlenet_imagenet": (None, None, 0.9, None, None),
    "resnet18_imagenet": (256, 0.1, 0.9, 1e-4, 119.9),
    "resnet34_imagenet": (256, 0.1, 0.9, 1e-4, 119.9),
    "resnet50_imagenet": (256, 0.1, 0.9, 1e-4, 119.9),
    "resnet101_imagenet": (256, 0.1, 0.9, 1e-4, 119.9),
    "resnet152_imagenet": (256, 0.1, 0.9, 1e-4, 119.9),
    "resnet20_cifar10": (128, 0.1, 0.9, 1e-4, 163.8),
    "resnet32_cifar10": (128, 0.1, 0.9, 1e-4, 163.8),
    "resnet44_cifar10": (128, 0.1, 0.9, 1e-4, 163.8),
    "resnet56_cifar10": (128, 0.1, 0.9, 1e-4, 163.8),
    "resnet110_cifar10": (128, 0.1, 0.9, 1e-4, 163.8),
    "xception_imagenet": (None, 0.045, 0.9, 1e-5, None),
}


@pytest.mark.parametrize("name", PAPERS)
def test_settings_of_the_paper(name: str) -> None:
    composed = compose_config([f"recipe={name}"])
    config, sgd = composed.config, composed.config.optimizer.args
    length = Duration.parse(config.trainer.duration, "trainer.duration")
    passes = length.value
    if length.unit is Unit.steps:
        passes *= config.data.batch_size / IMAGES[composed.choices["data"]]
    ours = (config.data.batch_size, sgd["lr"], sgd["momentum"], sgd["weight_decay"])
    for found, wanted in zip((*ours, round(passes, 1)), PAPERS[name], strict=True):
        assert wanted is None or found == wanted
    assert not sgd.get("nesterov")


def test_every_recipe_with_a_papers_figure_is_held_against_it() -> None:
    """But those of LeNet-5 of today, whose optimizer is not of 1998."""
    files = {name: config_dir() / "recipe" / f"{name}.yaml" for name in options("recipe")}
    # Those of detectors, held against torchvision's own settings, publish mAP.
    found = re.compile(r"published:.*top1_err")
    published = {name for name, file in files.items() if found.search(file.read_text())}
    assert published - set(PAPERS) == {"lenet5_mnist", "lenet5_mnist_distorted"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name in IMAGES:
        write_data(name, root)
    return root


def test_through_the_command(data: Path, tmp_path: Path) -> None:
    """A sweep over the papers' recipes, which choose network and data."""
    names = ["lenet5_1998_mnist", "resnet20_cifar10", "googlenet_imagenet", "resnet50_imagenet"]
    names.append("xception_imagenet")
    done = command(
        *("-m", f"recipe={','.join(names)}", f"data_dir={data}", "debug=smoke"),
        *("data.image_size=71", "trainer.checkpoint_every=2st", "eval.every=2st"),
        *("eval.max_batches=1", "hydra.sweep.dir=sweep"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    runs = sorted(file.parent for file in (tmp_path / "sweep").glob("**/summary.json"))
    assert sorted(summary(run)["recipe"] for run in runs) == sorted(names)
    for run in runs:
        told = summary(run)
        paper = compose_config([f"recipe={told['recipe']}"]).config.published
        assert (told["steps"], told["published"]) == (2, paper)
        assert 0 <= told["val/top1_err"] <= 100


@pytest.mark.parametrize(
    ("name", "views"), [("alexnet_imagenet", "ten_crop"), ("vgg16_imagenet", "one_crop")]
)
def test_a_step_of_the_large_ones(name: str, views: str, data: Path) -> None:
    """In this process: their checkpoints are of half a gigabyte and more."""
    line = [f"recipe={name}", f"data_dir={data}", "debug=smoke", f"eval.views={views}"]
    size = ["data.image_size=32"] if name.startswith("vgg") else []
    config, cpu = compose_config([*line, *size]).config, torch.device("cpu")
    parts = build_parts(config, device=cpu, ranks=Ranks())
    ((batch,), *_) = parts.train.epoch(0)
    parts.schedule.apply(parts.optimizer, 1)
    pairs = parts.task.losses(parts.model.train(), parts.transform(batch))
    loss = mean_loss(pairs, {key: count for key, (_, count) in pairs.items()})
    loss.backward()
    parts.optimizer.step()
    parts.optimizer.zero_grad()
    evaluator = evaluate(
        *(parts.model, parts.val),
        **{"task": parts.task, "transform": parts.transform, "device": cpu, "ranks": Ranks()},
        **{"autocast": torch.autocast("cpu", enabled=False), "max_batches": 1},
    )
    assert loss.isfinite()
    assert evaluator
    assert evaluator.totals["samples"] == (1 if views == "ten_crop" else 4)
    assert evaluator.totals["loss_sum"].isfinite()
