"""Array augmentation against naive loops over single images and torchvision's own functions."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

from cvtrain.data.arrays import Arrays
from cvtrain.data.augment import (
    MIXES,
    STILL,
    Affine,
    Augment,
    BatchTransform,
    HorizontalFlip,
    Lighting,
    OneByOne,
    PadCrop,
    check_boxes,
)
from cvtrain.data.batch import BoxBatch
from cvtrain.errors import ConfigError

TRANSFORMS = [PadCrop(padding=3), HorizontalFlip(), Affine(degrees=9, shift=2, scale=0.2, shear=7)]


def images(count: int = 6, channels: int = 3, size: int = 11) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, size, size + 2)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def uniforms(count: int, draws: int, seed: int = 1) -> Tensor:
    return torch.rand(count, draws, generator=torch.Generator().manual_seed(seed))


def within(drawn: dict[int, float]) -> Tensor:
    """Six uniforms for `Affine`, the middle (no change) but for those given."""
    row = torch.full((1, 6), 0.5)
    for column, value in drawn.items():
        row[0, column] = value
    return row


def test_padcrop_against_a_loop() -> None:
    x, padding = images(40), 4
    u = uniforms(40, 2)
    u[0], u[1] = 0.0, 1 - 2**-24  # the ends of [0, 1)
    out = PadCrop(padding=padding)(x, u)
    assert out.dtype == torch.uint8
    seen = set()
    for image, (first, second), got in zip(x, u.tolist(), out, strict=True):
        top, left = int(first * 9), int(second * 9)
        seen.add((top, left))
        padded = np.pad(image.numpy(), ((0, 0), (4, 4), (4, 4)))
        expected = padded[:, top : top + 11, left : left + 13]
        assert np.array_equal(got.numpy(), expected)
    assert {(0, 0), (8, 8)} <= seen


def test_padcrop_reaches_every_offset_equally() -> None:
    # A single bright pixel shows where the window lay.
    x = torch.zeros(8100, 1, 9, 9, dtype=torch.uint8)
    x[:, :, 4, 4] = 255
    out = PadCrop(padding=4)(x, uniforms(8100, 2))
    rows = out.amax((1, 3)).argmax(1)
    counts = torch.bincount(rows, minlength=9)
    assert (out.amax((1, 2, 3)) == 255).all()
    assert counts.min() > 900 - 5 * 30  # 5 standard deviations of a fair draw
    assert counts.max() < 900 + 5 * 30


def test_flip() -> None:
    x, u = images(50), uniforms(50, 1)
    out = HorizontalFlip(p=0.3)(x, u)
    for image, (drawn,), got in zip(x, u.tolist(), out, strict=True):
        assert np.array_equal(
            got.numpy(), image.numpy()[..., ::-1] if drawn < 0.3 else image.numpy()
        )
    assert torch.equal(HorizontalFlip(p=0.0)(x, torch.zeros(50, 1)), x)
    assert torch.equal(HorizontalFlip(p=1.0)(x, u), x.flip(-1))


def test_affine_without_reach_is_the_identity() -> None:
    x = images()
    assert torch.equal(Affine()(x, uniforms(6, 6)), x)
    # And with reach, where the middle was drawn.
    assert torch.equal(Affine(degrees=30, shift=5, scale=0.5, shear=20)(x[:1], within({})), x[:1])


@pytest.mark.parametrize(("column", "name"), [(1, "x"), (2, "y")])
@pytest.mark.parametrize("pixels", [-3, -1, 2, 3])
def test_affine_shifts_by_whole_pixels(pixels: int, column: int, name: str) -> None:
    x = images(1)
    drawn = within({column: (pixels / 3 + 1) / 2})
    out = Affine(shift=3)(x, drawn)
    axis = -1 if name == "x" else -2
    rolled = torch.roll(x, -pixels, axis)  # the window moves by `pixels` over the image
    edge = rolled.narrow(axis, x.shape[axis] - pixels if pixels > 0 else 0, abs(pixels))
    edge.zero_()
    assert torch.equal(out, rolled)


@pytest.mark.parametrize("degrees", [-37.0, 12.0, 45.0])
@pytest.mark.parametrize("shape", ["square", "oblong"])
def test_affine_rotation_is_torchvisions(shape: str, degrees: float) -> None:
    x = images(1, size=15)[..., :15] if shape == "square" else images(1, size=15)
    out = Affine(degrees=50)(x, within({0: (degrees / 50 + 1) / 2}))

    def turned(angle: float) -> Tensor:
        no_shear = {"scale": 1.0, "shear": [0.0, 0.0], "translate": [0, 0]}
        bilinear = InterpolationMode.BILINEAR
        return TF.affine(x.float(), angle=angle, interpolation=bilinear, **no_shear)

    # The one way or the other: both are drawn equally often.
    nearest = min((out.float() - turned(a)).abs().max().item() for a in (degrees, -degrees))
    assert nearest <= 0.51  # rounding to whole grey levels


def test_affine_scales_the_two_sides_on_their_own() -> None:
    x = images(1, size=15)
    for factor in (0.8, 1.25):
        drawn = ((factor - 1) / 0.3 + 1) / 2
        both = Affine(scale=0.3)(x, within({3: drawn, 4: drawn}))
        expected = TF.affine(
            x.float(),
            angle=0.0,
            translate=[0, 0],
            scale=factor,
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        assert (both.float() - expected).abs().max() <= 0.51
        # One alone squeezes: a column of one value keeps its values, moved sideways.
        rows = torch.arange(15, dtype=torch.uint8)[:, None].expand(1, 1, 15, 15).contiguous() * 10
        squeezed = Affine(scale=0.3)(rows, within({3: drawn}))
        inside = slice(2, -2)
        assert torch.equal(squeezed[..., inside], rows[..., inside])


def test_affine_shear_leans_the_upright() -> None:
    x = torch.zeros(1, 1, 21, 21, dtype=torch.uint8)
    x[..., 10] = 200  # an upright line through the middle
    out = Affine(shear=45)(x, within({5: 1 - 2**-24}))  # 45 degrees: one column a row
    columns = out[0, 0].float().argmax(1)
    steps = columns.diff()
    assert columns[10] == 10
    assert steps.unique().tolist() in ([1], [-1])
    # The level stays level.
    flat = x.transpose(2, 3).contiguous()
    leant = Affine(shear=45)(flat, within({5: 1 - 2**-24}))
    assert leant[0, 0].amax(1).nonzero().flatten().tolist() == [10]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_pure_in_image_and_uniforms(transform: BatchTransform) -> None:
    """Neither the batch a sample is in nor the global generator has a say."""
    x, u = images(), uniforms(6, transform.draws)
    before = x.clone()
    together = transform(x, u)
    torch.manual_seed(123)
    torch.rand(7)
    assert torch.equal(together, transform(x, u))
    one_by_one = torch.cat([transform(x[i : i + 1], u[i : i + 1]) for i in range(6)])
    assert torch.equal(together, one_by_one)
    assert torch.equal(x, before)
    assert not torch.equal(together, transform(x, uniforms(6, transform.draws, seed=2)))
    assert together.shape == x.shape


def test_transforms_share_the_columns_of_the_table() -> None:
    x, labels = images(8), torch.arange(8)
    augment = Augment(TRANSFORMS)
    assert augment.draws == 2 + 1 + 6
    table, index = uniforms(8, 9), torch.tensor([5, 2, 7])
    batch = augment(Arrays(x, labels).batch(index), table[index])
    expected = x[index]
    for transform, columns in zip(TRANSFORMS, ([0, 1], [2], [3, 4, 5, 6, 7, 8]), strict=True):
        expected = transform(expected, table[index][:, columns])
    assert torch.equal(batch.images, expected)
    assert batch.labels.tolist() == batch.ids.tolist() == [5, 2, 7]


def test_torchvisions_transforms_take_their_draws_from_the_uniform() -> None:
    x, u = images(8), uniforms(8, 1)
    jitter = v2.ColorJitter(0.5, 0.5, 0.5)
    together = OneByOne(jitter)(x, u)
    alone = torch.cat([OneByOne(jitter)(x[i : i + 1], u[i : i + 1]) for i in reversed(range(8))])
    assert torch.equal(together, alone.flip(0))
    assert not torch.equal(together, x)
    assert not torch.equal(together, OneByOne(jitter)(x, uniforms(8, 1, seed=2)))


def test_lighting_moves_along_the_components() -> None:
    """One component of deviation 0.1 * 0.2 of 255, along which red goes up as blue goes down."""
    lighting = Lighting(
        sigma=0.1, values=[0.2, 0.0, 0.0], vectors=[[1, 0, 0], [0, 1, 0], [-1, 0, 1]]
    )
    x = torch.full((4000, 3, 1, 1), 128, dtype=torch.uint8)
    shift = lighting(x, uniforms(4000, 3)).double()[:, :, 0, 0] - 128
    assert (shift[:, 0] == -shift[:, 2]).all()
    assert (shift[:, 1] == 0).all()
    assert shift[:, 0].mean().abs() < 0.4
    assert shift[:, 0].std().item() == pytest.approx(5.1, rel=0.05)
    grey = images(channels=1)
    assert torch.equal(lighting(grey, uniforms(6, 3)), grey)


@pytest.mark.parametrize("kind", [v2.MixUp, v2.CutMix])
def test_a_mix_blends_images_and_labels_alike(kind: type) -> None:
    """Only the image of class 2 is white: the share of white is the share of that label."""
    x = torch.zeros(4, 1, 16, 16, dtype=torch.uint8)
    x[2] = 255
    batch = Arrays(x, torch.arange(4)).batch(torch.arange(4))
    mixed = Augment([], [kind(alpha=1.0, num_classes=4)]).mix(batch, 5)
    white = mixed.images.mean((1, 2, 3)) / 255
    torch.testing.assert_close(white, mixed.labels[:, 2])
    torch.testing.assert_close(mixed.labels.sum(1), torch.ones(4))
    assert 0 < mixed.labels[2, 2] < 1
    assert mixed.labels[3, 2] == 1 - mixed.labels[2, 2]  # the partner is the sample before
    assert mixed.ids.tolist() == [0, 1, 2, 3]


def test_one_of_several_mixes_is_drawn_a_step() -> None:
    x = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    x[1] = 255
    augment = Augment([], [v2.MixUp(alpha=1.0, num_classes=2), v2.CutMix(alpha=1.0, num_classes=2)])
    batch = Arrays(x, torch.arange(2)).batch(torch.arange(2))
    pasted = [
        bool(((mixed := augment.mix(batch, seed).images) % 255 == 0).all()) for seed in range(40)
    ]
    assert 10 < sum(pasted) < 30
    assert torch.equal(augment.mix(batch, 3).images, augment.mix(batch, 3).images)
    assert mixed.dtype == torch.float32


# Boxes

LIGHTING = Lighting(sigma=0.1, values=[0.2, 0.1, 0.0], vectors=[[1, 0, 0], [0, 1, 0], [0, 0, 1]])


def boxed(count: int) -> BoxBatch:
    """Each image dark but for a bright rectangle, and the box around it."""
    x, boxes = torch.zeros(count, 3, 16, 20, dtype=torch.uint8), torch.zeros(count, 4)
    for number, image in enumerate(x):
        left, top = number % 11, number % 7
        image[:, top : top + 4, left : left + 6] = 255
        boxes[number] = torch.tensor([left / 20, top / 16, (left + 6) / 20, (top + 4) / 16])
    return BoxBatch(x, torch.arange(count), boxes, torch.arange(count))


def test_a_flip_takes_the_boxes_with_it() -> None:
    """The bright pixels say where; two flips and a change of light, as the table has them."""
    batch, steps = boxed(40), [HorizontalFlip(), LIGHTING, HorizontalFlip(p=0.3)]
    u = uniforms(40, 5)
    changed = Augment(steps)(batch, u)
    moved = 0
    for image, box, before, row in zip(
        changed.images, changed.boxes, batch.boxes, u.tolist(), strict=True
    ):
        bright = image.amax(0) > 127
        (rows,), (columns,) = (bright.any(axis).nonzero(as_tuple=True) for axis in (1, 0))
        seen = [columns[0] / 20, rows[0] / 16, (columns[-1] + 1) / 20, (rows[-1] + 1) / 16]
        torch.testing.assert_close(box, torch.stack(seen))
        if (row[0] < 0.5) == (row[4] < 0.3):  # there and back, or never
            torch.testing.assert_close(box, before)
        else:
            moved += 1
    assert 10 < moved < 30
    assert torch.equal(changed.labels, batch.labels)
    assert torch.equal(changed.ids, batch.ids)


def test_boxes_are_pure_in_boxes_and_uniforms() -> None:
    batch, u = boxed(12), uniforms(12, 4)
    before = batch.boxes.clone()
    augment = Augment([LIGHTING, HorizontalFlip()])
    together = augment(batch, u).boxes
    torch.manual_seed(5)
    parts = [augment(BoxBatch(*(f[i : i + 1] for f in batch)), u[i : i + 1]) for i in range(12)]
    assert torch.equal(together, torch.cat([part.boxes for part in parts]))
    assert torch.equal(batch.boxes, before)
    assert not torch.equal(together, before)


def test_what_boxes_may_meet() -> None:
    check_boxes([HorizontalFlip(), LIGHTING, v2.ColorJitter(0.1), v2.GaussianBlur(3)])
    moving = [
        *(PadCrop(), Affine(), OneByOne(v2.ColorJitter(0.1)), v2.RandomRotation(3)),
        *(v2.RandAugment(), v2.CutMix(num_classes=3), v2.RandomHorizontalFlip(), BatchTransform()),
    ]
    for transform in moving:
        with pytest.raises(ConfigError, match=type(transform).__name__) as caught:
            check_boxes([HorizontalFlip(), transform])
        assert "type augment=" in caught.value.line()


STILL_ONES = [
    *(v2.ColorJitter(0.5, 0.5, 0.5, 0.2), v2.Grayscale(3), v2.RandomGrayscale(1.0)),
    *(v2.RandomPhotometricDistort(), v2.RandomChannelPermutation(), v2.GaussianBlur(3)),
    *(v2.RandomAdjustSharpness(2, 1.0), v2.RandomAutocontrast(1.0), v2.RandomEqualize(1.0)),
    *(v2.RandomInvert(1.0), v2.RandomPosterize(3, 1.0), v2.RandomSolarize(100, 1.0)),
    *(v2.RandomErasing(1.0, scale=(0.01, 0.02)), v2.GaussianNoise()),
]


@pytest.mark.filterwarnings("ignore:RandomErasing")  # it says that boxes pass through it
@pytest.mark.parametrize("transform", STILL_ONES, ids=lambda t: type(t).__name__)
def test_what_leaves_objects_in_their_places(transform: Any) -> None:
    """Torchvision agrees: given boxes of its own, it returns them as they were."""
    assert isinstance(transform, STILL)
    assert not isinstance(transform, MIXES)
    boxes = tv_tensors.BoundingBoxes([[2, 3, 9, 8]], format="XYXY", canvas_size=(11, 13))
    image = images(1)[0]
    image = v2.functional.to_dtype(image, scale=True) if "Noise" in str(transform) else image
    _, after = transform(tv_tensors.Image(image), boxes)
    assert torch.equal(after, boxes)


def test_every_still_transform_is_looked_at() -> None:
    assert {type(transform) for transform in STILL_ONES} == set(STILL)
