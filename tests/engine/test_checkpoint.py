"""Checkpoints: what is listed verifies, two and the best are kept, a bad one is passed over."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cvtrain.engine.checkpoint import Checkpoints, load_weights, read_checkpoint
from cvtrain.errors import CheckpointError


def state_at(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {"weight": torch.randn(50, 7, generator=generator), "n": torch.tensor(step)},
        "position": {"step": step, "best": 1.5, "metrics": {"val/top1_err": 2.0}, "window": {}},
        "classes": ["a", "b"],
        "config": "seed: 0\n",
        "ema": None,
    }


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[k], right[k]) for k in left)
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(logging.getLogger("cvtrain"), "propagate", True)
    caplog.set_level(logging.WARNING, "cvtrain")
    return caplog


def saved(run: Path, steps: int = 3, best: int = 1) -> Checkpoints:
    checkpoints = Checkpoints(run)
    for step in range(1, steps + 1):
        checkpoints.save(state_at(step), step=step, best=step == best)
    return checkpoints


def verify(run: Path) -> dict[str, Any]:
    """The manifest, every entry of which is checked against its file by hand."""
    folder = run / "checkpoints"
    manifest = json.loads((folder / "checkpoints.json").read_text())
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert len(data) == entry["size"]
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    files = {f.name for f in folder.iterdir() if not f.is_symlink()}
    assert files == {*manifest["files"], "checkpoints.json"}  # nothing unlisted, no leavings
    return manifest


def test_the_newest_two_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    kept = []
    for step, best in enumerate([True, True, False, False, False, True, False], start=1):
        path = checkpoints.save(state_at(step), step=step, best=best)
        manifest = verify(tmp_path)
        kept.append(sorted(entry["step"] for entry in manifest["files"].values()))
        folder = tmp_path / "checkpoints"
        assert (folder / "last.pt").resolve() == path
        assert read_checkpoint(folder / "last.pt")["position"]["step"] == step
        assert (
            read_checkpoint(folder / "best.pt")["position"]["step"]
            == [1, 2, 2, 2, 2, 6, 6][step - 1]
        )
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [5, 6], [6, 7]]
    # The links move with the folder.
    moved = tmp_path / "elsewhere"
    (tmp_path / "checkpoints").rename(moved)
    assert read_checkpoint(moved / "best.pt")["position"]["step"] == 6


def test_the_same_step_twice(tmp_path: Path) -> None:
    """As when validation is done after a resume: the listed file is not written over."""
    checkpoints = saved(tmp_path, 2)
    checkpoints.save({**state_at(2), "extra": 1}, step=2, best=True)
    verify(tmp_path)
    assert read_checkpoint(tmp_path / "checkpoints" / "best.pt")["extra"] == 1
    state = Checkpoints(tmp_path).load_last()
    assert state is not None
    assert state.get("extra") == 1


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    saved(tmp_path)
    state = Checkpoints(tmp_path).load_last()
    assert state is not None
    del state["format"]
    assert equal(state, state_at(3))


def test_nothing_there(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).load_last() is None
    assert not list(tmp_path.iterdir())


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(file: Path) -> None:
    """In the middle of a tensor, where neither zip nor torch looks."""
    data = bytearray(file.read_bytes())
    data[data.find(state_at(3)["model"]["weight"].numpy().tobytes()[:64]) + 30] ^= 4
    file.write_bytes(data)


HARMS = [
    truncate,
    flip_a_bit,
    lambda file: file.write_bytes(b""),
    lambda file: file.write_bytes(b"<html>"),
    lambda file: file.unlink(),
]


@pytest.mark.parametrize("harm", HARMS, ids=["truncated", "flipped", "empty", "html", "gone"])
def test_a_bad_newest_one_is_passed_over(tmp_path: Path, warnings, harm) -> None:
    saved(tmp_path)
    harm(tmp_path / "checkpoints" / "step_00000003.pt")
    state = Checkpoints(tmp_path).load_last()
    assert state is not None
    assert state["position"]["step"] == 2
    assert "step_00000003.pt" in warnings.text


@pytest.mark.parametrize("harm", HARMS[:3], ids=["truncated", "flipped", "empty"])
def test_all_bad_is_an_error(tmp_path: Path, warnings, harm) -> None:
    saved(tmp_path)
    for file in (tmp_path / "checkpoints").glob("step_*.pt"):
        harm(file) if harm is not flip_a_bit else file.write_bytes(file.read_bytes()[::-1])
    with pytest.raises(CheckpointError) as caught:
        Checkpoints(tmp_path).load_last()
    assert caught.value.name == "CKPT-CORRUPT"


def test_a_flipped_bit_is_seen_by_its_hash_alone(tmp_path: Path) -> None:
    """torch loads it without a word; only the manifest knows."""
    saved(tmp_path)
    file = tmp_path / "checkpoints" / "step_00000003.pt"
    flip_a_bit(file)
    weight = torch.load(file, weights_only=True)["model"]["weight"]
    assert not torch.equal(weight, state_at(3)["model"]["weight"])
    for path in (file, file.with_name("last.pt")):
        with pytest.raises(CheckpointError, match="sha256") as caught:
            read_checkpoint(path)
        assert caught.value.name == "CKPT-CORRUPT"
    # A copy without its manifest has nothing to be held against, and loads.
    copy = tmp_path / "copy.pt"
    copy.write_bytes(file.read_bytes())
    assert read_checkpoint(copy)["position"]["step"] == 3


def test_after_a_kill_only_what_is_listed_stays(tmp_path: Path) -> None:
    saved(tmp_path)
    folder = tmp_path / "checkpoints"
    (folder / ".step_00000004.pt.tmp").write_bytes(b"half")
    (folder / "step_00000004.pt").write_bytes(b"renamed, never listed")
    checkpoints = Checkpoints(tmp_path)
    checkpoints.clean()
    verify(tmp_path)
    checkpoints.save(state_at(4), step=4, best=False)
    verify(tmp_path)


def test_no_such_checkpoint(tmp_path: Path) -> None:
    for path in (tmp_path / "no.pt", tmp_path):
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        assert caught.value.name == "CKPT-MISSING"
        assert str(path) in caught.value.line()


# Weights into a network


def network(classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


def test_weights_fit_whole_or_not_at_all() -> None:
    old, new = network(), network()
    assert load_weights(new, old.state_dict(), source="x.pt", reset=False) == []
    assert equal(dict(new.state_dict()), dict(old.state_dict()))


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state | {"2.weight": torch.zeros(7, 5)},
        lambda state: {k: v for k, v in state.items() if k != "1.running_mean"},
        lambda state: state | {"3.weight": torch.zeros(1)},
    ],
    ids=["shape", "missing", "unexpected"],
)
def test_weights_that_do_not_fit(change) -> None:
    new = network()
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    state = change(dict(network().state_dict()))
    with pytest.raises(CheckpointError) as caught:
        load_weights(new, state, source="x.pt", reset=False)
    assert caught.value.name == "CKPT-MISMATCH"
    changed = {*state} ^ {*before} or {"2.weight"}
    assert changed.pop() in caught.value.line()
    assert "x.pt" in caught.value.line()
    assert equal(dict(new.state_dict()), before)


def test_a_new_head_on_old_weights() -> None:
    old, new = network(3), network(8)
    head = new[2].weight.clone()
    assert load_weights(new, old.state_dict(), source="x.pt", reset=True) == ["2.weight", "2.bias"]
    assert torch.equal(new[0].weight, old[0].weight)
    assert torch.equal(new[2].weight, head)
    with pytest.raises(CheckpointError, match="no tensor fits"):
        load_weights(new, {"other": torch.zeros(2)}, source="x.pt", reset=True)
