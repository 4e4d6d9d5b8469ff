"""What an evaluation of detection does on request: mirror images, and the losses; and the perfect
detector, of COCO's files with every kind of id.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_objects
from torch import Tensor, nn
from torchvision.ops import masks_to_boxes

from cvtrain.data.batch import DetectionBatch
from cvtrain.data.coco import Coco
from cvtrain.data.source import Augmentations
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.evaluate import evaluate
from cvtrain.engine.window import mean_loss
from cvtrain.models.detection.fast_rcnn import FastRCNN
from cvtrain.models.detection.faster_rcnn import FasterRCNN
from cvtrain.models.zoo import torchvision_detector
from cvtrain.tasks.detection import Detection, network_of
from cvtrain.tasks.detection_evaluator import WithLosses

CPU = torch.device("cpu")


def batch_of(*images: Tensor, start: int = 0, **more: Any) -> DetectionBatch:
    """With two objects each, and one truth of the same."""
    boxes = torch.tensor([[4.0, 6, 24, 40], [30, 8, 60, 44]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 2])}
    truths = [{"size": torch.tensor(image.shape[-2:]), **target} for image in images]
    ids = torch.arange(start, start + len(images))
    given = {"proposals": None, **more}
    return DetectionBatch([*images], [target for _ in images], truths, ids=ids, **given)


# Mirror images


class Left(nn.Module):
    """Finds what is bright in the left half of an image, with its mask; sees its proposals."""

    needs_proposals = True

    def forward(self, images: list[Tensor], targets: Any, proposals: list[Tensor]) -> Any:
        self.seen = [*getattr(self, "seen", []), proposals[0].tolist()]
        return [self.look(image) for image in images]

    def look(self, image: Tensor) -> dict[str, Tensor]:
        half = torch.zeros_like(image[0])
        half[:, : image.shape[-1] // 2] = image[0, :, : image.shape[-1] // 2]
        mask = half[None] > 0.5
        boxes = masks_to_boxes(mask) + torch.tensor([0, 0, 1, 1]) if mask.any() else half[:0, :4]
        count = len(boxes)
        score = image.max().expand(count)
        masks = mask[:count, None].float()
        return {"boxes": boxes, "labels": torch.ones(count).long(), "scores": score, "masks": masks}


def bright(*boxes: tuple[int, int, int, int], width: int = 60) -> Tensor:
    image = torch.zeros(3, 40, width)
    for left, top, right, bottom in boxes:
        image[:, top:bottom, left:right] = 0.75
    return image


def test_mirror_images_are_seen_and_turned_back() -> None:
    left, right, middle = (3, 5, 13, 25), (41, 2, 58, 30), (20, 8, 41, 30)
    given = torch.tensor([[1.0, 2, 30, 9]])
    images = [bright(left, right), bright(right), bright(width=61), bright(middle, width=61)]
    batch, model = batch_of(*images, proposals=[given] * 4), Left()
    plain = Detection(num_classes=2).predict(model, batch)
    assert [found["boxes"].tolist() for found in plain] == [[[*left]], [], [], [[20, 8, 30, 30]]]
    both = Detection(num_classes=2, flip=True).predict(model, batch)
    boxes = [found["boxes"].tolist() for found in both]
    # Of what crosses the middle each sees a part, which are two objects.
    expected = [[[*left], [*right]], [[*right]], [], [[20, 8, 30, 30], [31, 8, 41, 30]]]
    assert [sorted(some) for some in boxes] == expected
    assert model.seen == [[[1, 2, 30, 9]]] * 2 + [[[30, 2, 59, 9]]]
    for image, found in zip(images, both, strict=True):
        masks = found["masks"].amax(0) if len(found["masks"]) else torch.zeros(1, *image.shape[1:])
        inside = image[:1] > 0.5
        inside[..., 30 : image.shape[-1] - 30] = False  # a column that neither half has
        assert torch.equal(masks > 0.5, inside)


class Everywhere(nn.Module):
    """One object, found alike in both images: a little surer in the second."""

    calls = 0

    def forward(self, images: list[Tensor], targets: Any = None) -> list[dict[str, Tensor]]:
        self.calls += 1
        box = torch.tensor([[10.0, 10, 50, 30]])  # the middle of 60 pixels
        labels, scores = torch.tensor([1, 2]), torch.tensor([0.5 + self.calls / 10, 0.3])
        return [{"boxes": box.repeat(2, 1), "labels": labels, "scores": scores}]


def test_what_both_find_is_one() -> None:
    found, *_ = Detection(num_classes=2, flip=True).predict(Everywhere(), batch_of(bright()))
    assert found["labels"].tolist() == [1, 2]
    assert found["scores"].tolist() == pytest.approx([0.7, 0.3])


@torch.no_grad()
def test_of_a_network() -> None:
    """A detection of the mirror image alone stands where the network puts it there."""
    torch.manual_seed(0)
    model = FasterRCNN(body={"name": "tiny"}, num_classes=3, score=0.0, detections=5).eval()
    image = torch.randn(3, 64, 90)
    [there] = model([image.flip(-1)])
    [both] = Detection(num_classes=2, flip=True).predict(model, batch_of(image))
    [here] = model([image])
    back = torch.stack([90 - there["boxes"][:, 2], 90 - there["boxes"][:, 0]], 1)
    known = torch.cat([here["boxes"][:, [0, 2]], back])
    assert 2 <= len(both["boxes"]) <= 10
    for box in both["boxes"]:
        assert (known - box[[0, 2]]).abs().sum(1).min() < 1e-3


# Losses


class Noisy(nn.Module):
    """Dropout and batch norm; a part that asks for training, as a proposal network does."""

    def __init__(self, *, means: bool) -> None:
        super().__init__()
        self.means = means
        self.part = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.9))
        self.still = nn.BatchNorm1d(3)

    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        colours = torch.stack([image.mean((1, 2)) for image in images])
        if not self.training:
            none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}
            return [{**none, "scores": torch.zeros(0)} for _ in images]
        assert self.part.training
        total = self.still(self.part(colours)).square().sum()
        if self.means:
            return {"cls": total / len(images)}
        return {"cls": (total, torch.tensor(float(7 * len(images))))}


def batches() -> list[DetectionBatch]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(3, 48, 60 + n, generator=generator) for n in range(5)]
    return [batch_of(*images[:2]), batch_of(*images[2:4], start=2), batch_of(images[4], start=4)]


class Of:
    """A loader of these."""

    def __init__(self, some: list[DetectionBatch]) -> None:
        self.some = some

    def epoch(self, epoch: int) -> Any:
        return [(batch,) for batch in self.some]


def evaluated(task: Detection, model: nn.Module, some: list[DetectionBatch]) -> Any:
    return evaluate(
        model,
        Of(some),
        task=task,
        transform=lambda batch: batch,
        device=CPU,
        autocast=torch.autocast("cpu", enabled=False),
        ranks=Ranks(),
    )


@pytest.mark.parametrize("means", [False, True])
def test_losses_of_an_evaluation_by_hand(means: bool) -> None:
    model, task = Noisy(means=means), Detection(num_classes=2, val_losses=True)
    model.part[0].running_mean += 0.1
    model.part[0].running_var *= 2
    model.train()
    model.still.eval()  # as one that is frozen
    before = {name: value.clone() for name, value in model.state_dict().items()}
    draws = torch.get_rng_state()
    figures = evaluated(task, model, batches()).compute()
    total = 0.0
    for batch in batches():
        for image in batch.images:  # without dropout; by the running statistics
            colours = (image.mean((1, 2)) - before["part.0.running_mean"]) / 2**0.5
            total += colours.square().sum().item()
    assert figures["cls"] == pytest.approx(total / 5 / (1 if means else 7), rel=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    modes = [module.training for module in (model, model.part, *model.part, model.still)]
    assert modes == [True, True, True, True, False]
    assert torch.equal(draws, torch.get_rng_state())
    assert "cls" not in evaluated(Detection(num_classes=2), model, batches()).compute()


def test_losses_of_processes_are_those_of_one() -> None:
    model, task = Noisy(means=False).train(), Detection(num_classes=2, val_losses=True)
    whole = evaluated(task, model, batches())
    # The third has nothing.
    ranks = [evaluated(task, model, some) for some in (batches()[:1], batches()[1:], [])]
    kept = [rank.kept() for rank in ranks]
    for rank in ranks:
        rank.merge(kept)
        assert rank.compute() == pytest.approx(whole.compute())
        assert rank.compute()["cls"] > 0


def ours() -> nn.Module:
    return FasterRCNN(body={"name": "tiny"}, num_classes=3, rpn={"sizes": [16, 32]})


def with_proposals() -> nn.Module:
    return FastRCNN(body={"name": "tiny"}, num_classes=3)


def torchvisions() -> nn.Module:
    return torchvision_detector(name="fasterrcnn_mobilenet_v3_large_320_fpn", num_classes=3)


def one_stage() -> nn.Module:
    return torchvision_detector(name="ssdlite320_mobilenet_v3_large", num_classes=3)


@pytest.mark.parametrize("make", [ours, with_proposals, torchvisions, one_stage])
def test_losses_of_real_networks(make: Any) -> None:
    """Against a loop that sets by hand what has to be in training."""
    torch.manual_seed(0)
    model, task = make().train(), Detection(num_classes=2, val_losses=True)
    some = batches()
    if make is with_proposals:
        some = [b._replace(proposals=[t["boxes"] + 1 for t in b.targets]) for b in some]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    figures = evaluated(task, model, some).compute()
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    for module in [model, *(getattr(model, part, model) for part in ("rpn", "roi_heads"))]:
        module.training = True
    sums: dict[str, list[float]] = {}
    for batch in some:
        torch.manual_seed(0)
        with torch.no_grad():
            given = (batch.proposals,) if make is with_proposals else ()
            losses = model(batch.images, batch.targets, *given)
        for name, value in losses.items():
            total, count = value if isinstance(value, tuple) else (value * len(batch.ids), None)
            row = sums.setdefault(name, [0.0, 0.0])
            row[0] += total.item()
            row[1] += len(batch.ids) if count is None else count.item()
    assert {name: figures[name] for name in sums} == pytest.approx(
        {name: total / count for name, (total, count) in sums.items()}, rel=1e-6
    )


def test_another_network_around_it_is_not_asked() -> None:
    """DistributedDataParallel would wait for processes that have no such batch."""

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = Noisy(means=False)

        def forward(self, *inputs: Any) -> Any:
            assert not self.training
            return self.module(*inputs)

    model, task = Around().eval(), Detection(num_classes=2, val_losses=True)
    predicted = task.predict(model, batches()[0])
    assert isinstance(predicted, WithLosses)
    assert predicted.losses["cls"][1] == 14
    assert not network_of(model).training


# The perfect detector

GIVEN = {"mean": [0.5] * 3, "std": [0.25] * 3}


def coco(root: Path, change: Any = None) -> Coco:
    """What `write_objects` writes, after `change` of each json."""
    write_objects(root)
    files = [root / f"annotations/{split}.json" for split in ("train", "val")]
    for file in files:
        top = json.loads(file.read_text())
        if change:
            change(top)
        file.write_text(json.dumps(top))
    paths = {"train_json": str(files[0]), "val_json": str(files[1])}
    return Coco(root=str(root), **GIVEN, **paths, train_dir="train", val_dir="val")


def perfect(source: Coco, size: int, *also: dict[str, Tensor]) -> dict[str, float]:
    """The figures of what finds each target where the network would see it, and `also` in each."""
    split = source.val(size)
    task = Detection(num_classes=len(source.info.classes))
    evaluator = task.evaluator()
    for place in range(len(split)):
        batch = split.collate([split[place]])
        [target] = batch.targets
        scores = torch.full((len(target["boxes"]),), 0.5)
        found = {"boxes": target["boxes"], "labels": target["labels"], "scores": scores}
        for more in also:
            found = {name: torch.cat([found[name], more[name]]) for name in found}
        evaluator.update([found], batch)
    return evaluator.compute()


def renamed(first: int, second: int) -> Any:
    """Categories of these ids; images and annotations from 0 on; further categories unused."""

    def change(top: dict[str, Any]) -> None:
        ids = {7: first, 8: second}
        for number, annotation in enumerate(top["annotations"]):
            annotation["category_id"] = ids[annotation["category_id"]]
            annotation |= {"id": number, "image_id": annotation["image_id"] - 1}
        for image in top["images"]:
            image["id"] -= 1
        for category in top["categories"]:
            category["id"] = ids[category["id"]]
        top["categories"] += [{"id": 1000, "name": "unused"}, {"id": 33, "name": "unused, too"}]

    return change


@pytest.mark.fault("K3")
@pytest.mark.parametrize("ids", [(7, 8), (0, 90), (90, 1), (1, 7)])
@pytest.mark.parametrize("size", [24, 48, 101])
def test_the_perfect_detector(tmp_path: Path, ids: tuple[int, int], size: int) -> None:
    """Ids of 0, gaps, another order: the average precision is 1.000, at any size."""
    source = coco(tmp_path, renamed(*ids))
    figures = perfect(source, size)
    assert {name: figures[name] for name in ("mAP", "mAP50", "mAP75", "AR100")} == pytest.approx(
        {"mAP": 100.0, "mAP50": 100.0, "mAP75": 100.0, "AR100": 100.0}
    )
    labels = {"boxes": torch.tensor([[0.0, 0, 5, 5]]), "labels": torch.tensor([1])}
    assert perfect(source, size, {**labels, "scores": torch.ones(1)})["mAP"] < 90


# Images without boxes, crowds


def crowded(top: dict[str, Any]) -> None:
    """Besides: all but the first three images have a crowd in the corner, which the fifth has
    instead of its boxes."""
    top["annotations"] = [a for a in top["annotations"] if a["image_id"] != 5]
    for image in top["images"][3:]:
        crowd = {"id": 100 + image["id"], "image_id": image["id"], "category_id": 7, "area": 64.0}
        crowd |= {"bbox": [0, 0, 10, 5], "iscrowd": 1}
        crowd["segmentation"] = {"size": [image["height"], image["width"]], "counts": [0, 1]}
        top["annotations"].append(crowd)


@pytest.mark.fault("K4")
def test_crowds_are_passed_over(tmp_path: Path) -> None:
    """A detection in one is neither right nor wrong; where there is none it is wrong."""
    source = coco(tmp_path, crowded)
    inside = {"boxes": torch.tensor([[1.0, 1, 6, 4]]), "scores": torch.ones(1)}
    assert perfect(source, 48)["mAP"] == pytest.approx(100)
    whole = [truth["crowd"].any() for truth in truths(source)]
    assert whole == [False] * 3 + [True] * 9
    assert perfect(source, 48, {**inside, "labels": torch.tensor([1])})["mAP"] < 95
    for truth in truths(source):
        assert len(truth["boxes"]) == len(truth["labels"])
    only = coco_of_crowds(tmp_path / "crowds")
    assert perfect(only, 48, {**inside, "labels": torch.tensor([1])})["mAP"] == pytest.approx(100)


def coco_of_crowds(root: Path) -> Coco:
    def change(top: dict[str, Any]) -> None:
        crowded(top)
        kept = {image["id"] for image in top["images"][3:]}
        top["images"] = [image for image in top["images"] if image["id"] in kept]
        top["annotations"] = [a for a in top["annotations"] if a["image_id"] in kept]

    return coco(root, change)


def truths(source: Coco) -> list[dict[str, Any]]:
    split = source.val(48)
    return split.collate([split[place] for place in range(len(split))]).truths


def of_size(name: str) -> nn.Module:
    torch.manual_seed(0)
    return {"ours": ours, "torchvision's": torchvisions}[name]()


@pytest.mark.fault("K4")
@pytest.mark.parametrize("name", ["ours", "torchvision's"])
@pytest.mark.parametrize("images", [[3], [4], [3, 4], [0, 3, 4]])
def test_a_step_without_boxes(tmp_path: Path, name: str, images: list[int]) -> None:
    """The fourth image has a crowd only, as the fifth, which had boxes, has now."""
    split = coco(tmp_path, crowded).train(64, Augmentations())
    batch = split.collate([split[place] for place in images])
    assert [len(target["boxes"]) for target in batch.targets][-1:] == [0]
    batch = batch._replace(images=[image / 255 for image in batch.images])
    model, task = of_size(name).train(), Detection(num_classes=2)
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    pairs = task.losses(model, batch)
    loss = mean_loss(pairs, {key: count for key, (_, count) in pairs.items()})
    loss.backward()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    optimizer.step()
    after = [p for p in model.parameters() if p.requires_grad]
    assert loss.isfinite()
    assert loss > 0
    assert all(p.isfinite().all() for p in after)
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# What is not finite


@pytest.mark.fault("N1")
@pytest.mark.parametrize("name", ["ours", "torchvision's"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("side", [0, 2, slice(None)])
def test_a_box_that_is_not_finite(name: str, value: float, side: Any) -> None:
    """It is the loss that says so, of a network that is not shown the box."""
    model, batch = of_size(name).train(), batches()[0]
    boxes = batch.targets[0]["boxes"].clone()
    boxes[1, side] = value
    targets = [{**batch.targets[0], "boxes": boxes}, batch.targets[1]]
    task = Detection(num_classes=2)
    torch.manual_seed(1)
    pairs = task.losses(model, batch._replace(targets=targets))
    assert all(total.isnan() for total, _ in pairs.values())
    assert targets[0]["boxes"] is boxes
    torch.manual_seed(1)
    assert all(total.isfinite() for total, _ in task.losses(model, batch).values())


@pytest.mark.fault("N1")
@pytest.mark.parametrize("name", ["ours", "torchvision's"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_pixel_that_is_not_finite(name: str, value: float) -> None:
    model, batch = of_size(name), batches()[0]
    batch.images[1][2, 9, 9] = value
    task = Detection(num_classes=2)
    pairs = task.losses(model.train(), batch)
    assert not all(total.isfinite() for total, _ in pairs.values())
    evaluator = task.evaluator()
    with torch.no_grad():
        evaluator.update(task.predict(model.eval(), batch), batch)
    assert 0 <= evaluator.compute()["mAP"] <= 100
