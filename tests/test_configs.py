"""Every YAML by globbing, and the rules of composition: recipes, mistakes, paths, secrets."""

import importlib
import inspect
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch import nn
from torch.optim import Optimizer

from cvtrain import build, targets
from cvtrain.cli import split_verb
from cvtrain.compose import Composed, compose_config, flatten
from cvtrain.config import AUGMENT, GROUPS, Duration, Precision, Unit, config_dir, options
from cvtrain.data.augment import Augment
from cvtrain.data.batch import ClassificationBatch
from cvtrain.data.source import Augmentations
from cvtrain.engine.schedule import Schedule
from cvtrain.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"
CHOICES = [(group, name) for group in GROUPS for name in options(group)]
RECIPES = [name for name in options("recipe") if name != "none"]

# Switches of torch's implementation, not of the method; `params` is the network's.
UNLISTED = {"params", "foreach", "maximize", "capturable", "differentiable", "fused"}
UNLISTED |= {"decoupled_weight_decay"}  # that is AdamW
# What build.py takes from the data set or from another group.
FROM_DATA = {"num_classes", "in_channels", "image_size", "classes", "class_counts", "info"}
FROM_DATA |= {"head_first", "after_head"}


@pytest.fixture(autouse=True)
def _no_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CVTRAIN_DATA", raising=False)


def read(group: str, name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8"))


def target_of(node: dict[str, Any]) -> Any:
    module, _, name = node["_target_"].replace("${.name}", str(node.get("name"))).rpartition(".")
    return getattr(importlib.import_module(module), name)


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose_config(list(overrides))
    return caught.value.line()


# Every file


def test_the_checkout_is_what_is_tested() -> None:
    assert config_dir() == CONFIGS
    assert {path.parent.name for path in CONFIGS.glob("*/*.yaml")} == {
        *GROUPS,
        AUGMENT,
        "sweep",  # no group: what a launcher begins with
    }


def partners(group: str, name: str) -> list[str]:
    """Model and data of the same task, where those of the default are of another."""
    if group not in ("model", "data", "task"):
        return []
    kind = name if group == "task" else read(group, name)["task"]
    others = {g: [n for n in options(g) if read(g, n)["task"] == kind] for g in ("model", "data")}
    alike = kind != "classification"
    return [f"{g}={names[0]}" for g, names in others.items() if g != group and names and alike]


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=map("/".join, CHOICES))
def test_every_choice_composes(group: str, name: str) -> None:
    composed = compose_config([f"{group}={name}", *partners(group, name)])
    assert composed.choices[group] == name
    if group != "recipe":
        stored = yaml.safe_load(composed.text)
        block = read(group, name)
        if group == "debug":
            block = {k: v for k, v in block.items() if v and k != "defaults"}
            assert block.keys() <= stored.keys()
        else:
            assert stored[group].keys() >= block.keys() - {"defaults"}


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=map("/".join, CHOICES))
def test_every_file_says_what_it_is(group: str, name: str) -> None:
    lines = (CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    if group in ("recipe", "debug"):
        assert lines.pop(0) == "# @package _global_"
    if group != "eval":  # one choice, whose keys explain themselves
        assert lines[0].startswith("# ")


TARGETS = [
    (group, name)
    for group, name in CHOICES
    if group in ("data", "task", "optimizer", "scheduler", "model") and name != "torch"
]


@pytest.mark.parametrize(("group", "name"), TARGETS, ids=map("/".join, TARGETS))
def test_yaml_lists_every_argument_of_its_target(group: str, name: str) -> None:
    node = read(group, name)
    target = target_of(node)
    parameters: dict[str, inspect.Parameter] = {}
    for kind in target.__mro__ if isinstance(target, type) else (target,):  # **warmup goes up
        if kind is not object and kind.__module__.startswith(("cvtrain.", "torch.optim.")):
            parameters |= inspect.signature(kind).parameters
            if all(
                p.kind is not p.VAR_KEYWORD for p in inspect.signature(kind).parameters.values()
            ):
                break
    taken = {key for key, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    wanted = taken - FROM_DATA - UNLISTED
    ours = {
        "model": {"task", "input"},
        "data": {
            *("task", "batch_size", "image_size", "limit", "sampler", "augment", "defaults"),
        },
    }
    listed = node.keys() - {"_target_"} - ours.get(group, set())
    if name in ("resnet18", "resnet34"):
        wanted.discard("stride_in")  # means nothing to basic blocks
    assert listed == wanted


AUGMENTS = [name for name in options(AUGMENT) if name != "none"]
# Of images with boxes only, or of a size of their own: tests/data/test_detection_data.py.
OF_BOXES = {"scale_jitter_boxes", "large_scale_jitter", "iou_crop", "zoom_out"}


@pytest.mark.parametrize("name", AUGMENTS)
def test_every_augmentation_joins_and_builds(name: str) -> None:
    config = compose_config([f"augment=[{name}]", "data=cifar10"]).config
    assert list(config.data.augment) == [name]
    node = config.data.augment[name]
    parameters = inspect.signature(target_of(node)).parameters
    assert node.keys() - {"_target_"} <= parameters.keys()
    given = {"num_classes": 10}
    sorted_ = Augmentations.sort([targets.make(node, object, key=name, trust=[], **given)])
    if name in OF_BOXES:
        return
    batch = ClassificationBatch(
        torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8), torch.arange(4), torch.arange(4)
    )
    augment = Augment(sorted_.as_batches(), sorted_.mixes)
    changed = augment(batch, torch.rand(4, augment.draws))
    changed = augment.mix(changed, 1) if augment.mixes else changed
    assert changed.images.shape == batch.images.shape


def test_augmentations_compose_in_their_order() -> None:
    def names(*typed: str) -> list[str]:
        return list(compose_config([*typed, "recipe=none"]).config.data.augment)

    assert names("data=cifar10") == ["pad_crop", "flip"]
    assert names("data=cifar10", "augment=[flip,mixup,affine]") == ["flip", "mixup", "affine"]
    assert names("data=cifar10", "augment=[none]") == []
    assert names("augment=[random_erasing]", "data=mnist") == ["random_erasing"]
    assert names("data=cifar10", "data.augment=null") == []
    config = compose_config(["data=cifar10", "augment=[affine]", "data.augment.affine.shear=3"])
    assert config.config.data.augment["affine"]["shear"] == 3


def test_two_crops_are_refused() -> None:
    """An image is read once: the second would be passed over."""
    nodes = compose_config(["augment=[random_resized_crop,scale_jitter]"]).config.data.augment
    made = [targets.make(node, object, key=name, trust=[]) for name, node in nodes.items()]
    with pytest.raises(ConfigError, match=r"two crops, RandomResizedCrop and ScaleJitter"):
        Augmentations.sort(made)


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("augment=[flip,mixp]", "type augment=mixup"),
        ("augment=flip", r"type augment=\[flip\]"),
        ("augment=[]", r"type augment=\[none\]"),
        ("augmnt=[flip]", "type augment="),
    ],
)
def test_a_wrong_augmentation_names_the_nearest(typed: str, hint: str) -> None:
    assert re.search(hint, refusal(typed))


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop"])
def test_optimizer_defaults_are_torchs(name: str) -> None:
    node = read("optimizer", name)
    parameters = inspect.signature(target_of(node)).parameters
    for key, value in node.items():
        if key != "_target_":
            default = parameters[key].default
            assert value == (list(default) if isinstance(default, tuple) else default), key


@pytest.mark.parametrize("name", options("optimizer"))
def test_every_optimizer_builds_and_steps(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    config = compose_config([f"optimizer={name}", "recipe=none"]).config
    optimizer = build._optimizer(config, model)
    assert type(optimizer) is target_of(read("optimizer", name))
    [group] = optimizer.param_groups
    for key, value in config.optimizer.args.items():
        if key != "_target_":
            assert group[key] == (tuple(value) if isinstance(value, list) else value)
    inputs, before = torch.randn(8, 3), model.weight.detach().clone()
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not torch.equal(before, model.weight)


@pytest.mark.parametrize("name", options("scheduler"))
def test_every_schedule_builds_and_steps(name: str) -> None:
    typed = [f"scheduler={name}", "scheduler.warmup=2st", "optimizer.lr=0.5", "recipe=none"]
    config = compose_config(typed).config
    schedule = build._schedule(config, 100)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    optimizer.param_groups[0]["initial_lr"] = 0.5
    rates = []
    for step in range(1200):
        schedule.apply(optimizer, step)
        rates.append(optimizer.param_groups[0]["lr"])
    full = 0.01 if name == "preset" else 0.5
    assert rates[0] == pytest.approx(full / 3, rel=1e-2)  # (step + 1) / (warmup + 1)
    assert rates[1] == pytest.approx(full * 2 / 3, rel=1e-2)
    assert rates[2] == pytest.approx(full, rel=1e-2)
    assert min(rates) >= 0
    moves = name not in ("constant", "plateau", "multistep")  # its milestones are beyond 12 epochs
    assert (len(set(rates)) > 3) == moves


# Durations become steps here, where the length of an epoch is known.
@pytest.mark.parametrize(
    ("typed", "attribute", "expected"),
    [
        ("scheduler=step scheduler.step_size=2.5ep", "step_size", 250),
        ("scheduler=multistep scheduler.milestones=[1ep,150st]", "milestones", [100, 150]),
        ("scheduler=cosine trainer.duration=7ep", "T_max", 700),
        ("scheduler=poly trainer.duration=64000st", "total", 64000),
        ("scheduler=preset scheduler.every=3ep", "every", 300),
        ("scheduler=constant scheduler.warmup=0.5ep", "warmup", 50),
    ],
)
def test_durations_become_steps(typed: str, attribute: str, expected: Any) -> None:
    config = compose_config(["recipe=none", *typed.split()]).config
    assert getattr(build._schedule(config, 100), attribute) == expected


def test_a_schedule_over_minutes_is_refused() -> None:
    line = refusal("scheduler=cosine", "trainer.duration=30min")
    assert "30min" in line
    assert "20ep" in line


class Mine(Schedule):
    """A schedule of a user's own, with a word and a length."""

    def __init__(self, *, mode: str, length: int, **warmup: Any) -> None:
        super().__init__(**warmup)
        self.mode, self.length = mode, length


def test_a_users_schedule_may_have_arguments_of_its_own() -> None:
    """Words go through as they are, lengths become steps, minutes are refused in one line."""

    def made(length: str) -> Mine:
        typed = ["scheduler=constant", "+scheduler.mode=soft", f"+scheduler.length={length}"]
        config = compose_config(typed).config
        config.scheduler.args["_target_"], config.trust = f"{__name__}.Mine", [__name__]
        return build._schedule(config, 100)

    assert (made("2ep").mode, made("2ep").length) == ("soft", 200)
    with pytest.raises(ConfigError, match="30min"):
        made("30min")


# Recipes


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_file(name: str) -> None:
    text = (CONFIGS / "recipe" / f"{name}.yaml").read_text(encoding="utf-8")
    recipe = yaml.safe_load(text)
    chosen = {key: value for entry in recipe["defaults"] for key, value in entry.items()}
    if not name.startswith("finetune"):  # of any pair
        model, data = chosen["override /model"], chosen["override /data"]
        assert model in options("model")
        assert data in options("data")
        assert name == f"{model}_{data}" or name.startswith(f"{model}_{data}_")
    assert "published" in recipe or len(re.findall("(?m)^#", text)) > 1
    if "published" in recipe:
        assert recipe["published"]["source"]
        figures = [recipe["published"].get(name) for name in ("top1_err", "mAP", "voc_mAP")]
        assert any(figure and figure > 0 for figure in figures)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_composes_to_what_it_says(name: str) -> None:
    recipe = read("recipe", name)
    chosen = {
        key.removeprefix("override /"): value
        for e in recipe.pop("defaults")
        for key, value in e.items()
    }
    composed = compose_config([f"recipe={name}"])
    augment = chosen.pop("augment@data.augment", None)
    assert augment is None or list(composed.config.data.augment) == augment
    assert composed.recipe_sets.get("augment") == augment
    assert chosen.items() <= composed.choices.items()
    assert composed.choices["recipe"] == name
    stored = flatten(composed.text)
    for key, value in flatten(yaml.safe_dump(recipe)).items():
        assert stored[key] == value, key
        if not key.startswith("published"):
            assert composed.recipe_sets[key] == value
    assert chosen.items() <= composed.recipe_sets.items()


def resnet20(*typed: str) -> Composed:
    return compose_config(["model=resnet20", "data=cifar10", *typed])


def test_the_pair_finds_its_recipe() -> None:
    composed = resnet20()
    assert composed.choices["recipe"] == "resnet20_cifar10"
    assert composed.choices["scheduler"] == "multistep"
    assert composed.config.scheduler.args["milestones"] == ["32000st", "48000st"]
    assert composed.config.trainer.duration == "64000st"
    assert composed.config.published["top1_err"] == 8.75
    assert compose_config(["data=cifar10", "model=resnet20"]).text == composed.text


def test_a_bare_command_has_the_default_recipe() -> None:
    composed = compose_config([])
    assert {k: composed.choices[k] for k in ("model", "data", "recipe")} == {
        "model": "cnn",
        "data": "shapes",
        "recipe": "cnn_shapes",
    }


def test_a_pair_without_recipe_has_the_groups_defaults() -> None:
    composed = compose_config(["model=mlp", "data=mnist"])
    assert composed.choices["recipe"] == "none"
    assert composed.recipe_sets == {}
    assert composed.choices["scheduler"] == "step"


def test_recipe_none_goes_without() -> None:
    composed = resnet20("recipe=none")
    assert composed.choices["recipe"] == "none"
    assert composed.choices["scheduler"] == "step"
    assert composed.config.trainer.duration == read("trainer", "default")["duration"]
    assert composed.config.published == {}


def test_a_recipe_alone_picks_model_and_data() -> None:
    composed = compose_config(["recipe=lenet5_mnist_distorted"])
    assert (composed.choices["model"], composed.choices["data"]) == ("lenet5", "mnist")
    assert composed.config.data.augment["affine"]["degrees"] == 8


def test_a_typed_optimizer_is_plain() -> None:
    composed = resnet20("optimizer=adam")
    torchs = torch.optim.Adam([nn.Parameter(torch.zeros(1))]).defaults
    arguments = composed.config.optimizer.args
    assert arguments.pop("_target_") == "torch.optim.Adam"
    arguments["betas"] = tuple(arguments["betas"])
    assert arguments == {key: torchs[key] for key in arguments}
    assert arguments.keys() == torchs.keys() - UNLISTED
    assert not any(key.startswith("optimizer") for key in composed.recipe_sets)
    # The rest of the recipe stays.
    assert composed.config.scheduler.args["milestones"] == ["32000st", "48000st"]
    assert composed.choices["recipe"] == "resnet20_cifar10"
    assert composed.config.published["top1_err"] == 8.75


def test_a_typed_scheduler_is_plain() -> None:
    arguments = resnet20("scheduler=step").config.scheduler.args
    assert arguments == {
        k: read("scheduler", "step")[k] for k in ("_target_", "step_size", "gamma")
    }


def test_a_typed_value_wins() -> None:
    composed = resnet20("optimizer.lr=0.3", "trainer.duration=3ep", "data.batch_size=32")
    assert composed.config.optimizer.args["lr"] == 0.3
    assert composed.config.optimizer.args["momentum"] == 0.9
    assert composed.config.trainer.duration == "3ep"
    assert composed.config.data.batch_size == 32
    assert not {"optimizer.lr", "trainer.duration", "data.batch_size"} & composed.recipe_sets.keys()


def test_debug_wins_over_a_recipe_and_a_typed_value_over_debug() -> None:
    config = resnet20("debug=smoke").config
    assert (config.trainer.duration, config.data.batch_size) == ("2st", 4)
    assert config.scheduler.args["milestones"] == ["32000st", "48000st"]
    assert "trainer.duration" not in resnet20("debug=smoke").recipe_sets
    config = resnet20("debug=smoke", "trainer.duration=5st").config
    assert (config.trainer.duration, config.data.batch_size) == ("5st", 4)


def test_overfit_trains_on_one_batch_at_a_constant_rate() -> None:
    """Whatever the recipe has for schedule and augmentation."""
    config = resnet20("debug=overfit", "data.batch_size=7").config
    assert config.scheduler.args == {"_target_": "cvtrain.engine.schedule.ConstantLR"}
    assert config.data.augment == {}
    assert (config.data.limit, config.eval.split) == (7, "train")
    assert config.optimizer.args["lr"] == 0.1  # the rest of the recipe stays


def test_the_recipes_own_data_and_model_keep_their_blocks() -> None:
    name = "lenet5_mnist_distorted"
    alone = compose_config([f"recipe={name}"])
    for typed in (["data=mnist"], ["model=lenet5"], ["model=lenet5", "data=mnist"]):
        assert compose_config([f"recipe={name}", *typed]).text == alone.text


def test_another_model_drops_the_published_figure() -> None:
    composed = compose_config(["recipe=resnet20_cifar10", "model=resnet32"])
    assert (composed.choices["model"], composed.choices["data"]) == ("resnet32", "cifar10")
    assert composed.config.published == {}
    assert composed.config.model.args["depth"] == 32
    assert composed.config.scheduler.args["milestones"] == ["32000st", "48000st"]


def test_other_data_drop_the_recipes_block_for_them() -> None:
    composed = compose_config(["recipe=lenet5_mnist_distorted", "data=shapes"])
    assert composed.config.published == {}
    assert list(composed.config.data.augment) == ["flip"]
    assert composed.config.trainer.duration == "30ep"


def test_one_composition_leaves_nothing_for_the_next() -> None:
    before = resnet20().text
    resnet20("optimizer=adam", "debug=smoke")
    compose_config(["recipe=resnet20_cifar10", "model=resnet32"])
    assert resnet20().text == before


# Mistakes


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("optimizer.lrr=1", "optimizer.lr=1"),
        ("model=resnet20 model.dept=32", "model.depth=32"),
        ("scheduler=multistep scheduler.milestone=[1ep]", r"scheduler.milestones=\[1ep\]"),
        ("trainer.acumulate=2", "trainer.accumulate=2"),
        ("modle=resnet20", "model=resnet20"),
        ("optimizr=adam", "optimizer=adam"),
        ("model=lenet", "model=lenet5"),
        ("optimizer=adm", "optimizer=adam"),
        ("data=cifar", "data=cifar10"),
        ("recipe=resnet20_cifar", "recipe=resnet20_cifar10"),
        ("debug=smok", "debug=smoke"),
        ("model=resnet20 data=cifar10 debug=smok", "debug=smoke"),
        ("trainer.precision=fp23", "fp32"),
        ("trainer.precision=off", "bf16"),
        ("trainer.progress=maybe", "auto"),
        ("foo", "key=value"),
        ("model=null", "model"),
        ("trust=toy", r"trust=\[toy\]"),
        ("resume_allow=seed", r"resume_allow=\[seed\]"),
        ("optimizer.lr=0.1,0.2", "-m"),
    ],
)
def test_a_mistake_names_the_nearest(typed: str, hint: str) -> None:
    line = refusal(*typed.split())
    assert line.startswith("cvtrain: error[CONFIG]: ")
    assert "\n" not in line
    assert re.search(hint, line), line


def test_a_wrong_verb_names_the_verbs() -> None:
    with pytest.raises(ConfigError, match=r"trian.*train"):
        split_verb(["trian", "model=cnn"])
    assert split_verb(["model=cnn"]) == ("train", ["model=cnn"])


@pytest.mark.parametrize(
    ("typed", "wrong"),
    [
        ("optimizer.lr=-1", "at least 0"),
        ("optimizer.lr=nan", "not finite"),
        ("optimizer.lr=inf", "not finite"),
        ("optimizer.lr=fast", "number"),
        ("optimizer.momentum=1.5", "0 to 1"),
        ("optimizer=adam optimizer.eps=nan", "not finite"),
        ("task.label_smoothing=nan", "not finite"),
        ("data.batch_size=0", "at least 1"),
        ("data.batch_size=1.5", "Integer"),
        ("eval.batch_size=0", "at least 1"),
        ("eval.max_batches=0", "at least 1"),
        ("trainer.accumulate=0", "at least 1"),
        ("trainer.clip_norm=-1", "at least 0"),
        ("trainer.ema=1.1", "0 to 1"),
        ("trainer.workers=-1", "at least 0"),
        ("trainer.threads=0", "at least 1"),
        ("trainer.duration=0ep", "more than 0"),
        ("trainer.log_every=0st", "more than 0"),
        ("scheduler.warmup_from=2", "0 to 1"),
        ("scheduler.warmup_shape=cubic", "linear"),
        ("scheduler=step scheduler.step_size=10", "20ep"),  # steps or epochs?
        ("scheduler=multistep scheduler.milestones=[1ep,2]", "20ep"),
        ("seed=-1", "at least 0"),
        ("seed=x", "seed"),
        ("trainer.compile=maybe", "trainer.compile"),
    ],
)
def test_values_out_of_range(typed: str, wrong: str) -> None:
    line = refusal(*typed.split())
    assert wrong in line
    assert typed.split()[-1].partition("=")[0] in line


def test_values_at_the_ends_of_their_ranges() -> None:
    typed = ["trainer.ema=0", "trainer.workers=0", "optimizer.momentum=0", "seed=0"]
    config = compose_config([*typed, "trainer.precision=tf32", "trainer.clip_norm=null"]).config
    assert (config.trainer.ema, config.trainer.workers, config.trainer.clip_norm) == (0, 0, None)
    assert config.trainer.precision is Precision.tf32


# Durations


@pytest.mark.parametrize(
    ("text", "value", "unit", "steps"),
    [
        ("164ep", 164, Unit.epochs, 16400),
        ("64000st", 64000, Unit.steps, 64000),
        ("0.5ep", 0.5, Unit.epochs, 50),
        ("0ep", 0, Unit.epochs, 0),
        (" 3ep ", 3, Unit.epochs, 300),
        ("30min", 30, Unit.minutes, None),
    ],
)
def test_durations(text: str, value: float, unit: Unit, steps: int | None) -> None:
    duration = Duration.parse(text, "key")
    assert (duration.value, duration.unit) == (value, unit)
    if steps is not None:
        assert duration.steps(100) == steps


@pytest.mark.parametrize(
    "text", ["5", "5 ep", "ep", "-5ep", "5epochs", "1e3st", "5EP", "", "nan", "infep", ".5ep", "5h"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.duration=20ep"):
        Duration.parse(text, "trainer.duration")


@pytest.mark.parametrize(
    "key", ["trainer.log_every", "trainer.checkpoint_every", "eval.every", "scheduler.warmup"]
)
def test_only_a_run_is_measured_in_minutes(key: str) -> None:
    line = refusal(f"{key}=5min")
    assert f"{key}=20ep" in line
    assert "min" not in line.partition("type")[2]
    assert compose_config(["trainer.duration=5min", "scheduler=constant"])


# Paths


@pytest.mark.parametrize(
    "path",
    [
        "a(1) b",
        "x-{000..100}.tar",
        "it's",
        'say "hi"',
        "both 'a' and \"b\"",
        r"back\slash",
        r"two\\slashes",
        r"back\'quote",
        "ends in \\",
        r"C:\data\new",
        "a=b,c",
        "[v2] photos",
        "'quoted' start",
        "a#b $c %d",
        "~/data",
        "a:b",
        "null-data",
        " led and trailed ",
        "Bücher/日本",
    ],
)
def test_paths_arrive_as_typed(path: str) -> None:
    typed = [f"data.root={path}", f"resume={path}", f"init.weights={path}", f"hydra.run.dir={path}"]
    composed = compose_config(typed)
    assert composed.config.data.args["root"] == path
    assert composed.config.resume == path
    assert composed.config.init.weights == path
    assert composed.run_dir == Path(path)
    # A run directory's copy of the config says the same.
    assert flatten(composed.text)["data.root"] == path


def test_data_dir_reaches_the_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compose_config(["data=mnist"]).config.data.args["root"] == "data"
    monkeypatch.setenv("CVTRAIN_DATA", "/from env")
    assert compose_config(["data=mnist"]).config.data.args["root"] == "/from env"
    typed = compose_config(["data=mnist", "data_dir=/my (own)"])
    assert typed.config.data.args["root"] == "/my (own)"
    assert compose_config(["resume=null"]).config.resume is None


def test_default_run_directory_names_the_pair() -> None:
    composed = compose_config(["model=lenet5", "data=mnist"])
    assert composed.run_dir.parent == Path("outputs/lenet5_mnist")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", composed.run_dir.name)


# Secrets


def test_secrets_stay_interpolations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "private.yaml").write_text(
        "defaults: [mnist]\n"
        "root: ${oc.env:CVTRAIN_TEST_ROOT}\n"
        "url: https://${oc.env:CVTRAIN_TEST_TOKEN}@host\n"
        "other: ${oc.env:CVTRAIN_TEST_UNSET,fallback}\n"
        "copy: ${data.url}\n"
    )
    monkeypatch.setenv("CVTRAIN_TEST_ROOT", "/vault")
    monkeypatch.setenv("CVTRAIN_TEST_TOKEN", "hunter2")
    composed = compose_config(["data=private"], extra_dir=tmp_path)
    arguments = composed.config.data.args
    assert arguments["root"] == "/vault"
    assert arguments["url"] == arguments["copy"] == "https://hunter2@host"
    assert arguments["other"] == "fallback"
    assert "hunter2" not in composed.text
    assert "vault" not in composed.text
    stored = yaml.safe_load(composed.text)["data"]
    assert stored["root"] == "${oc.env:CVTRAIN_TEST_ROOT}"
    assert stored["url"] == stored["copy"] == "https://${oc.env:CVTRAIN_TEST_TOKEN}@host"
    assert stored["other"] == "${oc.env:CVTRAIN_TEST_UNSET,fallback}"
    # The resolver is put back.
    assert (
        OmegaConf.create({"a": "${oc.env:CVTRAIN_TEST_TOKEN}"}).a
        == os.environ["CVTRAIN_TEST_TOKEN"]
    )


# Targets


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.nn.functional.torch.hub.load",
        "torch.nn.functional.importlib.import_module",
        "torchvision.models._api.importlib.import_module",
        "torch.nn.Module.__init__",
        "torch.optim",
        "torch.optim.lr_scheduler.Optimizer",  # not defined there, but in an allowed package
        "torch.nn.NoSuchThing",
        "torchvision.datasets.MNIST",
        "cvtrain.cli.main",
        "cvtrain.verbs.train.json.loads",
        "Linear",
        "",
    ],
)
def test_targets_that_are_no_network(target: str) -> None:
    with pytest.raises(ConfigError) as caught:
        targets.resolve(target, nn.Module, [])
    assert caught.value.name == "TARGET"


def test_targets_that_are_what_is_asked_for() -> None:
    assert targets.resolve("torch.nn.Linear", nn.Module, []) is nn.Linear
    assert targets.resolve("torch.optim.Adam", Optimizer, []) is torch.optim.Adam
    with pytest.raises(ConfigError, match="no Optimizer"):
        targets.resolve("torch.nn.Linear", Optimizer, [])
    # `trust` adds a package by its whole name, not by a prefix of it.
    with pytest.raises(ConfigError, match="is refused"):
        targets.resolve("collections.abc.Mapping", object, ["collection"])
    assert targets.resolve("collections.OrderedDict", dict, ["collections"])
    # Of the right kind and within reach, but only imported there.
    with pytest.raises(ConfigError, match="defined elsewhere"):
        targets.resolve("torch.nn.modules.module.OrderedDict", dict, [])


def test_a_wrong_argument_names_the_nearest() -> None:
    node = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentun": 0.9}
    with pytest.raises(ConfigError, match=r"optimizer\.momentun.*momentum"):
        targets.make(
            node, Optimizer, key="optimizer", trust=[], params=[nn.Parameter(torch.zeros(1))]
        )


@pytest.mark.parametrize(
    ("wanted", "native", "expected"),
    [
        ("any", 28, 28),
        ("min 75", 32, 75),
        ("min 8", 32, 32),
        ("fixed 32", 28, 32),
        ("fixed 32", 64, 32),
    ],
)
def test_input_size(wanted: str, native: int, expected: int) -> None:
    assert build.input_size(wanted, native) == expected


@pytest.mark.parametrize("wanted", ["", "some", "min", "fixed x", "any 3", "max 9"])
def test_input_size_that_is_none(wanted: str) -> None:
    with pytest.raises(ConfigError, match="any, 'min 75' or 'fixed 32'"):
        build.input_size(wanted, 28)
