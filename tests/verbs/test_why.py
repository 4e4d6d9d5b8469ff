"""`cvtrain why`: what set a key, held against the files' own lines and against Hydra without it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import command

from cvtrain.compose import compose_config, flatten
from cvtrain.config import AUGMENT, GROUPS, config_dir, options
from cvtrain.errors import ConfigError
from cvtrain.origins import Origin, origins
from cvtrain.verbs.why import why

RESNET20 = ["model=resnet20", "data=cifar10"]
TYPED = [
    [],
    [*RESNET20, "optimizer.lr=0.3", "augment=[flip]", "debug=smoke"],
    ["model=resnet50", "data=imagenet", "optimizer=adam"],  # drops a block of the recipe
    ["data=coco"],  # with a task and a network besides
    ["recipe=finetune", "model=resnet18", "data=folder", "data.root=a(1)", "trainer.ema=0.9"],
    ["model=fasterrcnn_resnet50_fpn", "data=coco", "model.body={name: resnet18}"],
    ["model=torchvision", "+model.dropout=0.3", "task.class_weights=[1, 2]", "data.augment=null"],
]


def of(overrides: list[str], **options: Any) -> dict[str, Origin]:
    return origins(compose_config(overrides, **options), overrides)


def same(written: Any, value: Any) -> bool:
    return "${" in str(written) or written == value


@pytest.mark.parametrize("overrides", TYPED, ids=" ".join)
def test_the_last_word_is_the_value(overrides: list[str]) -> None:
    """Of each key of the composed config; a file's line holds that key."""
    composed = compose_config(overrides)
    found = origins(composed, overrides)
    config = flatten(composed.text)
    assert found.keys() == {*GROUPS, AUGMENT, *config}
    for key, origin in found.items():
        assert origin.kind in ("default", "recipe", "debug", "follows", "command line"), key
        if key in config:
            assert origin.value == config[key]
        elif key in GROUPS:
            assert origin.value == composed.choices[key]
        for row in (*origin.before, origin):
            if row.kind not in ("follows", "command line"):
                assert key_stands_at(key, row.where), (key, row)
            elif row.kind == "command line":
                assert row.where in overrides


def key_stands_at(key: str, where: str) -> bool:
    file, _, line = where.rpartition(":")
    text = (config_dir().parent / file).read_text().splitlines()[int(line) - 1]
    return key.split(".")[-1] in text or key.endswith("tar.gz") or key.endswith(".gz")


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ([*RESNET20, "optimizer.lr=0.3"], "optimizer.lr"),
        ([*RESNET20, "trainer.duration=3ep", "seed=1"], "trainer.duration"),
        (["data=folder", "model=resnet18", "data.batch_size=7"], "data.batch_size"),
        (["debug=smoke", "eval.every=2st"], "eval.every"),
        ([*RESNET20, "scheduler=cosine"], "scheduler"),
        ([*RESNET20, "recipe=none"], "recipe"),
        (["data=coco", "model=faster_rcnn", "task=detection"], "task"),
    ],
)
def test_without_what_was_typed_it_is_what_stands_before(overrides: list[str], key: str) -> None:
    """Hydra says so, by composing without that word."""
    origin = of(overrides)[key]
    typed = next(word for word in overrides if word.startswith(f"{key}="))
    assert (origin.kind, origin.where) == ("command line", typed)
    without = of([word for word in overrides if word != typed])[key]
    if without.kind != "follows":  # what was typed stands in for what would follow
        assert origin.before[-1][:3] == without[:3]
    assert without.value != origin.value or key == "task"


@pytest.mark.parametrize("name", [name for name in options("recipe") if "_" in name][::7])
def test_without_a_recipe_it_is_what_stands_before(name: str) -> None:
    """Of each key that a recipe sets, what Hydra makes of the recipe's choices alone."""
    composed = compose_config([f"recipe={name}"])
    chosen = [f"{g}={c}" for g, c in composed.choices.items() if g not in ("recipe", "debug")]
    plain = flatten(compose_config([*chosen, "recipe=none"]).text)
    set_by_it = {
        key: origin
        for key, origin in origins(composed, [f"recipe={name}"]).items()
        if origin.kind == "recipe" and key not in (*GROUPS, AUGMENT) and key in plain
    }
    assert set_by_it
    for key, origin in set_by_it.items():
        assert same(origin.before[-1].value, plain[key]), key


def test_a_key_that_three_set(capsys: pytest.CaptureFixture[str]) -> None:
    typed = [*RESNET20, "optimizer.lr=0.3"]
    why(compose_config(typed), typed, "optimizer.lr")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "optimizer.lr = 0.3"
    assert [line.split() for line in lines[1:4]] == [
        ["0.1", "configs/optimizer/sgd.yaml:3", "default"],
        ["0.1", "configs/recipe/resnet20_cifar10.yaml:11", "recipe"],
        [">", "0.3", "optimizer.lr=0.3", "command", "line"],
    ]


def test_a_group_lists_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    why(compose_config(RESNET20), RESNET20, "optimizer")
    out = capsys.readouterr().out
    assert out.startswith("optimizer = sgd\n")
    keys = {line.split()[0] for line in out.splitlines() if line.startswith("optimizer.")}
    config = flatten(compose_config(RESNET20).text)
    assert keys == {key for key in config if key.startswith("optimizer.")}


def test_what_other_choices_bring() -> None:
    found = of(["data=coco"])
    assert found["task"][:3] == ("detection", "follows", "data=coco")
    assert found["model"][:3] == ("faster_rcnn_tiny", "follows", "data=coco")
    pair = of(RESNET20)["recipe"]
    assert pair[:3] == ("resnet20_cifar10", "follows", "model=resnet20 data=cifar10")


def test_weights_come_last() -> None:
    typed = ["model=resnet50", "model.pretrained=imagenet", "model.stride_in=1x1"]
    composed = compose_config(typed)
    origin = origins(composed, typed, {"data.image_size": 224})["data.image_size"]
    assert (origin.kind, origin.where) == ("weights", "imagenet")
    assert origin.before[-1].kind == "default"


def test_a_tree_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    file = tmp_path / "optimizer" / "mine.yaml"
    file.write_text("# mine\n_target_: torch.optim.SGD\n\nlr: 0.77\n")
    origin = of(["optimizer=mine"], extra_dir=tmp_path)["optimizer.lr"]
    assert origin[:3] == (0.77, "default", f"{file}:4")


@pytest.mark.parametrize(
    ("name", "fix"),
    [("optimzer.lr", "optimizer.lr"), ("lr", "optimizer.lr"), ("optimiser", "optimizer")],
)
def test_a_wrong_key_names_the_nearest(name: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=f"there is no key {name}; type cvtrain why {fix}$"):
        why(compose_config([]), [], name)


# By the command


def test_several_keys_and_the_words_of_a_config(tmp_path: Path) -> None:
    done = command("why", "seed", "model=resnet20", "optimizer", "seed=3", cwd=tmp_path, fresh=True)
    assert done.returncode == 0, done.stderr
    assert "seed = 3\n" in done.stdout
    assert "\noptimizer = sgd\n" in done.stdout
    assert not list(tmp_path.iterdir())


def test_every_key_in_a_table(tmp_path: Path) -> None:
    done = command("why", cwd=tmp_path, env={"SECRET": "s3cret"}, fresh=True)
    assert done.returncode == 0, done.stderr
    keys = {line.split()[0] for line in done.stdout.splitlines() if line}
    assert keys >= {*GROUPS, *flatten(compose_config([]).text)}


def test_what_comes_from_the_environment_is_not_told(tmp_path: Path) -> None:
    typed = ["data.root=${oc.env:SECRET}", "recipe=none"]
    done = command("why", "data.root", *typed, cwd=tmp_path, env={"SECRET": "s3cret"}, fresh=True)
    assert done.returncode == 0, done.stderr
    assert "SECRET is set" in done.stdout
    assert "s3cret" not in done.stdout + done.stderr


def test_a_wrong_key_is_one_line(tmp_path: Path) -> None:
    done = command("why", "trainer.durations", cwd=tmp_path, fresh=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "type cvtrain why trainer.duration" in done.stderr
    done = command("summary", "seed", cwd=tmp_path, fresh=True)  # a bare word to another verb
    assert done.returncode == 2


def test_it_answers_without_torch() -> None:
    code = "import sys\nfrom cvtrain.cli import run\nrun(['why', 'seed'])\n"
    code += "assert not {'torch', 'torchvision'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
