"""R-CNN's support vector machines and box regressions, on features whose solution is known."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rcnn_fit
import rcnn_machines
import torch
from tiny import command
from torch import Tensor
from torchvision.ops import box_iou

from cvtrain.data.batch import DetectionBatch
from cvtrain.errors import ConfigError
from cvtrain.models.detection import rcnn_fitted
from cvtrain.models.detection.rcnn import RCNN

TINY = {"name": "cnn", "widths": [4, 8]}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


# Box regressions


@pytest.mark.parametrize("pairs", [5, 200])  # fewer than features, and more
def test_ridge_is_the_least_squares_with_a_penalty(pairs: int) -> None:
    x, y = 3 * torch.randn(pairs, 12) + 1, torch.randn(pairs, 4) + 5
    ridge = rcnn_machines.Ridge(12)
    for part in torch.arange(pairs).chunk(3):  # in any portions
        ridge.add(x[part], y[part])
    rows = np.concatenate([x.numpy(), np.ones((pairs, 1))], 1).astype(float)
    penalty = np.concatenate([math.sqrt(1000) * np.eye(12), np.zeros((12, 1))], 1)
    left, right = np.concatenate([rows, penalty]), np.concatenate([y.numpy(), np.zeros((12, 4))])
    wanted = np.linalg.lstsq(left, right, rcond=None)[0].T
    np.testing.assert_allclose(ridge.solve().numpy(), wanted, rtol=1e-6, atol=1e-9)


def test_ridge_of_no_pairs_leaves_a_box_alone() -> None:
    fitted = rcnn_fitted.Fitted(torch.zeros(1, 4), rcnn_machines.Ridge(3).solve()[None].float())
    boxes = torch.tensor([[3.0, 4.0, 30.0, 20.0]])
    torch.testing.assert_close(rcnn_fitted.refined(fitted, torch.rand(1, 3), boxes)[:, 0], boxes)


# Support vector machines


def objective(weights: np.ndarray, positives: Tensor, negatives: Tensor) -> float:
    """As its docstring has it; the bias is the last."""
    w, b = weights[:-1], weights[-1]
    hinges = [
        cost * np.square(np.maximum(0, 1 - sign * (x.double().numpy() @ w + b))).sum()
        for x, sign, cost in ((positives, 1, 2e-3), (negatives, -1, 1e-3))
    ]
    return float(w @ w / 2 + (b / 10) ** 2 / 2 + sum(hinges))


def test_no_other_machine_is_better() -> None:
    positives, negatives = 4 * torch.randn(30, 6) + 2, 4 * torch.randn(90, 6) - 2
    weights = rcnn_machines.fit_machine(positives, negatives).numpy()
    best = objective(weights, positives, negatives)
    generator = np.random.default_rng(0)
    for size in (1e-1, 1e-2, 1e-3):
        for _ in range(50):
            other = weights + size * generator.standard_normal(7) * [*[1] * 6, 10]
            assert objective(other, positives, negatives) > best
    again = rcnn_machines.fit_machine(positives, negatives, start=torch.ones(7).double())
    np.testing.assert_allclose(again.numpy(), weights, atol=1e-5, rtol=0)


def test_of_one_positive() -> None:
    """w^2 / 2 + v^2 / 2 + 2 c (1 - w p - 10 v)^2 is least at (w, v) = (p, 10) t."""
    p, c = 3.0, 1e-3
    weights = rcnn_machines.fit_machine(torch.tensor([[p]]), torch.zeros(0, 1))
    t = 4 * c / (1 + 4 * c * (p**2 + 100))
    torch.testing.assert_close(weights, torch.tensor([p * t, 100 * t]).double())


def test_mining_finds_the_machine_of_all_negatives() -> None:
    positives, negatives = torch.randn(40, 5) + 6, 4 * torch.randn(9000, 5) - 4
    machine = rcnn_machines.Machine(positives)
    for image in negatives.split(300):
        machine.see(image)
    machine.fit()
    whole = rcnn_machines.fit_machine(positives, negatives)
    cosine = torch.nn.functional.cosine_similarity(machine.weights, whole, dim=0)
    assert cosine > 0.99
    assert len(machine.negatives) < 3000  # the others are far from the margin
    scores = rcnn_fitted.affine(machine.weights[None], negatives)
    right = (scores < 0).double().mean()
    assert right > (rcnn_fitted.affine(whole[None], negatives) < 0).double().mean() - 0.01


def test_a_class_without_objects_is_never_found() -> None:
    machine = rcnn_machines.Machine(torch.zeros(0, 3))
    machine.see(torch.randn(10, 3))
    machine.fit()
    assert not (rcnn_fitted.affine(machine.weights[None], torch.randn(50, 3)) > -1).any()


# Both, of regions


def scene(*, apart: tuple[float, ...] = ()) -> Any:
    """An image with an object of each of two classes, 100 px wide. Features tell the class, the map
    how far a region is to the right of its object. `apart` are further shifts, with features that
    nothing else has.
    """
    objects = torch.tensor([[100.0, 100.0, 200.0, 200.0], [500.0, 100.0, 600.0, 200.0]])
    shifts = torch.cat([torch.linspace(-20, 20, 9), torch.tensor([-90.0, 90, 95, -95])])
    boxes, features, pooled = [], [], []
    for label, box in enumerate(objects):
        for shift in (*shifts.tolist(), *apart):
            boxes.append(box + torch.tensor([shift, 0, shift, 0]))
            near = 20.0 if abs(shift) < 50 else 0.0
            seen = torch.tensor([near * (label == 0), near * (label == 1), 5.0, 0.0])
            strange = shift in apart
            features.append(torch.tensor([0.0, 0.0, 0.0, 50.0]) if strange else seen)
            pooled.append(torch.tensor([shift, 200.0 if strange else 0.0]) * 10)
    return rcnn_machines.Regions(
        *(torch.stack(part) for part in (features, pooled, boxes)), objects, torch.tensor([1, 2])
    )


POSITIVES = [torch.tensor([[20.0, 0, 5, 0]]).repeat(30, 1), torch.tensor([[0, 20.0, 5, 0]] * 30)]


def test_pairs_of_less_overlap_are_not_learnt() -> None:
    """IoU of a shift d of 100 px: (100 - d) / (100 + d); 27 gives 0.57 and 24 gives 0.61."""

    def boxes(*apart: float) -> Tensor:
        return rcnn_machines.learn([scene(apart=apart)], POSITIVES, 2)[1]

    assert torch.equal(boxes(), boxes(27.0))
    assert not torch.allclose(boxes(), boxes(24.0))


def test_negatives_are_of_small_iou_with_the_own_class(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(rcnn_machines.Machine, "see", lambda _, negatives: seen.append(negatives))
    image = scene(apart=(50.0, 56.0))
    rcnn_machines.learn([image], POSITIVES, 2)
    iou = box_iou(image.boxes, image.objects)
    for label, negatives in enumerate(seen):
        assert torch.equal(negatives, image.features[iou[:, label] < 0.3])
    assert [len(negatives) for negatives in seen] == [4 + 1 + 15] * 2


def test_what_is_learnt_is_found(tmp_path: Path) -> None:
    images = [scene() for _ in range(20)]
    machines, boxes = rcnn_machines.learn(images, POSITIVES, 2)
    torch.save(rcnn_fitted.Fitted(machines.float(), boxes.float())._asdict(), tmp_path / "fit.pt")
    fitted = rcnn_fitted.load(tmp_path / "fit.pt")
    image = images[0]
    assert fitted.machines.shape == (2, 5)
    assert fitted.boxes.shape == (2, 4, 3)
    scores = rcnn_fitted.scores_of(fitted, image.features)
    iou = box_iou(image.boxes, image.objects)
    assert torch.equal(scores > 0, iou > 0.6)
    near = (iou > 0.6).nonzero()
    moved = rcnn_fitted.refined(fitted, image.pooled, image.boxes)[near[:, 0], near[:, 1]]
    own = box_iou(moved, image.objects)[torch.arange(len(near)), near[:, 1]]
    assert own.min() > 0.95 > iou[near[:, 0], near[:, 1]].min()
    found = rcnn_fitted.detect(fitted, image.features, image.pooled, image.boxes, (300, 700))
    assert found["labels"][:2].sort().values.tolist() == [1, 2]
    order = found["labels"][:2].argsort()
    torch.testing.assert_close(found["boxes"][:2][order], image.objects, atol=3, rtol=0)
    assert ((found["scores"] > 0.26) & (found["scores"] < 1)).all()  # of a margin above -1


# The network


def test_features_are_what_the_last_layer_gets() -> None:
    model = RCNN(num_classes=4, network=TINY, crop=16, context=2).eval()
    reader = rcnn_fit.Regioned(model)
    image = torch.randn(3, 40, 50)
    boxes = torch.tensor([[0.0, 0, 20, 30], [10, 10, 40, 35], [5, 2, 9, 30]])
    features, pooled = reader.read(image, boxes)
    assert features.shape == (3, 8)
    assert pooled.shape == (3, 8 * 8 * 8)  # two stages of a crop of 16
    with torch.no_grad():
        scores = model.classify(model.look([image]), [boxes]).scores
    fc = model.network.fc
    torch.testing.assert_close(features @ fc.weight.T + fc.bias, scores)
    torch.testing.assert_close(pooled.view(3, 8, 64).mean(2), features)


def test_alexnets_sizes() -> None:
    """Of 20 classes: 81,940 numbers for the machines, 737,360 for the boxes."""
    model = RCNN().eval()
    reader = rcnn_fit.Regioned(model)
    features, pooled = reader.read(torch.randn(3, 60, 60), torch.tensor([[5.0, 5, 50, 40]]))
    assert 20 * (features.shape[1] + 1) == 81_940
    assert 20 * 4 * (pooled.shape[1] + 1) == 737_360


def test_a_network_is_fitted_and_judges() -> None:
    """Bright squares and dark ones, on images of noise, proposed among other places."""

    def batch(seed: int) -> DetectionBatch:
        torch.manual_seed(seed)
        image = 0.1 * torch.randn(3, 64, 64)
        objects = torch.tensor([[4.0, 4, 24, 24], [36, 36, 60, 60]])
        image[:, 4:24, 4:24] += 1
        image[:, 36:60, 36:60] -= 1
        target = {"boxes": objects, "labels": torch.tensor([1, 2])}
        others = torch.tensor([[36.0, 4, 60, 24], [4, 36, 24, 60], [20, 20, 40, 40]])
        proposals = torch.cat([objects + torch.randint(-2, 3, (2, 4)), others])
        return DetectionBatch([image], [target], [], [proposals], torch.tensor([seed]))

    model = RCNN(num_classes=3, network=TINY, crop=16, context=2).eval()
    reader = rcnn_fit.Regioned(model)
    fitted = rcnn_fit.fit(reader, lambda: (batch(seed) for seed in range(40)), 2)
    model.detect_by(fitted)
    last = batch(99)
    [found] = model(last.images, None, last.proposals)
    first = [found["labels"].tolist().index(label) for label in (1, 2)]
    iou = box_iou(found["boxes"][first], last.targets[0]["boxes"]).diag()
    assert (iou > 0.7).all()  # that of the proposals, about
    assert (found["scores"][first] > 0.5).all()
    assert (found["scores"][[i for i in range(len(found["scores"])) if i not in first]] < 0.5).all()
    [none] = model(last.images, None, [torch.zeros(0, 4)])
    assert {name: tuple(value.shape) for name, value in none.items()} == {
        "boxes": (0, 4),
        "labels": (0,),
        "scores": (0,),
    }


@pytest.mark.nightly
def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command to the figures of both ways of judging."""
    words = ("data.size=48", "data.train=8", "data.val=4", "data.batch_size=4", "recipe=none")
    proposed = ("data.proposals=grid", "data.proposals_count=40", f"data.root={tmp_path / 'drawn'}")
    run = tmp_path / "run"
    folder = ("trainer.duration=1st", f"hydra.run.dir={run}")
    done = command("model=rcnn_tiny", *words, *proposed, *folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rcnn_fit.fit_run(run, ["data.limit=6"], run / "rcnn_fit.pt")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[-2:]] == ["softmax", "svm + boxes"]
    assert all("mAP50 " in line for line in lines[-2:])
    fitted = rcnn_fitted.load(run / "rcnn_fit.pt")
    assert fitted.machines.shape == (8, 129)
    assert fitted.boxes.shape == (8, 4, 128 * 4 * 4 + 1)  # three halvings of a crop of 32
    assert all(part.isfinite().all() for part in fitted)


def test_what_is_no_run_and_no_rcnn(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ConfigError, match="Linear is no R-CNN"):
        rcnn_fit.Regioned(torch.nn.Linear(2, 2))
    monkeypatch.setattr(sys, "argv", ["rcnn_fit.py", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit) as end:
        rcnn_fit.main()
    assert end.value.code == 4
    assert "cvtrain: error[CKPT" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["nothing.pt", "words.pt", "other.pt"])
def test_what_was_not_fitted(given: str, tmp_path: Path) -> None:
    (tmp_path / "words.pt").write_text("words")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ConfigError, match=r"model\.fitted=.*cannot be read"):
        RCNN(num_classes=3, network=TINY, fitted=str(tmp_path / given))


def test_what_was_fitted_to_other_classes(tmp_path: Path) -> None:
    torch.save({"machines": torch.zeros(3, 9), "boxes": torch.zeros(3, 4, 513)}, tmp_path / "f.pt")
    model = RCNN(num_classes=3, network=TINY, crop=16, context=2, fitted=str(tmp_path / "f.pt"))
    proposals = [torch.tensor([[4.0, 4, 24, 24]])]
    with pytest.raises(ConfigError, match="of 3 classes, the network tells 2 apart"):
        model.eval()([torch.randn(3, 40, 40)], None, proposals)
