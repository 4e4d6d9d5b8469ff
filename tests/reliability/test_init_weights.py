"""Weights that do not fit are refused by the tensor at fault, or loaded as far as they do fit."""

from pathlib import Path

import pytest
import torch
from harness import EVERY_STEP, Case, checkpoint, mlp_case

from cvtrain.models.cnn import CNN
from cvtrain.models.lenet import LeNet5


@pytest.fixture
def cnn(tmp_path: Path, mnist: Path) -> Case:
    return Case(
        tmp_path / "case",
        *(
            "data=mnist",
            f"data_dir={mnist}",
            "data.batch_size=16",
            "model=cnn",
            "model.widths=[4,8]",
        ),
        *("trainer.duration=1st", *EVERY_STEP),
        inputs=(mnist,),
    )


@pytest.fixture
def thousand_classes(tmp_path: Path) -> Path:
    """The same network for another number of classes, as a plain state dict."""
    torch.manual_seed(1)
    path = tmp_path / "thousand (classes).pt"
    torch.save(CNN(num_classes=1000, in_channels=1, widths=(4, 8)).state_dict(), path)
    return path


@pytest.mark.fault("C3")
def test_another_number_of_classes(cnn: Case, thousand_classes: Path) -> None:
    mismatch = (
        r"error\[CKPT-MISMATCH\]: .*fc\.weight is \[1000, 8\], the network has \[10, 8\] "
        r"\(and 1 more\); .*thousand \(classes\)\.pt; .*init\.reset_head=true"
    )
    cnn.run(f"init.weights={thousand_classes}", code=4, last=mismatch, state="failed")


@pytest.mark.fault("C3")
def test_another_network(cnn: Case, tmp_path: Path) -> None:
    path = tmp_path / "lenet.pt"
    torch.save(LeNet5().state_dict(), path)
    mismatch = (
        r"error\[CKPT-MISMATCH\]: .*stages\.0\.0\.weight is missing, the network has \[4, 1, 3, 3\]"
    )
    cnn.run(f"init.weights={path}", code=4, last=mismatch, state="failed")


@pytest.mark.fault("C3")
def test_no_tensor_fits(cnn: Case, tmp_path: Path) -> None:
    path = tmp_path / "lenet.pt"
    torch.save({"other.weight": torch.zeros(3)}, path)
    options = (f"init.weights={path}", "init.reset_head=true")
    cnn.run(*options, code=4, last=r"error\[CKPT-MISMATCH\]: no tensor fits", state="failed")


@pytest.mark.fault("C3")
def test_all_but_the_head(cnn: Case, thousand_classes: Path) -> None:
    """With a rate of 0 the network stays as it began: loaded but for the two tensors listed."""
    process = cnn.run(f"init.weights={thousand_classes}", "init.reset_head=true", "optimizer.lr=0")
    assert "; new: fc.weight, fc.bias\n" in process.err
    given = torch.load(thousand_classes, weights_only=True)
    model = checkpoint(cnn.run_dir / "checkpoints/last.pt")["model"]
    loaded = {name for name in given if name.endswith("weight") and name != "fc.weight"}
    assert len(loaded) == 4
    assert all(torch.equal(model[name], given[name]) for name in loaded)
    assert model["fc.weight"].shape == (10, 8)


def test_weights_of_a_run(mlp: Case, tmp_path: Path, mnist: Path) -> None:
    """A checkpoint of a run gives its weights to another."""
    mlp.run("trainer.duration=1st")
    path = mlp.run_dir / "checkpoints/last.pt"
    second = mlp_case(tmp_path / "second", mnist)
    second.run(f"init.weights={path}", "optimizer.lr=0", "trainer.duration=1st", "seed=1")
    given, model = (
        checkpoint(path)["model"],
        checkpoint(second.run_dir / "checkpoints/last.pt")["model"],
    )
    assert all(torch.equal(model[name], given[name]) for name in given)
