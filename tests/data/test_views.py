"""Ten crops and several scales of an image: their pixels against torchvision's, the mean of their
probabilities against a loop by hand, and both through the command.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import command, metrics, summary, write_cifar, write_images, write_mnist
from torch import Tensor, nn
from torchvision.transforms import v2

from cvtrain.build import build_parts
from cvtrain.compose import compose_config
from cvtrain.data import images as reading
from cvtrain.data.batch import ClassificationBatch, Normalise
from cvtrain.data.image_folder import ImageFolder
from cvtrain.data.source import Augmentations, Source
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.evaluate import evaluate
from cvtrain.engine.plan import Parts
from cvtrain.errors import ConfigError
from cvtrain.tasks.classification import Classification

CPU = torch.device("cpu")


def photograph(width: int, height: int) -> Image.Image:
    """Smooth, and of other colours everywhere."""
    coarse = np.random.default_rng(width).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def folder(root: Path, width: int, height: int, suffix: str = "jpg") -> ImageFolder:
    """One image in each class and split."""
    for place in ("train/a", "train/b", "val/a", "val/b"):
        (root / place).mkdir(parents=True)
        photograph(width, height).save(root / place / f"0.{suffix}")
    return ImageFolder(root=str(root), mean=[0.5] * 3, std=[0.25] * 3)


def views_of(source: ImageFolder, size: int, views: str, scales: list[int] | None) -> Tensor:
    """uint8 `[views, C, size, size]` of the first validation image, out of a batch of two."""
    split = source.in_views(source.val(size), views, scales)
    batch = split.collate([split[1], split[0]])
    assert batch.images.shape == (2, split.views, 3, size, size)
    assert batch.images.dtype == torch.uint8
    assert batch.labels.tolist() == [1, 0]
    assert batch.ids.tolist() == [1, 0]
    return batch.images[1]


def torchvisions(source: ImageFolder, *transforms: v2.Transform) -> Tensor:
    with Image.open(source.name_of(0, "val")) as image:
        seen = v2.Compose([v2.RGB(), v2.PILToTensor(), *transforms])(image)
    return torch.stack(list(seen)) if isinstance(seen, tuple) else seen[None]


# Pixels


@pytest.mark.parametrize(("width", "height"), [(341, 256), (343, 256), (256, 300), (256, 256)])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_ten_crops_are_torchvisions(width: int, height: int, suffix: str, tmp_path: Path) -> None:
    """Of an image that needs no resizing: to the bit.

    torchvision mirrors the whole image and then cuts: the same views, left and right exchanged,
    but for the middle of an image with an odd number of columns to spare, a pixel aside.
    """
    source = folder(tmp_path, width, height, suffix)
    ours = views_of(source, 224, "ten_crop", None)
    theirs = torchvisions(source, v2.TenCrop(224))[[0, 1, 2, 3, 4, 6, 5, 8, 7, 9]]
    assert torch.equal(ours[:9], theirs[:9])
    assert torch.equal(ours[9], theirs[9]) == (width % 2 == 0)
    five = torchvisions(source, v2.FiveCrop(224))
    assert torch.equal(ours, torch.cat([five, five.flip(3)]))


# Resized once, where torchvision resizes to the scale and then cuts out whole pixels; large files
# are decoded smaller.
@pytest.mark.parametrize(("width", "height"), [(500, 375), (193, 130), (375, 500), (2592, 1944)])
def test_ten_crops_of_any_image_and_scales(width: int, height: int, tmp_path: Path) -> None:
    source = folder(tmp_path, width, height)
    for scales in ([256], [240, 320]):
        ours = views_of(source, 224, "ten_crop", scales).float()
        crops = [
            torchvisions(source, v2.Resize(scale, antialias=True), v2.FiveCrop(224))
            for scale in scales
        ]
        wanted = torch.cat([*crops, *(five.flip(3) for five in crops)]).float()
        assert ours.shape == wanted.shape
        apart = (ours[:, None] - wanted[None]).abs().mean((2, 3, 4))
        assert (apart.diagonal() < 1.5).all(), apart.diagonal()
        others = apart + 1000 * torch.eye(len(apart))
        assert others.min() > 8, others.min()


def test_scales_are_the_middle_at_each(tmp_path: Path) -> None:
    source = folder(tmp_path, 500, 375)
    ours = views_of(source, 96, "one_crop", [96, 128, 200]).float()
    for view, scale in zip(ours, (96, 128, 200), strict=True):
        resize = (v2.Resize(scale, antialias=True), v2.CenterCrop(96))
        assert (view - torchvisions(source, *resize)[0].float()).abs().mean() < 2.5


def test_one_view_is_what_it_always_was(tmp_path: Path) -> None:
    source = folder(tmp_path, 500, 375)
    plain = source.val(64)
    assert source.in_views(plain, "one_crop", None) is plain
    # 73.14 px is what 7/8 of the short side is; 64 of 80 is another crop.
    same, other = (source.in_views(plain, "one_crop", [scale]) for scale in (64, 80))
    assert not hasattr(same, "views")
    whole = ImageFolder(root=str(tmp_path), mean=[0.5] * 3, std=[0.25] * 3, crop_fraction=0.8).val(
        64
    )
    assert torch.equal(other[0][0], whole[0][0])
    assert not torch.equal(other[0][0], same[0][0])


def test_a_file_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, decoded = folder(tmp_path, 100, 90), []
    decode = reading._decode
    monkeypatch.setattr(reading, "_decode", lambda path: decoded.append(path) or decode(path))
    assert len(source.in_views(source.val(64), "ten_crop", [64, 80, 96])[0][0]) == 30
    assert len(decoded) == 1


# What the network gets, and what is made of its answers


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("channels", "to"), [(3, 12), (3, 20), (1, 12)])
def test_views_are_normalised_as_images_are(channels: int, to: int, channels_last: bool) -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (2, 5, channels, 12, 12), dtype=torch.uint8)
    normalise = Normalise(
        **{"mean": [0.4] * channels, "std": [0.2] * channels, "image_size": to},
        **{"channels": 3, "device": CPU, "channels_last": channels_last},
    )
    ours = normalise(ClassificationBatch(pixels, torch.arange(2), torch.arange(2))).images
    assert ours.shape == (2, 5, 3, to, to)
    for row, views in zip(ours, pixels, strict=True):
        alone = normalise(ClassificationBatch(views, torch.arange(5), torch.arange(5))).images
        assert torch.equal(row, alone)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert ours.flatten(0, 1).is_contiguous(memory_format=layout)


class Tiny(nn.Module):
    """Strong opinions, that differ from view to view."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 4 * 4, 6)

    def forward(self, images: Tensor) -> Tensor:
        assert images.ndim == 4
        return 3 * self.layer(images.flatten(1))


def batch_of_views() -> ClassificationBatch:
    torch.manual_seed(0)
    return ClassificationBatch(
        2 * torch.randn(3, 4, 3, 4, 4), torch.tensor([0, 5, 2]), torch.arange(3)
    )


def mean_probabilities(model: nn.Module, images: Tensor, extra: list[float]) -> Tensor:
    """By hand: float64 `[N, classes + extra]`, the mean over the views of each sample."""
    rows = []
    for views in images:
        shares = []
        for view in views:
            logits = [*model(view[None])[0].tolist(), *extra]
            powers = [math.exp(logit) for logit in logits]
            shares.append([power / sum(powers) for power in powers])
        rows.append([sum(column) / len(views) for column in zip(*shares, strict=True)])
    return torch.tensor(rows, dtype=torch.float64)


@torch.no_grad()
def test_the_mean_of_the_probabilities() -> None:
    model, batch, task = Tiny(), batch_of_views(), Classification(num_classes=6)
    wanted = mean_probabilities(model, batch.images, [])
    found = task.predict(model, batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.exp().double(), wanted, rtol=1e-5, atol=1e-7)
    # It is not the probability of the mean logits.
    logits = torch.stack([model(views).mean(0) for views in batch.images])
    assert (logits.softmax(1) - wanted).abs().max() > 0.05
    # The sample counts once, with the mean's loss.
    evaluator = task.evaluator()
    evaluator.update(found, batch)
    own = wanted[torch.arange(3), batch.labels]
    assert evaluator.totals["samples"] == 3
    assert evaluator.compute()["loss"] == pytest.approx(-own.log().mean().item(), rel=1e-5)
    wrong = (wanted.argmax(1) != batch.labels).sum().item()
    assert evaluator.totals["top1_wrong"] == wrong


@torch.no_grad()
def test_the_mean_with_a_further_class() -> None:
    """Of task.reject_logit: its probability is averaged like the others'."""
    model, batch = Tiny(), batch_of_views()
    task = Classification(num_classes=6, reject_logit=0.5)
    wanted = mean_probabilities(model, batch.images, [0.5])
    loss = task.cross_entropy(task.predict(model, batch), batch.labels)
    own = wanted[torch.arange(3), batch.labels]
    assert loss.item() == pytest.approx(-own.log().sum().item(), rel=1e-5)


@torch.no_grad()
def test_one_view_gives_the_logits_themselves() -> None:
    model, batch = Tiny(), batch_of_views()
    for reject in (None, 0.5):
        task = Classification(num_classes=6, reject_logit=reject)
        plain = batch._replace(images=batch.images[:, 0])
        assert torch.equal(task.predict(model, plain), model(plain.images))


@torch.no_grad()
def test_certain_views_leave_a_finite_loss() -> None:
    """A probability of 1e-200 is 0 as float32, its logarithm is not."""
    batch = batch_of_views()
    logits = torch.tensor([500.0, 0, 0, 0, 0, 0]).expand(12, 6)
    task = Classification(num_classes=6)
    found = task.predict(lambda images: logits, batch)
    assert task.cross_entropy(found, batch.labels).item() == pytest.approx(1000)


# Together


def parts_of(*typed: str) -> Parts:
    line = [
        "model=resnet20",
        "recipe=none",
        "data=folder",
        "data.image_size=28",
        "data.batch_size=4",
    ]
    return build_parts(compose_config([*line, *typed]).config, device=CPU, ranks=Ranks())


@pytest.fixture(scope="module")
def insects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short sides of 32 px: 28 px of them are 7/8, nothing is resized."""
    root = tmp_path_factory.mktemp("insects")
    write_images(root, size=(40, 32))
    return root


@torch.no_grad()
def by_hand(root: Path, split: str, parts: Parts) -> tuple[float, int]:
    """The loss summed and the samples that are wrong, by Pillow and torchvision."""
    seen = v2.Compose(
        [
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(parts.source.mean, parts.source.std),
            v2.TenCrop(28),
        ]
    )
    loss, wrong, model = 0.0, 0, parts.model.eval()
    for label, name in enumerate(("ants", "bees")):
        for file in (root / split / name).iterdir():
            with Image.open(file) as image:
                probabilities = model(torch.stack(seen(image))).softmax(1).mean(0)
            loss -= probabilities[label].log().item()
            wrong += int(probabilities.argmax().item() != label)
    return loss, wrong


@pytest.mark.parametrize("split", ["val", "train"])
def test_an_evaluation_by_hand(split: str, insects: Path) -> None:
    if split == "train":  # of another size, so that no split is taken for the other
        (insects / "train/ants/5.jpg").unlink(missing_ok=True)
    typed = [f"data.root={insects}", f"eval.split={split}"]
    losses = []
    for views in ("ten_crop", "one_crop"):
        parts = parts_of(*typed, f"eval.views={views}", "eval.batch_size=25")
        evaluator = evaluate(
            parts.model,
            parts.val,
            **{"task": parts.task, "transform": parts.transform, "device": CPU},
            **{"autocast": torch.autocast("cpu", enabled=False), "ranks": Ranks()},
        )
        assert evaluator
        files = len(list((insects / split).glob("*/*.jpg")))
        assert evaluator.totals["samples"] == files == (12 if split == "val" else 11)
        if views == "ten_crop":
            loss, wrong = by_hand(insects, split, parts)
            assert evaluator.totals["loss_sum"].item() == pytest.approx(loss, rel=1e-5)
            assert evaluator.totals["top1_wrong"] == wrong
        losses.append(evaluator.totals["loss_sum"].item())
    assert abs(losses[0] - losses[1]) > 1e-3 * losses[0]


@pytest.mark.parametrize(
    ("typed", "batch_size", "views"),
    [
        ("eval.batch_size=5", 5, 1),
        ("eval.batch_size=25 eval.views=ten_crop", 2, 10),
        ("eval.batch_size=9 eval.views=ten_crop", 1, 10),
        ("eval.batch_size=25 eval.scales=[28,32,40]", 8, 3),
        ("eval.batch_size=60 eval.scales=[28,32] eval.views=ten_crop", 3, 20),
    ],
)
def test_as_many_images_at_a_time(typed: str, batch_size: int, views: int, insects: Path) -> None:
    loader = parts_of(f"data.root={insects}", *typed.split()).val
    ((first,), *_) = loader.epoch(0)
    assert first.images.shape == (batch_size, *((views,) if views > 1 else ()), 3, 28, 28)
    seen = Counter(i for (batch,) in loader.epoch(0) for i in batch.ids.tolist())
    assert seen == Counter(range(12))


def test_through_the_command(tmp_path: Path) -> None:
    write_images(tmp_path / "insects", count=7)
    line = [
        *("debug=smoke", "model=resnet20", "data=folder", f"data.root={tmp_path}/insects"),
        *("data.image_size=28", "eval.max_batches=null", "hydra.run.dir=run"),
    ]
    views = ("eval.views=ten_crop", "eval.scales=[28,32,40]", "trainer.workers=2")
    done = command(*line, *views, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = summary(tmp_path / "run")
    assert {name: row["samples"] for name, row in told["per_class"].items()} == {
        "ants": 7,
        "bees": 7,
    }
    assert (told["steps"], math.isfinite(told["val/loss"])) == (2, True)
    assert {"samples.png", "confusion.png"} <= {file.name for file in (tmp_path / "run").iterdir()}
    # Seen otherwise, the finished run is evaluated anew, on one line of its own.
    again = command(*line, "resume=auto", "resume_allow=[eval]", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert summary(tmp_path / "run")["val/loss"] != told["val/loss"]
    evaluated = [row["step"] for row in metrics(tmp_path / "run") if "val/loss" in row]
    assert evaluated == [1, 2]


# What cannot be


def test_scales_below_the_networks_size_are_refused(insects: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parts_of(f"data.root={insects}", "eval.scales=[32,27]", "eval.views=ten_crop")
    assert caught.value.line() == (
        "cvtrain: error[CONFIG]: a short side of 27 px holds no view of the network's 28 px; "
        "eval.scales; type sides of at least 28: eval.scales=[28]"
    )


@pytest.mark.parametrize("typed", ["eval.views=ten_crop", "eval.scales=[40]"])
@pytest.mark.parametrize("data", ["mnist", "cifar10"])
def test_arrays_have_one_view(data: str, typed: str, tmp_path: Path) -> None:
    (write_mnist if data == "mnist" else write_cifar)(tmp_path)
    line: list[Any] = [f"data={data}", f"data_dir={tmp_path}", "model=lenet5", "debug=smoke", typed]
    with pytest.raises(ConfigError) as caught:
        build_parts(compose_config(line).config, device=CPU, ranks=Ranks())
    name = {"mnist": "MNIST", "cifar10": "CIFAR10"}[data]
    assert caught.value.line() == (
        f"cvtrain: error[CONFIG]: {name} has one view of each sample; folders of images have more; "
        f"{typed.partition('=')[0]}; type eval.views=one_crop eval.scales=null"
    )
    plain = build_parts(compose_config(line[:-1]).config, device=CPU, ranks=Ranks())
    ((batch,), *_) = plain.val.epoch(0)
    assert batch.images.ndim == 4


def test_a_split_of_anothers_kind_has_one_view(insects: Path) -> None:
    """A source of yours that reads folders in its own way, and one that does not."""
    source = ImageFolder(root=str(insects), mean=[0.5] * 3, std=[0.25] * 3)
    plain = source.train(28, Augmentations())
    own = type("Own", (type(plain),), {})(plain.found, size=28, crop=plain.crop)
    for kind in (ImageFolder.in_views, Source.in_views):
        assert kind(source, own, "one_crop", None) is own
        with pytest.raises(ConfigError, match="one view of each sample"):
            kind(source, own, "ten_crop", None)
