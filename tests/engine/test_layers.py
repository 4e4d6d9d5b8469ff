"""Layers that stand still, phases, and rates by layer."""

from pathlib import Path

import pytest
import torch
from tiny import TINY_SHAPES, command, metrics
from torch import Tensor, nn

from cvtrain.build import build_parts
from cvtrain.compose import compose_config
from cvtrain.engine.checkpoint import read_checkpoint
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.layers import Frozen, depths_of, parameters_of, rates
from cvtrain.errors import ConfigError
from cvtrain.models.alexnet import AlexNet
from cvtrain.models.resnet import ResNet
from cvtrain.models.vgg import VGG


def resnet() -> nn.Module:
    with torch.device("meta"):
        return ResNet(depth=18, num_classes=10, in_channels=3, image_size=32)


def test_a_layer_is_found_by_name_pattern_and_the_papers_name() -> None:
    network = resnet()
    assert parameters_of(network, "conv1", key="k") == {"conv1.weight"}
    assert parameters_of(network, "fc.bias", key="k") == {"fc.bias"}
    first = parameters_of(network, "layer1", key="k")
    assert len(first) == 2 * 2 * 3  # two blocks of two convolutions with batch norm
    assert all(name.startswith("layer1.") for name in first)
    assert parameters_of(network, "layer[12]", key="k") > first
    weights = {f"layer{n}.{block}.bn1.weight" for n in range(1, 5) for block in "01"}
    assert parameters_of(network, "*.bn1.weight", key="k") == weights


def test_a_layer_that_is_not_there_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no layer layer5 .*freeze=layer5.*layer4.*summary"):
        parameters_of(resnet(), "layer5", key="model.freeze")


def test_layers_learn_slower_the_further_they_are_from_the_head() -> None:
    found = rates(resnet(), {"layer4.1": 10.0, "*.bias": 2.0}, 0.5)
    assert found["fc.weight"] == 1
    assert found["fc.bias"] == 2
    assert found["layer4.1.conv1.weight"] == 10 * 0.5
    assert found["layer4.1.bn2.bias"] == 10 * 2 * 0.5
    assert found["layer4.0.downsample.0.weight"] == 0.25
    assert found["layer1.0.conv1.weight"] == 0.5**8
    assert found["bn1.weight"] == found["conv1.weight"] == 0.5**9  # a norm goes with its layer


def test_the_layers_of_a_sequence_are_layers() -> None:
    with torch.device("meta"):
        vgg = VGG(config="A", num_classes=10)
    depths = depths_of(name for name, p in vgg.named_parameters() if p.ndim > 1)
    assert len(depths) == 11  # VGG-11
    assert depths["classifier.6"] == 0
    assert depths["features.0"] == 10


def trained(network: nn.Module) -> set[str]:
    return {name for name, p in network.named_parameters() if p.requires_grad}


def norms(network: nn.Module, *, training: bool) -> set[str]:
    kind = nn.BatchNorm2d
    return {n for n, m in network.named_modules() if isinstance(m, kind) and m.training is training}


def test_batch_norm_stands_with_its_weights() -> None:
    network = ResNet(depth=18, num_classes=10, in_channels=3, image_size=32)
    names = trained(network)
    head = {"fc.weight", "fc.bias"}
    still = parameters_of(network, "bn1", key="k") | parameters_of(network, "layer1", key="k")
    frozen = Frozen(still, head, until=6)
    frozen.apply(network, 5)
    assert trained(network) == head
    assert not norms(network, training=True)
    frozen.apply(network, 6)
    assert trained(network) == names - still
    assert norms(network, training=False) == {
        "bn1",
        *(f"layer1.{block}.{bn}" for block in "01" for bn in ("bn1", "bn2")),
    }


def test_batch_norm_without_weights_stands_with_what_it_is_part_of() -> None:
    still = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False))
    network = nn.Sequential(still, nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2, affine=False))
    Frozen({"0.0.weight", "0.0.bias"}).apply(network, 0)
    assert norms(network, training=False) == {"0.1"}


def test_what_the_network_froze_itself_stays_so() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    Frozen().apply(network, 0)
    assert trained(network) == {"1.weight", "1.bias"}


def parts(*words: str, root: Path) -> object:
    line = ["data=shapes", f"data_dir={root}", *TINY_SHAPES, "debug=smoke", *words]
    return build_parts(compose_config(line).config, device=torch.device("cpu"), ranks=Ranks())


def test_nothing_left_to_train(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"every layer .*frozen; model\.freeze"):
        parts("model=cnn", "model.freeze=['*']", root=tmp_path)
    with pytest.raises(ConfigError, match=r"every layer .*frozen"):  # in the first phase
        parts("model=cnn", "model.freeze=[fc]", "trainer.head_first=1st", root=tmp_path)


def test_rates_reach_the_optimizer(tmp_path: Path) -> None:
    built = parts(
        *("model=cnn", "recipe=none", "optimizer.lr=0.5", "optimizer.lr_scale={fc: 2}"),
        *("scheduler=constant", "scheduler.warmup=0st", "trainer.head_first=3st"),
        "trainer.after_head=0.1",
        root=tmp_path,
    )
    sizes = [[len(g["params"]), g["initial_lr"]] for g in built.optimizer.param_groups]
    count = len(list(built.model.parameters()))
    assert sizes == [[count - 2, 0.5], [2, 1.0]]
    for step, expected in ((2, [0.5, 1.0]), (3, [0.05, 0.1])):
        built.schedule.apply(built.optimizer, step)
        assert [g["lr"] for g in built.optimizer.param_groups] == pytest.approx(expected)


def test_half_an_epoch_of_the_head_counts_too(tmp_path: Path) -> None:
    """`after_head` holds from the second phase on, however short the first one is."""
    words = ("model=cnn", "recipe=none", "optimizer.lr=0.5", "scheduler=constant", "debug=none")
    short = ("trainer.head_first=0.4ep", "trainer.after_head=0.1", "data.batch_size=4")
    built = parts(*words, *short, "trainer.duration=1ep", root=tmp_path)
    first = built.frozen.until
    assert 0 < first < built.train.steps / 2
    for step, expected in ((first - 1, 0.5), (first, 0.05)):
        built.schedule.apply(built.optimizer, step)
        assert built.optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def states(run: Path) -> list[dict[str, Tensor]]:
    """The network after each of the checkpoints that are left."""
    files = sorted((run / "checkpoints").glob("step_*.pt"))
    return [read_checkpoint(file)["model"] for file in files]


def differing(left: dict[str, Tensor], right: dict[str, Tensor]) -> set[str]:
    return {name for name in left if not torch.equal(left[name], right[name])}


LINE = (
    *("model=cnn", "model.widths=[8,16]", "data=shapes", "data_dir=data", *TINY_SHAPES),
    *("data.batch_size=8", "recipe=none", "scheduler=constant", "trainer.checkpoint_every=1st"),
    *("optimizer.weight_decay=0.1", "trainer.log_every=1st", "trainer.threads=1"),
)


def test_the_head_first_then_everything(tmp_path: Path) -> None:
    """Until the second phase the rest is bit-identical, the statistics of batch norm too."""
    first = ("trainer.head_first=2st", "trainer.after_head=0.1")
    for steps in (1, 2, 3):
        more = (f"trainer.duration={steps}st", f"hydra.run.dir={steps}")
        done = command(*LINE, *first, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "the head (fc) alone for 2 steps, then everything" in done.stderr
    *_, one = states(tmp_path / "1")
    *_, two = states(tmp_path / "2")
    *_, three = states(tmp_path / "3")
    assert differing(one, two) == {"fc.weight", "fc.bias"}
    assert differing(two, three) == set(one)  # weights, statistics and their count
    lines = [line["train/lr"] for line in metrics(tmp_path / "3") if "train/lr" in line]
    assert lines == pytest.approx([0.1, 0.1, 0.01])


def test_frozen_layers_stay_as_they_were(tmp_path: Path) -> None:
    for steps in (1, 4):
        more = ("model.freeze=[stages.0]", f"trainer.duration={steps}st", f"hydra.run.dir={steps}")
        done = command(*LINE, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    *_, before = states(tmp_path / "1")
    *_, after = states(tmp_path / "4")
    same = set(before) - differing(before, after)
    assert same == {name for name in before if name.startswith("stages.0.")}
    assert {"stages.0.1.running_mean", "stages.0.1.num_batches_tracked"} <= same


def test_a_wrong_layer_ends_in_one_line(tmp_path: Path) -> None:
    done = command(*LINE, "model.freeze=[stage.0]", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("cvtrain: error[CONFIG]: there is no layer stage.0 with weights")
    assert "stages.0" in last
    assert not (tmp_path / "run").exists()


def test_the_towers_of_alexnet_are_layers() -> None:
    with torch.device("meta"):
        network = AlexNet(num_classes=10)
    assert parameters_of(network, "conv1", key="k") == {"conv1.weight", "conv1.bias"}
