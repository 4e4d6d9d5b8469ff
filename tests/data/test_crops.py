"""Crops as boxes, held against torchvision's own."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from cvtrain.data.crops import CenterCrop, Crop, RandomResizedCrop, ScaleJitter

DRAWS = 20_000
SCALE, RATIO = [0.08, 1.0], [3 / 4, 4 / 3]


def boxes(
    crop: Crop, width: int, height: int, *, count: int = DRAWS, size: int = 224
) -> np.ndarray:
    uniforms = np.random.default_rng(0).random((count, crop.draws))
    return np.array([crop.box(row, width, height) for row in uniforms.tolist()])


def torchvisions(
    width: int, height: int, *, count: int, scale: list[float] = SCALE, ratio: list[float] = RATIO
) -> np.ndarray:
    torch.manual_seed(0)
    transform = v2.RandomResizedCrop(1, scale=scale, ratio=ratio)
    image = torch.empty(3, height, width, dtype=torch.uint8)
    drawn = [transform.make_params([image]) for _ in range(count)]
    rows = [[d["left"], d["top"], d["left"] + d["width"], d["top"] + d["height"]] for d in drawn]
    return np.array(rows, float)


def figures(found: np.ndarray, width: int, height: int) -> dict[str, np.ndarray]:
    left, top, right, bottom = found.T
    return {
        "area": (right - left) * (bottom - top) / (width * height),
        "ratio": np.log((right - left) / (bottom - top)),
        "left": left / width,
        "top": top / height,
        "middle": (left + right) / width,
    }


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of the two cumulative distributions (Kolmogorov, Smirnov)."""
    where = np.concatenate([a, b])
    below = [np.searchsorted(np.sort(x), where, side="right") / len(x) for x in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


def apart(a: np.ndarray, b: np.ndarray, width: int, height: int) -> dict[str, float]:
    ours, theirs = figures(a, width, height), figures(b, width, height)
    return {name: distance(ours[name], theirs[name]) for name in ours}


# Two samples of 20,000 from one distribution are further apart than this once in 20,000 times.
SAME = 0.023


@pytest.mark.parametrize(("width", "height"), [(500, 375), (200, 300), (64, 20)])
def test_random_resized_crop_is_torchvisions(width: int, height: int) -> None:
    ours = boxes(RandomResizedCrop(scale=SCALE, ratio=RATIO), width, height)
    theirs = torchvisions(width, height, count=DRAWS)
    found = apart(ours, theirs, width, height)
    assert max(found.values()) < SAME, found


@pytest.mark.parametrize(
    ("scale", "ratio"),
    [
        ([0.1, 1.0], RATIO),  # another least area
        ([0.08, 0.85], RATIO),
        (SCALE, [0.72, 4 / 3]),
        (SCALE, [4 / 5, 5 / 4]),
    ],
)
def test_the_comparison_would_tell(scale: list[float], ratio: list[float]) -> None:
    ours = boxes(RandomResizedCrop(scale=scale, ratio=ratio), 500, 375)
    found = apart(ours, torchvisions(500, 375, count=DRAWS), 500, 375)
    assert max(found.values()) > SAME, found


@pytest.mark.parametrize(
    ("width", "height", "scale", "ratio"),
    [
        (300, 100, [1.0, 1.0], RATIO),  # too wide for the whole area at any ratio
        (100, 300, [1.0, 1.0], RATIO),
        (101, 300, [1.0, 1.0], RATIO),
        (333, 100, [0.99, 1.0], [1.0, 1.0]),
        (50, 50, [1.0, 1.0], [2.0, 3.0]),
        (50, 51, [1.0, 1.0], [0.3, 0.4]),
        (2000, 3, [1.0, 1.0], RATIO),
    ],
)
def test_nothing_fits(width: int, height: int, scale: list[float], ratio: list[float]) -> None:
    """The middle, as torchvision has it."""
    ours = boxes(RandomResizedCrop(scale=scale, ratio=ratio), width, height, count=20)
    theirs = torchvisions(width, height, count=1, scale=scale, ratio=ratio)
    assert (ours == theirs).all()


@pytest.mark.parametrize("crop", [RandomResizedCrop(scale=SCALE, ratio=RATIO), ScaleJitter()])
@pytest.mark.parametrize(
    ("width", "height"), [(500, 375), (1, 1), (2, 3), (1, 400), (32, 32), (4000, 10)]
)
def test_inside_the_image(crop: Crop, width: int, height: int) -> None:
    left, top, right, bottom = boxes(crop, width, height, count=5000).T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= width + 1e-9).all()
    assert (bottom <= height + 1e-9).all()
    assert (right > left).all()
    assert (bottom > top).all()


def test_extreme_uniforms() -> None:
    """Uniforms next to 0 and 1 reach the borders and not beyond."""
    crop = RandomResizedCrop(scale=[0.25, 0.25], ratio=[1.0, 1.0])
    uniforms = np.stack([np.zeros(crop.draws), np.full(crop.draws, np.nextafter(1, 0))])
    lowest, highest = (crop.box(row, 40, 40) for row in uniforms.tolist())
    assert (lowest, highest) == ((0, 0, 20, 20), (20, 20, 40, 40))
    jitter = ScaleJitter(low=2, high=2)
    uniforms = np.stack([np.zeros(3), np.full(3, np.nextafter(1, 0))])
    lowest, highest = (jitter.box(row, 40, 60) for row in uniforms.tolist())
    assert lowest == (0, 0, 20, 20)
    assert highest == pytest.approx((20, 40, 40, 60))


@pytest.mark.parametrize(("low", "high"), [(256 / 224, 480 / 224), (256 / 224, 512 / 224)])
def test_scale_jitter(low: float, high: float) -> None:
    """A square of 224 of an image whose short side is drawn evenly from 256 to 480 (or 512)."""
    left, top, right, bottom = boxes(ScaleJitter(low=low, high=high), 640, 480).T
    assert right - left == pytest.approx(bottom - top)
    short = 224 * 480 / (right - left)  # the short side when the square is 224
    assert short.min() >= 224 * low - 1e-6
    assert short.max() <= 224 * high + 1e-6
    even = np.linspace(224 * low, 224 * high, DRAWS)
    assert distance(short, even) < 0.02
    for place, room in ((left, 640 - (right - left)), (top, 480 - (bottom - top))):
        assert distance(place / room, np.linspace(0, 1, DRAWS)) < 0.02


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (256, 256), (341, 1024)])
def test_center_crop_is_resize_and_crop(width: int, height: int) -> None:
    """224 of a short side of 256: a ramp tells which source position each pixel shows."""
    x, y = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    ramp = torch.stack([x, y]).float()
    seen = F.center_crop(F.resize(ramp, [256], antialias=True), [224, 224])
    left, top, right, bottom = CenterCrop(fraction=0.875).box([], width, height)
    pixel = (right - left) / 224
    ours = torch.arange(224) * pixel + pixel / 2 - 0.5
    # Of the resized image's pixels: its sides, and where the crop begins, are whole numbers.
    assert seen[0, 100] == pytest.approx((left + ours).numpy(), abs=0.7 * pixel)
    assert seen[1, :, 100] == pytest.approx((top + ours).numpy(), abs=0.7 * pixel)
    assert bottom - top == right - left == 0.875 * min(width, height)


def test_center_crop_of_everything() -> None:
    assert CenterCrop(fraction=1).box([], 32, 32) == (0, 0, 32, 32)


# Array data: a batch on the device


def smooth(count: int, side: int) -> Tensor:
    """uint8 `[N, 3, side, side]`."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator) * 255
    return F.resize(coarse, [side, side], antialias=True).round().to(torch.uint8)


@pytest.mark.parametrize("crop", [RandomResizedCrop(scale=[0.2, 1.0], ratio=RATIO), ScaleJitter()])
def test_a_batch_of_arrays(crop: Crop) -> None:
    """torchvision's crop-and-resize; at its border ours also sees the pixels outside."""
    images = smooth(16, 32)
    uniforms = torch.rand(16, crop.draws, generator=torch.Generator().manual_seed(1))
    found = crop(images, uniforms)
    assert found.shape == images.shape
    assert found.dtype == torch.uint8
    places = [crop.box(row, 32, 32) for row in uniforms.tolist()]
    for image, seen, (left, top, right, bottom) in zip(images, found, places, strict=True):
        # Whole pixels for torchvision: an image enlarged tenfold has those of a tenth.
        large = F.resize(image.float(), [320, 320]) if isinstance(crop, ScaleJitter) else image
        by = large.shape[-1] // 32
        place = [round(by * side) for side in (top, left, bottom - top, right - left)]
        wanted = F.resized_crop(large.float(), *place, [32, 32], antialias=True)
        inner = (slice(None), slice(2, -2), slice(2, -2))
        assert (seen[inner].float() - wanted[inner]).abs().mean() < 1.5
        assert (seen.float() - wanted).abs().mean() < 2


def test_a_batch_of_whole_images_is_unchanged() -> None:
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    crop = RandomResizedCrop(scale=[1.0, 1.0], ratio=[1.0, 1.0])
    assert torch.equal(crop(images, torch.rand(4, crop.draws)), images)
    assert torch.equal(CenterCrop(fraction=1)(images, torch.rand(4, 0)), images)


def test_each_image_its_own_box() -> None:
    images = smooth(1, 32).expand(3, -1, -1, -1)
    crop = ScaleJitter(low=2, high=2)
    uniforms = torch.tensor([[0.5, 0.0, 0.0], [0.5, 0.999, 0.0], [0.5, 0.0, 0.999]])
    top_left, top_right, bottom_left = crop(images, uniforms).float()
    quarters = F.resize(images[0].float(), [64, 64])
    inner = (slice(None), slice(2, -2), slice(2, -2))
    for seen, rows, columns in ((top_left, 0, 0), (top_right, 0, 32), (bottom_left, 32, 0)):
        wanted = quarters[:, rows : rows + 32, columns : columns + 32]
        assert (seen[inner] - wanted[inner]).abs().mean() < 1


@pytest.mark.parametrize(
    ("crop", "arguments"),
    [
        (RandomResizedCrop, {"scale": [0.0, 1.0], "ratio": RATIO}),
        (RandomResizedCrop, {"scale": [0.5, 1.1], "ratio": RATIO}),
        (RandomResizedCrop, {"scale": [0.9, 0.5], "ratio": RATIO}),
        (RandomResizedCrop, {"scale": SCALE, "ratio": [2.0, 1.0]}),
        (RandomResizedCrop, {"scale": SCALE, "ratio": [-1.0, 1.0]}),
        (ScaleJitter, {"low": 0.9}),
        (ScaleJitter, {"low": 2.0, "high": 1.5}),
        (CenterCrop, {"fraction": 0.0}),
        (CenterCrop, {"fraction": 1.5}),
    ],
)
def test_impossible_arguments(crop: type[Crop], arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|is not in"):
        crop(**arguments)
