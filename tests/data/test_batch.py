"""The one transform from uint8 to the network's floats, against torchvision's v2 pipeline."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from cvtrain.data.arrays import Arrays
from cvtrain.data.batch import ClassificationBatch, Normalise, to_device

CPU = torch.device("cpu")


def batch_of(channels: int, size: int, count: int = 3) -> ClassificationBatch:
    generator = torch.Generator().manual_seed(size)
    shape = (count, channels, size, size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return ClassificationBatch(images, torch.arange(count), torch.arange(count) + 10)


@pytest.mark.parametrize("to", [16, 20, 32, 45])
@pytest.mark.parametrize("channels_last", [True, False])
def test_resize_and_normalise(to: int, channels_last: bool) -> None:
    mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
    batch = batch_of(3, 32)
    ours = Normalise(
        mean=mean, std=std, image_size=to, channels=3, device=CPU, channels_last=channels_last
    )(batch)
    theirs = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.Resize([to, to], antialias=True),
            v2.Normalize(mean, std),
        ]
    )(batch.images)
    torch.testing.assert_close(ours.images, theirs, atol=2e-5, rtol=0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert ours.images.is_contiguous(memory_format=layout)
    assert ours.labels is batch.labels
    assert ours.ids is batch.ids
    assert batch.images.dtype == torch.uint8


def test_shrinking_is_antialiased() -> None:
    # A fine grid becomes grey; without the filter it would become black or white.
    images = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    images[..., ::2, :] = 255
    batch = ClassificationBatch(images, torch.zeros(1), torch.zeros(1))
    small = Normalise(mean=[0.0], std=[1.0], image_size=8, channels=1, device=CPU)(batch)
    torch.testing.assert_close(small.images, torch.full((1, 1, 8, 8), 0.5), atol=0.07, rtol=0)


def test_grey_becomes_three_channels() -> None:
    batch = batch_of(1, 28)
    ours = Normalise(mean=[0.1307], std=[0.3081], image_size=28, channels=3, device=CPU)(batch)
    theirs = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.1307], [0.3081]),
            v2.Grayscale(num_output_channels=3),
        ]
    )(batch.images)
    assert ours.images.shape == (3, 3, 28, 28)
    torch.testing.assert_close(ours.images, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [28, 29, 31, 32, 35])
def test_digits_are_centred_in_a_frame(size: int) -> None:
    batch = batch_of(1, 28)
    framed = Arrays(batch.images, batch.labels).padded(size)
    small = (size - 28) // 2
    theirs = v2.Pad([small, small, size - 28 - small, size - 28 - small])(batch.images)
    assert torch.equal(framed.images, theirs)
    assert torch.equal(framed.labels, batch.labels)


def test_black_and_white_by_hand() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 1, 2, 2)
    batch = ClassificationBatch(images, torch.zeros(1), torch.zeros(1))
    out = Normalise(mean=[0.25], std=[0.5], image_size=2, channels=1, device=CPU)(batch).images
    torch.testing.assert_close(out, torch.tensor([[[[-0.5, 1.5], [-0.5, 1.5]]]]))


def test_to_device_reaches_every_tensor() -> None:
    class Inner(NamedTuple):
        boxes: Tensor
        name: str

    class Outer(NamedTuple):
        images: Tensor
        targets: list[Inner]
        extra: dict[str, Tensor]
        pair: tuple[Tensor, int]

    meta = torch.device("meta")
    box, image = torch.zeros(2, 4), torch.zeros(1, 3, 2, 2)
    moved = to_device(Outer(image, [Inner(box, "a")], {"x": box}, (box, 3)), meta)
    assert isinstance(moved, Outer)
    assert isinstance(moved.targets[0], Inner)
    tensors = [moved.images, moved.targets[0].boxes, moved.extra["x"], moved.pair[0]]
    assert all(tensor.device == meta for tensor in tensors)
    assert (moved.targets[0].name, moved.pair[1]) == ("a", 3)
