"""Image folders as users have them, also through the command; how one is split; ImageNet's tree."""

import hashlib
import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from tiny import command, write_images
from torchvision.transforms import v2

from cvtrain.build import build_parts
from cvtrain.compose import compose_config
from cvtrain.data import imagenet
from cvtrain.data.image_folder import ImageFolder
from cvtrain.data.imagenet import ImageNet
from cvtrain.data.source import Augmentations
from cvtrain.engine.distributed import Ranks
from cvtrain.errors import ConfigError

GIVEN: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.25] * 3}
SHARES = [0.75, 0.15, 0.10]


def noise(width: int, height: int, *, seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height))


@pytest.fixture(scope="module")
def insects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of two classes, of all sizes, with what such folders hold besides."""
    root = tmp_path_factory.mktemp("hymenoptera data")
    sizes = [(500, 375), (193, 130), (375, 500), (2592, 1944), (768, 512), (300, 225)]
    for split, count in (("train", 6), ("val", 3)):
        for label in ("ants", "bees"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i, size in enumerate(sizes[:count]):
                noise(*size, seed=i).save(folder / f"{i}_{label}.jpg")
    noise(120, 90, seed=8).convert("P").save(root / "train/ants/formica.gif")
    noise(640, 480, seed=9).save(root / "train/bees/1092977343_cb42b38d62 (1).jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    noise(640, 480, seed=10).save(root / "val/bees/phone.jpg", exif=turned)
    (root / "train/bees/Thumbs.db").write_text("")
    return root


def test_ants_and_bees(insects: Path, tmp_path: Path) -> None:
    done = command(
        *("data=folder", f"data.root={insects}", "model=resnet18", "debug=smoke"),
        *("data.image_size=64", "trainer.workers=2", f"hydra.run.dir={tmp_path}/run"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "2 classes, 14 train, 7 val images" in done.stderr
    assert "ignored what is no image: 1 .db" in done.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert np.isfinite(summary["val/loss"])


def test_what_the_network_sees(insects: Path) -> None:
    """Evaluation: the middle of the upright photograph, as torchvision cuts it out."""
    source = ImageFolder(root=str(insects), **GIVEN)
    assert source.info.classes == ("ants", "bees")
    split = source.val(64)
    resize = v2.Compose([v2.PILToTensor(), v2.Resize(73, antialias=True), v2.CenterCrop(64)])
    for i in range(len(split)):
        pixels, label, index = split[i]
        name = source.name_of(i, "val")
        assert (index, source.info.classes[label]) == (i, Path(name).parent.name)
        with Image.open(name) as image:
            wanted = resize(ImageOps.exif_transpose(image)).permute(1, 2, 0)
        assert pixels.shape == (64, 64, 3)
        assert (pixels.float() - wanted.float()).abs().mean() < 8  # the wrong part: 40 and more


def test_a_batch(insects: Path) -> None:
    split = ImageFolder(root=str(insects), **GIVEN).val(32)
    batch = split.collate([split[i] for i in (2, 0, 5)])
    assert batch.images.shape == (3, 3, 32, 32)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.ids.tolist() == [2, 0, 5]
    assert torch.equal(batch.images[1], split[0][0].permute(2, 0, 1))


def test_image_of_and_name_of(insects: Path) -> None:
    """To look at: the picture of the name, of any split, not augmented."""
    source = ImageFolder(root=str(insects), **GIVEN)
    names = [source.name_of(i) for i in range(14)]
    assert names[6] == f"{insects}/train/ants/formica.gif"
    assert names[-1].endswith("/5_bees.jpg")
    assert any(name.endswith("train/bees/1092977343_cb42b38d62 (1).jpg") for name in names)
    image = source.image_of(0, "train")
    assert image.shape == (3, 160, 160)
    assert torch.equal(image, source.image_of(0, "train"))
    assert not torch.equal(image, source.image_of(1, "train"))


# One folder


def write(root: Path, counts: dict[str, int], *, order: int = 0) -> Path:
    files = [root / label / f"{i:03}.png" for label, count in counts.items() for i in range(count)]
    random.Random(order).shuffle(files)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), int(file.stem)).save(file)
    return root


def members(root: Path, **options: Any) -> dict[str, set[str]]:
    """The files of each split, by their place below the root."""
    source = ImageFolder(root=str(root), **GIVEN, **options)
    return {
        split: {str(file.relative_to(root)) for file in found.files}
        for split, found in source._splits.items()
    }


COUNTS = {"a": 80, "b": 40, "c": 7, "d": 3}


def test_split(tmp_path: Path) -> None:
    """Every image once, and of each class its share, to the nearest image."""
    parts = members(write(tmp_path, COUNTS))
    assert list(parts) == ["train", "val", "test"]
    assert sum(map(len, parts.values())) == sum(COUNTS.values())
    assert set.union(*parts.values()) == {
        str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.png")
    }
    for (split, files), share in zip(parts.items(), SHARES, strict=True):
        count = Counter(name[0] for name in files)
        for label, total in COUNTS.items():
            assert abs(count[label] - share * total) <= 1, (split, label)
    assert [len([n for n in files if n[0] == "a"]) for files in parts.values()] == [60, 12, 8]
    assert parts["train"] != {f"a/{i:03}.png" for i in range(60)}  # drawn, not the first


def test_split_is_a_function_of_names_and_seed(tmp_path: Path) -> None:
    first = members(write(tmp_path / "first", COUNTS))
    assert members(write(tmp_path / "second", COUNTS, order=1)) == first
    assert members(tmp_path / "second", split=SHARES, split_seed=0) == first
    other = members(tmp_path / "second", split_seed=1)
    assert other != first
    assert {split: len(files) for split, files in other.items()} == {
        split: len(files) for split, files in first.items()
    }


def test_another_class_leaves_the_split_of_the_others(tmp_path: Path) -> None:
    before = members(write(tmp_path, COUNTS))
    after = members(write(tmp_path, {"aa": 10, "e": 12}))
    for split, files in after.items():
        assert {name for name in files if name[:2] not in ("aa", "e/")} == before[split]


def test_split_in_two(tmp_path: Path) -> None:
    parts = members(write(tmp_path, COUNTS), split=[0.9, 0.1])
    assert {split: len(files) for split, files in parts.items()} == {"train": 117, "val": 13}


@pytest.mark.parametrize(
    "split", [[0.5, 0.6], [1.0], [0.7, 0.3, 0.0], [1.2, -0.2], [0.25] * 4, [float("nan"), 0.5]]
)
def test_no_shares(tmp_path: Path, split: list[float]) -> None:
    write(tmp_path, {"a": 4, "b": 4})
    with pytest.raises(ConfigError, match=r"data\.split"):
        ImageFolder(root=str(tmp_path), split=split, **GIVEN)


def test_shares_of_what_is_split_already(insects: Path) -> None:
    with pytest.raises(ConfigError, match=r"has train/ or val/; type data\.split=null"):
        ImageFolder(root=str(insects), split=SHARES, **GIVEN)


def test_on_bad_is_a_choice(tmp_path: Path) -> None:
    write(tmp_path, {"a": 4, "b": 4})
    with pytest.raises(ConfigError, match=r"data\.on_bad=ignore; type data\.on_bad=error or =skip"):
        ImageFolder(root=str(tmp_path), on_bad="ignore", **GIVEN)


def test_fingerprint_of_the_training_split(tmp_path: Path) -> None:
    """That of the whole split: a run is not resumed on other data."""

    def fingerprint(**options: Any) -> str:
        return ImageFolder(root=str(tmp_path), **GIVEN, **options).info.fingerprint

    write(tmp_path, COUNTS)
    seen = [fingerprint(), fingerprint(split_seed=1), fingerprint(split=[0.8, 0.2])]
    write(tmp_path, {"e": 20})
    seen.append(fingerprint())
    (tmp_path / "e").rename(tmp_path / "f")
    seen.append(fingerprint())
    assert len(set(seen)) == len(seen)
    shutil.rmtree(tmp_path / "f")
    assert fingerprint() == seen[0]


def test_left_out_files_are_named(tmp_path: Path) -> None:
    write(tmp_path, COUNTS)
    bad = tmp_path / "b/017.png"
    bad.write_bytes(b"")
    source = ImageFolder(root=str(tmp_path), on_bad="skip", **GIVEN)
    assert source.bad == (f"{bad}\tis empty, 0 bytes",)
    parts = members(tmp_path, on_bad="skip")
    assert sum(map(len, parts.values())) == sum(COUNTS.values()) - 1


# ImageNet


WNIDS = [f"n{i:08}" for i in range(1, 1001)]


@pytest.fixture(scope="module")
def wnids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree like ImageNet's, of 1,000 classes with an image each."""
    root = tmp_path_factory.mktemp("imagenet")
    image = root / "image"
    noise(40, 36, seed=0).save(image, "JPEG")
    for i, wnid in enumerate(WNIDS):
        for split, name in (("train", f"{wnid}_{i}"), ("val", f"ILSVRC2012_val_{i:08}")):
            (root / split / wnid).mkdir(parents=True)
            (root / split / wnid / f"{name}.JPEG").hardlink_to(image)
    image.unlink()
    lines = [f"{wnid} thing {i}, another name" for i, wnid in enumerate(WNIDS[:990])]
    (root / "LOC_synset_mapping.txt").write_text("\n".join(lines) + "\n")
    return root


def test_imagenet_through_the_command(wnids: Path, tmp_path: Path) -> None:
    done = command(
        *("model=cnn", "data=imagenet", f"data.root={wnids}", "data.image_size=32", "debug=smoke"),
        f"hydra.run.dir={tmp_path}/run",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "1000 classes, 1000 train, 1000 val images" in done.stderr
    assert "input 3x32x32, 1000 classes" in done.stderr


def test_names_of_a_mapping(wnids: Path) -> None:
    """Shown beside the wnids, which stay what is stored."""
    info = ImageNet(root=str(wnids), **GIVEN).info
    assert info.classes == tuple(WNIDS)
    assert info.shown[:2] == ("thing 0 (n00000001)", "thing 1 (n00000002)")
    assert info.shown[990:] == tuple(WNIDS[990:])


def test_names_of_the_thousand(wnids: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the hash of the wnids; the names are torchvision's, whatever a mapping says."""
    known = hashlib.sha256("\n".join(WNIDS).encode()).hexdigest()
    monkeypatch.setattr(imagenet, "WNIDS_SHA256", known)
    shown = ImageNet(root=str(wnids), **GIVEN).info.shown
    assert shown[0] == "tench (n00000001)"
    assert shown[999] == "toilet tissue (n00001000)"
    assert len(set(shown)) == 1000


def test_a_part_of_imagenet(tmp_path: Path) -> None:
    """Without a mapping it is called by its wnids."""
    for split in ("train", "val"):
        write(tmp_path / split, {"n01440764": 2, "n01443537": 2})
    assert ImageNet(root=str(tmp_path), **GIVEN).info.shown == ("n01440764", "n01443537")


def test_no_augmentation_is_the_crop_of_evaluation(insects: Path) -> None:
    source = ImageFolder(root=str(insects), **GIVEN)
    assert source.train(32, Augmentations()).crop is source.eval_crop


def test_a_balanced_sampler_draws_classes_alike(tmp_path: Path) -> None:
    """Thirty ants and three bees; evaluation stays as it is."""
    write_images(tmp_path, count=30)
    for number in range(3, 30):
        (tmp_path / "train/bees" / f"{number}.jpg").unlink()
    typed = ["data=folder", f"data.root={tmp_path}", "data.batch_size=11", "data.image_size=16"]
    config = compose_config([*typed, "data.sampler=balanced", "model=cnn"]).config
    parts = build_parts(config, device=torch.device("cpu"), ranks=Ranks())
    assert parts.source.info.counts == (30, 3)
    labels = [
        int(label)
        for epoch in range(10)
        for (batch,) in parts.train.epoch(epoch)
        for label in batch.labels
    ]
    assert len(labels) == 330
    assert 130 < sum(labels) < 200  # 165 +- 4 standard deviations; 30 without
    assert sum(len(batch.ids) for (batch,) in parts.val.epoch(0)) == 60
