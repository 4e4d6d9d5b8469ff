"""Boxes follow their pixels: through resizing, flips, crops and jitter, in whatever process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tiny import write_data
from torch import Tensor
from torchvision import transforms as v1
from torchvision.ops import box_iou
from torchvision.transforms import v2

from cvtrain import build_loaders, targets
from cvtrain.compose import compose_config
from cvtrain.config import options
from cvtrain.data.augment import Affine, HorizontalFlip, Lighting, PadCrop
from cvtrain.data.batch import DetectionBatch, to_device
from cvtrain.data.box_transforms import LargeScaleJitter, of_samples
from cvtrain.data.crops import RandomResizedCrop
from cvtrain.data.detection import DetectionFiles, Fit, NormaliseEach
from cvtrain.data.loader import FileLoader, Order
from cvtrain.data.objects import Objects, Rows
from cvtrain.data.scan import Scan, look
from cvtrain.data.source import Augmentations, Source
from cvtrain.engine.distributed import Ranks
from cvtrain.errors import ConfigError, DataError

# Each label has a colour of its own, far from the others and from the ground.
COLOURS = {1: (255, 0, 0), 2: (0, 255, 0), 3: (0, 0, 255)}
GROUND = (40, 40, 40)
BOXES = [(20, 30, 70, 60), (110, 20, 190, 70), (30, 90, 120, 140)]  # of labels 1, 2, 3
WIDE, TALL = (200, 150), (150, 200)


def dataset(
    folder: Path,
    *,
    size: int = 150,
    sizes: tuple[tuple[int, int], ...] = (WIDE,),
    suffix: str = "png",
    empty: bool = False,
    **options: Any,
) -> DetectionFiles:
    """Images with three rectangles each, turned where an image is tall."""
    found, rows = Scan(folder, []), Rows()
    fit = Fit(size, options.pop("long_side", 1333), options.pop("square", None))
    transforms = of_samples(Augmentations.sort(options.pop("augment", [])))
    for number, (width, height) in enumerate(sizes):
        image = Image.new("RGB", (width, height), GROUND)
        pen = ImageDraw.Draw(image)
        for label, box in enumerate(BOXES, 1):
            scale = max(width, height) / 200
            box = tuple(round(scale * v) for v in (box if width > height else box[::-1]))
            left, right = sorted((box[0], box[2]))
            top, bottom = sorted((box[1], box[3]))
            if not empty:
                pen.rectangle((left, top, right - 1, bottom - 1), fill=COLOURS[label])
                rows.add(number, (left, top, right, bottom), label, difficult=label == 2)
        file = folder / f"{number}.{suffix}"
        image.save(file, **({"quality": 95} if suffix == "jpg" else {}))
        look(found, file, number, max_pixels=10**8)
    objects = rows.sort(len(sizes), learn_difficult=True)
    return DetectionFiles(found, objects, fit=fit, transforms=transforms, **options)


def seen(image: Tensor, label: int) -> list[float]:
    """The box of what has the colour of a label, to half of it."""
    colour = torch.tensor(COLOURS[label]).view(3, 1, 1) > 128
    near = ((image > 128) == colour).all(0)
    across, down = near.any(0).nonzero()[:, 0], near.any(1).nonzero()[:, 0]
    if not len(across):
        return [0.0] * 4
    edges = across[0], down[0], across[-1] + 1, down[-1] + 1
    return [float(edge) for edge in edges]


def agreement(image: Tensor, target: dict[str, Tensor]) -> list[float]:
    """Of each target the IoU of its box with the pixels of its label's colour."""
    boxes = torch.tensor([seen(image, label) for label in target["labels"].tolist()]).view(-1, 4)
    return box_iou(boxes, target["boxes"]).diagonal().tolist()


def drawn(files: DetectionFiles, seed: int, index: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(seed)
    image, target, _, _ = files[index]
    assert image.dtype == torch.uint8
    assert target["boxes"].dtype == torch.float32
    height, width = image.shape[1:]
    assert (target["boxes"] >= 0).all()
    assert (target["boxes"] <= torch.tensor([width, height] * 2)).all()
    return image, target


# Size


@pytest.mark.parametrize(
    ("size", "long_side", "square", "image", "expected"),
    [
        (800, 1333, None, (480, 640), (800, 1067)),
        (800, 1333, None, (640, 480), (1067, 800)),
        (800, 1333, None, (300, 1000), (400, 1333)),
        (800, None, None, (300, 1000), (800, 2667)),
        (600, 1000, None, (375, 500), (600, 800)),
        (160, None, None, (160, 160), (160, 160)),
        (64, 1333, None, (1, 5000), (1, 1333)),
        (800, 1333, 300, (480, 640), (300, 300)),
    ],
)
def test_sizes(
    size: int,
    long_side: int | None,
    square: int | None,
    image: tuple[int, int],
    expected: tuple[int, int],
) -> None:
    """As heights and widths."""
    assert Fit(size, long_side, square)(*image) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"size": 150}, [[20, 30, 70, 60], [110, 20, 190, 70], [30, 90, 120, 140]]),
        ({"size": 300}, [[40, 60, 140, 120], [220, 40, 380, 140], [60, 180, 240, 280]]),
        ({"size": 75}, [[10, 15, 35, 30], [55, 10, 95, 35], [15, 45, 60, 70]]),
        ({"size": 300, "long_side": 100}, [[10, 15, 35, 30], [55, 10, 95, 35], [15, 45, 60, 70]]),
        ({"square": 300}, [[30, 60, 105, 120], [165, 40, 285, 140], [45, 180, 180, 280]]),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_boxes_are_resized(
    tmp_path: Path, options: dict[str, Any], expected: list[list[int]], suffix: str
) -> None:
    image, target = drawn(dataset(tmp_path, suffix=suffix, **options), 0)
    assert torch.allclose(target["boxes"], torch.tensor(expected).float())
    assert target["labels"].tolist() == [1, 2, 3]
    # Edges are blurred over a pixel.
    assert min(agreement(image, target)) > (0.999 if suffix == "png" else 0.9)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_large_photograph_that_is_decoded_smaller(tmp_path: Path, suffix: str) -> None:
    files = dataset(tmp_path, size=150, sizes=((1603, 1201),), suffix=suffix)
    image, target = drawn(files, 0)
    assert image.shape == (3, 150, 200)
    assert min(agreement(image, target)) > 0.93
    assert files[0][2]["size"].tolist() == [1201, 1603]


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    files = dataset(tmp_path)
    (tmp_path / "0.png").unlink()
    with pytest.raises(DataError, match=r"cannot be read: .*0\.png") as caught:
        files[0]
    assert caught.value.name == "BAD-IMAGE"


def test_min_box(tmp_path: Path) -> None:
    """Of 30, 50 and 50 pixels at 150; the least side counts, as the network sees it."""
    lengths = {28: 3, 31: 2, 49: 2, 51: 0}
    for least, count in lengths.items():
        assert len(dataset(tmp_path, min_box=least)[0][1]["boxes"]) == count
    assert len(dataset(tmp_path, size=75, min_box=28)[0][1]["boxes"]) == 0
    augment = [v2.RandomZoomOut(side_range=(2, 2), p=1)]
    assert len(dataset(tmp_path, min_box=28, augment=augment)[0][1]["boxes"]) == 0


# Augmentation


def test_a_flip_is_exact(tmp_path: Path) -> None:
    plain, _ = drawn(dataset(tmp_path), 0)
    image, target = drawn(dataset(tmp_path, augment=[HorizontalFlip(p=1.0)]), 0)
    assert torch.equal(image, plain.flip(2))
    assert target["boxes"].tolist() == [[130, 30, 180, 60], [10, 20, 90, 70], [80, 90, 170, 140]]
    files = dataset(tmp_path, augment=[HorizontalFlip(p=0.25)])
    flipped = sum(drawn(files, seed)[1]["boxes"][0, 0].item() == 130 for seed in range(200))
    assert 30 < flipped < 70


GEOMETRIC: dict[str, tuple[Any, float]] = {
    "flip": (HorizontalFlip(), 0.9),
    "scale_jitter": (v2.ScaleJitter((150, 200), (0.3, 2.0)), 0.85),
    "iou_crop": (v2.RandomIoUCrop(), 0.85),
    "zoom_out": (v2.RandomZoomOut(side_range=(1.0, 3.0), p=0.8), 0.85),
    "large_scale_jitter": (
        LargeScaleJitter(size=160, low=0.3, high=2.0, fill=[9, 9, 9]),
        0.85,
    ),
    "crop": (v2.RandomCrop(120), 0.9),
    "short_side": (v2.RandomShortestSize([100, 200]), 0.9),
}


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("square", [None, 130])
def test_boxes_are_where_their_colours_are(tmp_path: Path, name: str, square: int | None) -> None:
    """Those cut by a crop end where the image does; those outside are gone."""
    augment, least = GEOMETRIC[name]
    files = dataset(tmp_path, augment=[augment], square=square)
    shapes, counts = set(), set()
    for seed in range(25):
        image, target = drawn(files, seed)
        labels = target["labels"].tolist()
        # Thin slices blur into what is beside them.
        sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
        whole = [
            a for a, side in zip(agreement(image, target), sides, strict=True) if min(side) > 12
        ]
        assert all(a > least for a in whole), (seed, target, whole)
        if name != "iou_crop":  # which leaves out those whose middle is outside
            visible = {label for label in COLOURS if _extent(image, label) > 5}
            assert visible <= set(labels)
        assert labels == sorted(set(labels))
        shapes.add(tuple(image.shape[1:]))
        counts.add(len(labels))
    if square:
        assert shapes == {(130, 130)}
    elif name in ("scale_jitter", "iou_crop", "zoom_out", "short_side"):
        assert len(shapes) > 1
    elif name == "large_scale_jitter":
        assert shapes == {(160, 160)}
    if name in ("iou_crop", "large_scale_jitter", "crop"):
        assert len(counts) > 1


def _extent(image: Tensor, label: int) -> float:
    left, top, right, bottom = seen(image, label)
    return min(right - left, bottom - top)


def test_who_decides_on_the_size(tmp_path: Path) -> None:
    """A crop is resized to the short side; a jitter's size stays; a square is always one."""
    crop = dataset(tmp_path, size=90, augment=[v2.RandomCrop(120)])
    assert drawn(crop, 0)[0].shape == (3, 90, 90)
    sized = dataset(tmp_path, size=90, augment=[v2.Resize((77, 88)), HorizontalFlip()])
    assert drawn(sized, 0)[0].shape == (3, 77, 88)
    assert not sized.fit_first
    squared = dataset(tmp_path, square=64, augment=[v2.Resize((77, 88))])
    assert drawn(squared, 0)[0].shape == (3, 64, 64)
    plain = dataset(tmp_path, augment=[HorizontalFlip(), v2.RandomPhotometricDistort()])
    assert plain.fit_first


def test_colours_leave_boxes_alone(tmp_path: Path) -> None:
    lighting = Lighting(sigma=2.0, values=[0.2, 0.1, 0.1], vectors=torch.eye(3).tolist())
    for augment in (v2.RandomPhotometricDistort(p=1.0), lighting, v2.ColorJitter(0.5)):
        plain, before = drawn(dataset(tmp_path), 1)
        image, target = drawn(dataset(tmp_path, augment=[augment]), 1)
        assert torch.equal(target["boxes"], before["boxes"])
        assert image.shape == plain.shape
        assert not torch.equal(image, plain)


@pytest.mark.parametrize(
    "augment",
    [
        HorizontalFlip(),
        *(pair[0] for pair in GEOMETRIC.values() if pair[0].__class__ is not v2.RandomCrop),
    ],
    ids=lambda t: type(t).__name__,
)
def test_an_image_without_objects(tmp_path: Path, augment: Any) -> None:
    files = dataset(tmp_path, augment=[augment], empty=True)
    for seed in range(10):
        _, target = drawn(files, seed)
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].shape == (0,)


class Mine(v2.Transform):
    """A user's own."""


@pytest.mark.parametrize(
    "augment",
    [
        PadCrop(padding=2),
        Affine(degrees=5),
        RandomResizedCrop(scale=[0.1, 1], ratio=[1, 1]),
        v2.MixUp(num_classes=3),
        v2.CutMix(num_classes=3),
        v2.RandAugment(),
        v2.FiveCrop(3),
        v1.ColorJitter(),
        torch.nn.Identity(),
    ],
    ids=lambda t: type(t).__name__,
)
def test_what_moves_pixels_and_no_boxes_is_refused(tmp_path: Path, augment: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        dataset(tmp_path, augment=[HorizontalFlip(), augment])
    line = caught.value.line()
    assert type(augment).__name__ in line
    assert "boxes" in line
    assert "data.augment" in line
    dataset(tmp_path, augment=[Mine()])


BOXED_DATA = ("data=shapes_boxes", "model=torchvision_detector")
BOXED = [name for name in options("augment") if name not in ("none", "flip")]
FITTING = {"color_jitter", "lighting", "random_erasing", "photometric", "zoom_out", "iou_crop"}
FITTING |= {"scale_jitter_boxes", "large_scale_jitter"}


@pytest.mark.parametrize("name", BOXED)
def test_every_augmentation_fits_or_is_refused(tmp_path: Path, name: str) -> None:
    config = compose_config([f"augment=[{name}]", *BOXED_DATA]).config
    node = config.data.augment[name]
    made = targets.make(node, object, key=name, trust=[], num_classes=3)
    if name not in FITTING:
        with pytest.raises(ConfigError, match="boxes"):
            dataset(tmp_path, augment=[made])
        return
    files = dataset(tmp_path, augment=[made])
    images = [drawn(files, seed)[0] for seed in range(6)]
    assert len({image.float().mean().item() for image in images}) > 1


# Batches and loaders

MIXED = (WIDE, TALL, WIDE, WIDE, TALL, WIDE, TALL, WIDE, WIDE)
RANDOM = [v2.RandomPhotometricDistort(), v2.RandomZoomOut(), v2.RandomIoUCrop(), HorizontalFlip()]


def loader(folder: Path, workers: int = 0, **changes: Any) -> FileLoader:
    files = dataset(folder, size=60, sizes=MIXED, augment=RANDOM)
    given = {"samples": len(MIXED), "batch_size": 2, "train": True, "groups": files.groups}
    return FileLoader(files, Order(**{**given, **changes}), workers=workers)


def batches(loader: FileLoader, epoch: int = 0, start: int = 0) -> list[DetectionBatch]:
    return [batch for parts in loader.epoch(epoch, start) for batch in parts]


def same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return one is two


def test_a_resumed_epoch_has_the_same_bits(tmp_path: Path) -> None:
    whole = batches(loader(tmp_path), 1)
    torch.manual_seed(5)
    assert same(batches(loader(tmp_path, workers=2), 1, start=2), whole[2:])
    assert same(batches(loader(tmp_path), 1), whole)
    assert not same(batches(loader(tmp_path), 2), whole)
    assert all(type(batch) is DetectionBatch for batch in whole)
    for batch in whole:
        assert len(batch.images) == len(batch.targets) == len(batch.truths) == len(batch.ids) == 2


def test_groups(tmp_path: Path) -> None:
    files = dataset(tmp_path, sizes=(*MIXED, (150, 150)))
    assert files.groups is not None
    assert files.groups.tolist() == [1, 0, 1, 1, 0, 1, 0, 1, 1, 1]
    assert dataset(tmp_path, sizes=MIXED, square=64).groups is None


def test_the_loaders_of_a_config_group_by_shape(tmp_path: Path) -> None:
    """Of twelve images four are tall: in training, steps of two hold one kind each."""
    typed = ["data=coco", "model=torchvision_detector", *write_data("coco", tmp_path)]
    config = compose_config(typed).config
    source: Source = targets.make(config.data.args, Source, key="data", trust=[])
    cpu = torch.device("cpu")
    train, val = build_loaders.build_loaders(config, source, 40, device=cpu, ranks=Ranks())
    for epoch in range(3):
        shapes = [{i.shape for i in batch.images} for batch in batches(train, epoch)]
        assert sorted(map(len, shapes)) == [1] * 6
        assert sum(shape == {(3, 53, 40)} for shape in shapes) == 2
        assert sum(shape == {(3, 40, 53)} for shape in shapes) == 4
    ids = [i for batch in batches(val) for i in batch.ids.tolist()]
    assert ids == list(range(12))
    counts = [len(target["boxes"]) for batch in batches(val) for target in batch.targets]
    assert counts == [2, 2, 2, 0] * 3


def test_a_batch_is_few_files_to_share(tmp_path: Path) -> None:
    """Of many tensors: a process may hold a thousand files open."""
    files = dataset(tmp_path, sizes=MIXED)
    batch = files.collate([files[i] for i in range(len(MIXED))])
    tensors = [*batch.images, batch.ids]
    tensors += [t for each in (*batch.targets, *batch.truths) for t in each.values()]
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    assert len(tensors) > 60
    assert len(storages) <= 11
    for number, (image, target, truth, index) in enumerate(files[i] for i in range(len(MIXED))):
        assert torch.equal(batch.images[number], image)
        drawn = batch.targets[number]["draw"]  # anew, each time that a sample is read
        assert same(batch.targets[number], {**target, "draw": drawn})
        assert same(batch.truths[number], truth)
        assert batch.ids[number] == index


def test_normalised_each_on_its_own(tmp_path: Path) -> None:
    files = dataset(tmp_path, sizes=(WIDE, TALL), suffix="jpg")
    batch = files.collate([files[0], files[1]])
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    normalise = NormaliseEach(mean=mean, std=std, device=torch.device("cpu"))
    done = normalise(to_device(batch, torch.device("cpu")))
    for image, raw in zip(done.images, batch.images, strict=True):
        expected = v2.functional.normalize(v2.functional.to_dtype(raw, scale=True), mean, std)
        assert image.dtype == torch.float32
        assert torch.allclose(image, expected, atol=1e-6)
    assert same(done.targets, batch.targets)
    assert same(done.truths, batch.truths)


# Arrays of objects


def test_rows_by_image() -> None:
    rows = Rows()
    rows.add(2, (0, 0, 2, 3), 1)
    rows.add(0, (1, 1, 2, 2), 3, area=0.5, crowd=True)
    rows.add(2, (4, 4, 6, 5), 2, difficult=True)
    rows.add(3, (5, 5, 6, 6), 1)
    objects = rows.sort(5)
    assert objects.offsets.tolist() == [0, 1, 1, 3, 4, 4]
    assert objects.labels[objects.rows(2)].tolist() == [1, 2]
    assert objects.area.tolist() == [0.5, 6, 2, 1]
    assert objects.learnt.tolist() == [False, True, False, True]
    assert rows.sort(5, learn_difficult=True).learnt.tolist() == [False, True, True, True]
    assert objects.counts(3) == (2, 0, 0)
    kept: Objects = objects.of_images([0, 2, 4])
    assert kept.offsets.tolist() == [0, 1, 3, 3]
    assert kept.labels.tolist() == [3, 1, 2]
    assert kept.boxes.tolist() == [[1, 1, 2, 2], [0, 0, 2, 3], [4, 4, 6, 5]]
    assert np.array_equal(kept.crowd, [True, False, False])
    nothing = Rows().sort(2)
    assert nothing.boxes.shape == (0, 4)
    assert nothing.offsets.tolist() == [0, 0, 0]
