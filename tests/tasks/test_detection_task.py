"""The task of detection: its pairs, what it keeps of an evaluation, and figures known by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from cvtrain.data.batch import DataInfo, DetectionBatch
from cvtrain.engine.window import added, mean_loss
from cvtrain.errors import ConfigError
from cvtrain.tasks.base import Showing
from cvtrain.tasks.detection import Detection

ANCHORS = 16  # per image, a fixed denominator as an RPN has


class Toy(nn.Module):
    """A loss for each image and one for each object, over counts that are known beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.body = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, images: list[Tensor], targets: Any = None, proposals: Any = None) -> Any:
        features = [self.trunk(image.mean((1, 2))) for image in images]
        if targets is None:
            boxes = [10 * self.body(f)[None].abs() for f in features]
            return [
                {"boxes": b, "labels": torch.ones(1).long(), "scores": torch.ones(1)} for b in boxes
            ]
        counts = self.loss_counts(len(images))
        boxes = [t["boxes"] - self.body(f) for f, t in zip(features, targets, strict=True)]
        sums = {
            "rpn_cls": torch.stack([f.square().sum() for f in features]).sum(),
            "box": torch.cat(boxes).abs().sum(),
        }
        return {name: (sums[name], torch.tensor(counts[name])) for name in sums}

    def loss_counts(self, images: int) -> dict[str, float]:
        return {"rpn_cls": float(ANCHORS * images), "box": float(4 * images)}


class Means(Toy):
    """As torchvision's: means of the batch."""

    def forward(self, images: list[Tensor], targets: Any = None, proposals: Any = None) -> Any:
        pairs = super().forward(images, targets)
        return {name: total / len(images) for name, (total, _) in pairs.items()}

    def loss_counts(self, images: int) -> dict[str, float]:
        return {"rpn_cls": float(images), "box": float(images)}


def batch_of(count: int, start: int = 0) -> DetectionBatch:
    """Images of several sizes with 0, 1, 2, ... objects."""
    images, targets, truths = [], [], []
    for number in range(start, start + count):
        generator = torch.Generator().manual_seed(number)
        images.append(torch.randn(3, 20 + number, 30, generator=generator))
        corners = 10 * torch.rand(number % 4, 4, generator=generator)
        boxes = torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:] + 1], 1)
        labels = 1 + torch.arange(number % 4) % 2
        targets.append({"boxes": boxes, "labels": labels})
        truths.append({"size": torch.tensor([40 + 2 * number, 90]), "boxes": boxes * 2})
        truths[-1] |= {"labels": labels}
    return DetectionBatch(images, targets, truths, None, torch.arange(start, start + count))


def gradients(task: Detection, model: nn.Module, batches: list[DetectionBatch]) -> list[Tensor]:
    """As the trainer takes them: each micro-batch's pairs over the counts of all."""
    model.zero_grad()
    counts = added(task.counts(model, batch) for batch in batches)
    for batch in batches:
        mean_loss(task.losses(model, batch), counts).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


# Losses


def test_pairs_pass_as_they_are_and_means_count_as_images() -> None:
    torch.manual_seed(0)
    task, model, batch = Detection(num_classes=2), Toy(), batch_of(5)
    pairs = task.losses(model, batch)
    assert {name: count.item() for name, (_, count) in pairs.items()} == {"rpn_cls": 80, "box": 20}
    means = Means()
    means.load_state_dict(model.state_dict())
    for name, (total, count) in task.losses(means, batch).items():
        assert count == 5
        assert total.item() == pytest.approx(pairs[name][0].item())
    for network in (model, means):
        known = task.counts(network, batch)
        assert known == {name: count for name, (_, count) in task.losses(network, batch).items()}


@pytest.mark.parametrize("kind", [Toy, Means])
def test_micro_batches_are_the_whole_batch(kind: type[Toy]) -> None:
    torch.manual_seed(0)
    task, model = Detection(num_classes=2), kind()
    whole = gradients(task, model, [batch_of(7)])
    parts = gradients(task, model, [batch_of(4), batch_of(2, 4), batch_of(1, 6)])
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)


def test_counts_of_a_network_inside_another() -> None:
    class Wrapped(nn.Module):  # as DistributedDataParallel has it
        def __init__(self) -> None:
            super().__init__()
            self.module = Toy()

    assert Detection(num_classes=2).counts(Wrapped(), batch_of(2))["box"] == 8


def test_a_network_without_counts_cannot_accumulate() -> None:
    class Uncounted(Means):
        loss_counts = property()

    with pytest.raises(ConfigError, match=r"type trainer\.accumulate=1"):
        Detection(num_classes=2).counts(Uncounted(), batch_of(2))


def test_only_the_chosen_losses_train() -> None:
    model, batch = Toy(), batch_of(3)
    pairs = Detection(num_classes=2, losses=["rpn_cls"]).losses(model, batch)
    assert {name: total.requires_grad for name, (total, _) in pairs.items()} == {
        "rpn_cls": True,
        "box": False,
    }
    mean_loss(pairs, {name: count for name, (_, count) in pairs.items()}).backward()
    assert model.trunk.weight.grad is not None
    assert model.body.weight.grad is None


def test_losses_are_weighted() -> None:
    model, batch = Toy(), batch_of(3)
    plain = Detection(num_classes=2).losses(model, batch)
    weighted = Detection(num_classes=2, loss_weights={"box": 10}).losses(model, batch)
    assert weighted["box"][0].item() == pytest.approx(10 * plain["box"][0].item())
    assert weighted["rpn_cls"][0] == plain["rpn_cls"][0]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"losses": ["rpn_cls", "bx"]}, r"no loss bx; task\.losses; .*rpn_cls, box"),
        ({"loss_weights": {"bx": 2}}, "no loss bx"),
        ({"losses": []}, "is no list of losses"),
        ({"losses": "box"}, "is no list of losses"),
        ({"voc": 2012}, "type task.voc=2007"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        Detection(num_classes=2, **arguments).losses(Toy(), batch_of(2))


@pytest.mark.parametrize("need", ["masks", "proposals"])
def test_what_the_data_have_to_give(need: str) -> None:
    model = Toy()
    setattr(model, f"needs_{need}", True)
    with pytest.raises(ConfigError, match=f"{need}, and the data give none"):
        Detection(num_classes=2).losses(model, batch_of(2))


def test_proposals_reach_the_network() -> None:
    class Taking(Toy):
        needs_proposals = True

        def forward(self, images: list[Tensor], targets: Any = None, proposals: Any = None) -> Any:
            assert [len(p) for p in proposals] == [3, 4]
            return super().forward(images, targets)

    batch = batch_of(2)._replace(proposals=[torch.zeros(3, 4), torch.zeros(4, 4)])
    task = Detection(num_classes=2)
    assert task.losses(Taking(), batch).keys() == {"rpn_cls", "box"}
    assert len(task.predict(Taking(), batch)) == 2


# Predictions


class Fixed(nn.Module):
    """Finds what it is told to."""

    def __init__(self, found: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.found = found

    def forward(self, images: list[Tensor], targets: Any = None) -> list[dict[str, Tensor]]:
        return self.found


def found(*rows: tuple[list[float], int, float], **more: Tensor) -> dict[str, Tensor]:
    """Of boxes, labels and scores."""
    boxes, labels, scores = zip(*rows, strict=True) if rows else ([], [], [])
    return {
        "boxes": torch.tensor(boxes).view(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores),
        **more,
    }


NAN, INF = float("nan"), float("inf")


def test_what_cannot_be_used_is_left_out() -> None:
    """Whatever of it reached drawing in torchvision would end the process."""
    rows = [
        ([1.0, 1, 5, 5], 1, 0.9),
        ([NAN, 1, 5, 5], 1, 0.8),
        ([1, 1, INF, 5], 2, 0.7),
        ([1, 1, 5, 5], 2, NAN),
        ([-4, 2, 900, 7], 2, 0.5),
        ([1, 1, 5, 5], 0, 0.4),  # the background, of which torchvision's RetinaNet has an output
    ]
    batch = batch_of(1)  # 20 x 30 pixels
    task = Detection(num_classes=2)
    [kept] = task.predict(Fixed([found(*rows)]), batch)
    assert kept["boxes"].tolist() == [[1, 1, 5, 5], [0, 2, 30, 7]]
    assert kept["labels"].tolist() == [1, 2]
    assert kept["scores"].tolist() == pytest.approx([0.9, 0.5])
    [kept] = task.predict(Fixed([found(([INF] * 4, 1, INF))]), batch)
    evaluator = task.evaluator()
    evaluator.update([kept], batch)
    assert evaluator.compute()["mAP"] == 0  # no true object either


def test_half_precision_becomes_whole() -> None:
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in A_HIT.items()}
    [kept] = Detection(num_classes=2).predict(Fixed([half]), batch_of(1))
    assert kept["boxes"].dtype == kept["scores"].dtype == torch.float32


A_HIT = found(([1.0, 1, 5, 5], 1, 0.9))

# Evaluation. Two true boxes of 100 x 100 pixels in a file of 400 x 600, which the network sees as
# 200 x 150: a hit at 0.9, a miss at 0.8, and at 0.7 a box whose IoU with the second is 0.6. The
# figures are pycocotools' own; that at IoU 0.5 by hand: (51 + 50 * 2/3) / 101.
TRUE = torch.tensor([[0.0, 0, 100, 100], [200, 200, 300, 300]])
BOXES = torch.tensor([[0.0, 0, 100, 100], [400, 300, 500, 400], [200, 225, 300, 325]])
EXPECTED = {"mAP": 60.396, "mAP50": 83.498, "mAP75": 50.495, "AR1": 50.0, "AR10": 65.0}


def by_hand(number: int = 0, label: int = 1) -> tuple[list[dict[str, Tensor]], DetectionBatch]:
    seen = BOXES * torch.tensor([150 / 600, 200 / 400, 150 / 600, 200 / 400])
    rows = zip(seen.tolist(), [label] * 3, [0.9, 0.8, 0.7], strict=True)
    truth = {"size": torch.tensor([400, 600]), "boxes": TRUE, "labels": torch.tensor([label] * 2)}
    truth |= {"crowd": torch.zeros(2).bool(), "difficult": torch.zeros(2).bool()}
    truth |= {"area": torch.full((2,), 10_000.0)}
    image = torch.zeros(3, 200, 150)
    batch = DetectionBatch([image], [], [truth], None, torch.tensor([number]))
    return [found(*rows)], batch


def test_figures_known_by_hand() -> None:
    evaluator = Detection(num_classes=3).evaluator()
    assert isinstance(evaluator, Showing)
    evaluator.update(*by_hand())
    figures = evaluator.compute()
    assert {name: figures[name] for name in EXPECTED} == pytest.approx(EXPECTED, abs=1e-3)
    assert figures["mAP_large"] == pytest.approx(EXPECTED["mAP"], abs=1e-3)
    assert "mAP_small" not in figures  # no true object is small


def test_processes_together_are_one() -> None:
    task, parts = Detection(num_classes=2, voc=2010), [by_hand(n, 1 + n % 2) for n in range(5)]
    parts[3] = ([found()], parts[3][1])
    one = task.evaluator()
    for predictions, batch in parts:
        one.update(predictions, batch)
    ranks = [task.evaluator() for _ in range(2)]
    for number in (4, 1, 3, 0, 2):
        ranks[number % 2].update(*parts[number])
    kept = [rank.kept() for rank in ranks]
    for rank in ranks:
        rank.merge(kept)
        assert rank.compute() == one.compute()
    # A figure of its own: the hit is at a precision of 1 up to half the recall, 2/3 at the end.
    assert ranks[0].compute()["voc_mAP"] > 0


class Source:
    info = DataInfo("x", ("a", "b", "c"), 3, 32, "", names=("cat", "dog", "dog"))
    mean, std = [0.5] * 3, [0.25] * 3

    @staticmethod
    def image_of(index: int, split: str) -> Tensor | None:
        return None if index == 1 else torch.full((3, 400, 600), 99, dtype=torch.uint8)


def test_what_an_evaluation_shows() -> None:
    evaluator = Detection(num_classes=3).evaluator()
    evaluator.update(*by_hand())
    evaluator.update([A_HIT], by_hand(1)[1])  # whose picture is not there
    evaluator.compute()
    pictures = evaluator.pictures(Source, "val")
    names = {"detections", "precision_recall", "categories", "false_detections", "missed"}
    assert pictures.keys() == names
    assert all(p.dtype == np.uint8 and p.ndim == 3 for p in pictures.values())
    assert (pictures["detections"] == [0x2E, 0xCC, 0x40]).all(-1).any()  # the frame of a true box
    nothing = Detection(num_classes=3).evaluator()
    nothing.compute()
    assert nothing.pictures(Source, "val") == {}


def test_report_names_the_categories() -> None:
    evaluator = Detection(num_classes=3).evaluator()
    assert set(evaluator.report(Source)["per_category"].values()) == {None}
    evaluator.update(*by_hand())
    evaluator.compute()
    expected = {"cat": pytest.approx(60.396, abs=1e-3), "dog (b)": None, "dog (c)": None}
    report = evaluator.report(Source)
    assert report["per_category"] == expected
    precision = report["precision_recall"]["0.5"]
    assert (len(precision["cat"]), precision["dog (b)"]) == (21, None)
    assert precision["cat"][0] == 1.0  # the surest is right


def code(mask: Tensor) -> bytes:
    return coco_mask.encode(np.asfortranarray(mask.numpy().astype("uint8")))["counts"]


def test_masks_in_the_files_pixels() -> None:
    """A mask that the network has at half the size is that of the file."""
    whole = torch.zeros(40, 60)
    whole[10:30, 20:50] = 1
    probabilities = whole[::2, ::2][None, None]
    truth = {"size": torch.tensor([40, 60]), "boxes": torch.tensor([[20.0, 10, 50, 30]])}
    truth |= {"labels": torch.tensor([1]), "rles": [code(whole)]}
    seen = found(([10.0, 5, 25, 15], 1, 0.9), masks=probabilities)
    batch = DetectionBatch([torch.zeros(3, 20, 30)], [], [truth], None, torch.tensor([0]))
    evaluator = Detection(num_classes=1, masks=True).evaluator()
    evaluator.update([seen], batch)
    figures = evaluator.compute()
    assert figures["mAP"] == pytest.approx(100)
    assert figures["mask_mAP"] == pytest.approx(100)
    with pytest.raises(ConfigError, match="finds no masks"):
        evaluator.update([A_HIT], batch)
    with pytest.raises(ConfigError, match="data give no masks"):
        evaluator.update(*by_hand())


def test_pictures_of_a_training_batch() -> None:
    pictures = Detection(num_classes=2).pictures(batch_of(5), Source)
    assert pictures["samples"].dtype == np.uint8
    assert (pictures["samples"] == [0, 255, 0]).all(-1).any()  # the lines of a true box
