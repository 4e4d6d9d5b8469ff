"""Which samples make which step: once an epoch, the same whoever reads them and from wherever."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from cvtrain.data.arrays import Arrays
from cvtrain.data.augment import Augment, HorizontalFlip, PadCrop
from cvtrain.data.batch import ClassificationBatch
from cvtrain.data.crops import CenterCrop
from cvtrain.data.image_folder import ImageFiles
from cvtrain.data.loader import ArrayLoader, FileLoader, Order
from cvtrain.data.scan import scan
from cvtrain.errors import DataError, MachineError

SAMPLES = 50


def order(**changes: Any) -> Order:
    return Order(**{"samples": SAMPLES, "batch_size": 8, "train": True, "seed": 3, **changes})


def ids(order: Order, epoch: int = 0, start: int = 0) -> list[list[list[int]]]:
    """Steps of micro-batches of sample numbers."""
    return [[part.tolist() for part in parts] for parts in order.indices(epoch, start)]


def flat(steps: list[list[list[int]]]) -> list[int]:
    return [index for parts in steps for part in parts for index in part]


# The order


def test_each_sample_once_an_epoch() -> None:
    seen = flat(ids(order(batch_size=10)))
    assert sorted(seen) == list(range(SAMPLES))
    assert seen != sorted(seen)
    # 50 is not a multiple of 8: the last two are left to another epoch.
    cut = order()
    assert cut.steps == 6
    assert len(set(flat(ids(cut)))) == 48
    assert len({index for epoch in range(6) for index in flat(ids(cut, epoch))}) == SAMPLES


def test_epochs_and_seeds_differ_and_repeat() -> None:
    assert ids(order(), 0) == ids(order(), 0)
    assert ids(order(), 0) != ids(order(), 1)
    assert ids(order(), 0) != ids(order(seed=4), 0)
    # Neighbouring (seed, epoch) pairs must not share an order, as seed + epoch would.
    assert ids(order(seed=3), 1) != ids(order(seed=4), 0)


def test_the_global_generator_has_no_say() -> None:
    torch.manual_seed(1)
    first, state = ids(order()), torch.get_rng_state()
    torch.manual_seed(2)
    assert ids(order()) == first
    torch.manual_seed(1)
    ids(order())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("start", [1, 4, 6])
def test_a_start_skips(start: int) -> None:
    assert ids(order(), 2, start) == ids(order(), 2)[start:]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [12, 13, 17])
def test_shares_add_up_to_the_global_batch(
    batch_size: int, accumulate: int, world_size: int
) -> None:
    alone = [flat([step]) for step in ids(order(batch_size=batch_size))]
    shares = [
        ids(order(batch_size=batch_size, accumulate=accumulate, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert all(len(share) == len(alone) for share in shares)
    for step, expected in enumerate(alone):
        parts = [share[step] for share in shares]
        assert flat(parts) == expected  # none twice, none lost
        assert all(len(part) == accumulate for part in parts)
        sizes = [len(micro) for part in parts for micro in part]
        assert min(sizes) >= 1
        assert max(len(flat([part])) for part in parts) <= -(-batch_size // world_size)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [7, 8, 49, 50, 64])
def test_evaluation_is_whole_and_unpadded(batch_size: int, world_size: int) -> None:
    shares = [
        ids(order(batch_size=batch_size, train=False, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    together = [flat([step]) for steps in zip(*shares, strict=True) for step in steps]
    assert sorted(index for part in together for index in part) == list(range(SAMPLES))
    assert len({len(share) for share in shares}) == 1  # no rank waits for another


@pytest.mark.parametrize("world_size", [1, 3])
def test_weights_draw_with_replacement(world_size: int) -> None:
    """Of 50 samples the first five make half of every epoch, whoever shares it."""
    weights = torch.ones(SAMPLES).double()
    weights[:5] = 9
    shares = [
        ids(order(weights=weights, batch_size=10, rank=rank, world_size=world_size), 0)
        for rank in range(world_size)
    ]
    together = [flat(parts) for parts in zip(*shares, strict=True)]
    alone = [flat([parts]) for parts in ids(order(weights=weights, batch_size=10), 0)]
    assert together == alone
    drawn = [i for e in range(200) for i in flat(ids(order(weights=weights, batch_size=10), e))]
    assert sum(i < 5 for i in drawn) / len(drawn) == pytest.approx(0.5, abs=0.02)
    resumed = ids(order(weights=weights, batch_size=10), 3, 2)
    assert resumed == ids(order(weights=weights, batch_size=10), 3)[2:]
    assert ids(order(weights=weights), 1) != ids(order(weights=weights), 2)
    evaluated = flat(ids(order(weights=weights, train=False)))
    assert evaluated == list(range(SAMPLES))


GROUPS = torch.tensor([int(index % 10 < 3) for index in range(SAMPLES)])  # 15 of 50


def test_a_step_holds_samples_of_one_group() -> None:
    """Of 15 and 35 samples in steps of 4: three and eight whole ones, one of what is left."""
    seen = []
    for epoch in range(30):
        steps = [flat([step]) for step in ids(order(groups=GROUPS, batch_size=4), epoch)]
        assert len(steps) == order(batch_size=4).steps == 12
        held = [{int(GROUPS[index]) for index in step} for step in steps]
        assert sum(len(group) == 1 for group in held) >= 11
        assert sum(group == {1} for group in held) >= 3
        samples = [index for step in steps for index in step]
        assert len(set(samples)) == 48
        seen.append((samples, held))
    # Two of every epoch are left to another one, of either group.
    left = [SAMPLES - len({*samples}) for samples, _ in seen]
    assert left == [2] * 30
    missing = {i for samples, _ in seen for i in set(range(SAMPLES)) - set(samples)}
    assert {int(GROUPS[i]) for i in missing} == {0, 1}
    assert len(missing) > 20
    # The mixed step and those of a group are anywhere in an epoch.
    firsts = [held.index({1}) for _, held in seen]
    assert len(set(firsts)) > 3
    assert seen[0][0] != seen[1][0]


def test_groups_are_a_function_of_seed_and_epoch() -> None:
    def grouped(epoch: int, start: int = 0, **changes: Any) -> list[list[list[int]]]:
        return ids(order(groups=GROUPS, **changes), epoch, start)

    assert grouped(3, 4) == grouped(3)[4:]
    assert grouped(3) != grouped(4)
    assert grouped(3) != grouped(3, seed=4)
    assert order(groups=GROUPS).first(8).tolist() == flat(grouped(0)[:1])
    assert flat(grouped(0, train=False)) == list(range(SAMPLES))


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 3), (2, 2), (3, 1)])
def test_groups_of_shared_steps(world_size: int, accumulate: int) -> None:
    alone = [flat([step]) for step in ids(order(groups=GROUPS))]
    changes = {"groups": GROUPS, "world_size": world_size, "accumulate": accumulate}
    shares = [ids(order(rank=rank, **changes)) for rank in range(world_size)]
    assert [flat(list(parts)) for parts in zip(*shares, strict=True)] == alone


def test_groups_of_chosen_and_of_weighted_samples() -> None:
    chosen = torch.arange(0, SAMPLES, 2)  # ten of group 1 and fifteen of 0
    limited = ids(order(samples=25, chosen=chosen, groups=GROUPS, batch_size=5))
    assert sorted(flat(limited)) == chosen.tolist()
    assert all(len({int(GROUPS[i]) for i in flat([step])}) == 1 for step in limited)
    weights = torch.ones(SAMPLES).double()
    weights[GROUPS == 1] = 35 / 15  # now both groups are drawn alike
    steps = [
        {int(GROUPS[i]) for i in flat([step])}
        for epoch in range(50)
        for step in ids(order(weights=weights, groups=GROUPS, batch_size=5), epoch)
    ]
    alike = [steps.count({0}), steps.count({1})]
    assert sum(alike) >= 450
    assert abs(alike[0] - alike[1]) < 60


@pytest.mark.parametrize("count", [1, 3])
def test_groups_of_single_samples_make_the_same_number_of_steps(count: int) -> None:
    groups = torch.arange(SAMPLES) // count  # far fewer in each than a step holds
    steps = ids(order(groups=groups))
    assert len(steps) == order().steps
    assert len(set(flat(steps))) == 48


# Array data


def arrays(augment: bool = True, mixes: tuple[Any, ...] = ()) -> Arrays:
    images = torch.arange(SAMPLES * 48).view(SAMPLES, 3, 4, 4).remainder(251).to(torch.uint8)
    transforms = [PadCrop(padding=2), HorizontalFlip()] if augment else []
    return Arrays(images, torch.arange(SAMPLES) % 10, Augment(transforms, mixes))


def batches(loader: ArrayLoader | FileLoader, epoch: int = 0, start: int = 0) -> list[Any]:
    return [batch for parts in loader.epoch(epoch, start) for batch in parts]


def same(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b)
        for one, two in zip(left, right, strict=True)
        for a, b in zip(one, two, strict=True)
    )


def joined(batches: list[Any]) -> dict[int, Tensor]:
    return {int(i): x for b in batches for i, x in zip(b.ids, b.images, strict=True)}


def test_array_batches_hold_what_their_ids_say() -> None:
    split = arrays(augment=False)
    for batch in batches(ArrayLoader(split, order())):
        assert isinstance(batch, ClassificationBatch)
        assert torch.equal(batch.images, split.images[batch.ids])
        assert torch.equal(batch.labels, split.labels[batch.ids])


@pytest.mark.parametrize("start", [1, 5])
def test_array_data_from_the_middle_of_an_epoch(start: int) -> None:
    whole = batches(ArrayLoader(arrays(), order()), 3)
    torch.manual_seed(99)
    assert same(batches(ArrayLoader(arrays(), order()), 3, start), whole[start:])
    assert not same(batches(ArrayLoader(arrays(), order()), 4), whole)


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 3), (2, 1), (2, 2), (4, 1)])
def test_array_augmentation_is_the_samples_own(world_size: int, accumulate: int) -> None:
    alone = joined(batches(ArrayLoader(arrays(), order())))
    shared: dict[int, Tensor] = {}
    for rank in range(world_size):
        mine = order(rank=rank, world_size=world_size, accumulate=accumulate)
        shared |= joined(batches(ArrayLoader(arrays(), mine)))
    assert alone.keys() == shared.keys()
    assert all(torch.equal(alone[index], shared[index]) for index in alone)


def test_array_augmentation_differs_by_epoch_and_stays_out_of_evaluation() -> None:
    loader = ArrayLoader(arrays(), order(batch_size=10))
    first, second = joined(batches(loader, 0)), joined(batches(loader, 1))
    assert sum(torch.equal(first[i], second[i]) for i in range(SAMPLES)) < SAMPLES / 2
    plain = arrays(augment=False).images
    evaluated = joined(batches(ArrayLoader(arrays(), order(train=False))))
    assert all(torch.equal(evaluated[i], plain[i]) for i in range(SAMPLES))


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 3), (2, 1), (2, 2)])
def test_mixes_of_array_data_are_the_whole_steps(world_size: int, accumulate: int) -> None:
    """Partner, ratio and box do not depend on how many processes share the step."""
    mixes = (v2.MixUp(alpha=0.8, num_classes=10), v2.CutMix(alpha=0.8, num_classes=10))
    alone = batches(ArrayLoader(arrays(mixes=mixes), order()), 2)
    images = joined(alone)
    labels = {int(i): y for b in alone for i, y in zip(b.ids, b.labels, strict=True)}
    assert labels[int(alone[0].ids[0])].shape == (10,)
    for rank in range(world_size):
        mine = order(rank=rank, world_size=world_size, accumulate=accumulate)
        for batch in batches(ArrayLoader(arrays(mixes=mixes), mine), 2):
            for index, image, label in zip(batch.ids, batch.images, batch.labels, strict=True):
                assert torch.equal(image, images[int(index)])
                assert torch.equal(label, labels[int(index)])
    again = batches(ArrayLoader(arrays(mixes=mixes), order()), 2, start=3)
    assert same(again, alone[3:])


def test_a_limit_chooses_samples_and_keeps_their_numbers() -> None:
    chosen = torch.tensor([7, 3, 49, 20])
    limited = ArrayLoader(arrays(), order(samples=4, batch_size=2, chosen=chosen))
    whole = joined(batches(ArrayLoader(arrays(), order(batch_size=10))))
    seen = joined(batches(limited))
    assert sorted(seen) == [3, 7, 20, 49]
    assert all(torch.equal(seen[index], whole[index]) for index in seen)


@pytest.mark.parametrize("kind", ["arrays", "files"])
def test_a_peek_is_what_training_begins_with(folder: Path, kind: str) -> None:
    def loader() -> ArrayLoader | FileLoader:
        return ArrayLoader(arrays(), order()) if kind == "arrays" else files(folder)

    first = loader()
    peeked = first.peek(8)
    assert same([peeked], batches(loader())[:1])
    assert same(batches(first), batches(loader()))  # and changes nothing of it


# File data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(SAMPLES):
        place = root / f"class{number % 5}"
        place.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:03d}.png")
    return root


RANDOM = [
    v2.RandomHorizontalFlip(),
    v2.RandomResizedCrop(12, antialias=True),
    v2.ColorJitter(0.3, 0.3, 0.3),
]


def dataset(folder: Path, **given: Any) -> ImageFiles:
    classes = sorted(path.name for path in folder.iterdir())
    found = scan(folder, classes, max_pixels=1000, on_bad="error")
    return ImageFiles(found, size=12, crop=CenterCrop(fraction=1.0), **given)


def files(folder: Path, workers: int = 0, **changes: Any) -> FileLoader:
    given = {}
    if changes.get("train", True):
        given = {"images": RANDOM, "augment": Augment([PadCrop(padding=2)])}
    return FileLoader(dataset(folder, **given), order(**changes), workers=workers)


def test_workers_change_no_bit(folder: Path) -> None:
    """Also over two epochs of the same (persistent) workers, and one that is left halfway."""
    alone, helped = files(folder, 0, accumulate=2), files(folder, 2, accumulate=2)
    for epoch in (0, 1):
        assert same(batches(alone, epoch), batches(helped, epoch))
    halfway: Iterator[Any] = helped.epoch(2)
    next(halfway)
    halfway.close()
    assert same(batches(alone, 2, start=3), batches(helped, 2, start=3))


def test_file_data_from_the_middle_of_an_epoch(folder: Path) -> None:
    whole = batches(files(folder), 1)
    assert same(batches(files(folder), 1, start=4), whole[4:])
    assert not same(batches(files(folder), 2), whole)


def test_file_augmentation_differs_by_epoch(folder: Path) -> None:
    loader = files(folder, batch_size=10)
    first, second = joined(batches(loader, 0)), joined(batches(loader, 1))
    assert first.keys() == second.keys() == set(range(SAMPLES))
    assert not any(torch.equal(first[index], second[index]) for index in first)


def test_file_augmentation_is_the_samples_own(folder: Path) -> None:
    alone = joined(batches(files(folder)))
    shared = joined(batches(files(folder, rank=0, world_size=2)))
    shared |= joined(batches(files(folder, rank=1, world_size=2, accumulate=2)))
    assert alone.keys() == shared.keys()
    assert all(torch.equal(alone[index], shared[index]) for index in alone)


def test_file_data_hold_what_their_ids_say(folder: Path) -> None:
    found = dataset(folder).found
    seen = joined(batches(files(folder, train=False)))
    for index in range(SAMPLES):
        file, label = found.files[index], found.labels[index]
        assert file.parent.name == f"class{label}"
        pixels = np.asarray(Image.open(file)).transpose(2, 0, 1)
        assert np.array_equal(seen[index].numpy(), pixels)


def test_a_transform_may_draw_from_any_global_generator() -> None:
    """Of torch, of numpy, of Python: a sample's draws are its own."""

    class Drawing(Dataset):
        def __len__(self) -> int:
            return SAMPLES

        def __getitem__(self, index: int) -> tuple[float, float, float, int]:
            import random

            return torch.rand(()).item(), np.random.rand(), random.random(), index  # noqa: NPY002

    def draws(workers: int, start: int) -> dict[int, tuple[float, ...]]:
        loader = FileLoader(Drawing(), order(), workers=workers)
        return {
            int(index): values
            for parts in loader.epoch(0, start)
            for *columns, numbers in parts
            for *values, index in zip(*[c.tolist() for c in columns], numbers.tolist(), strict=True)
        }

    alone, helped = draws(0, 0), draws(2, 3)
    assert len(alone) == 48
    assert all(alone[index] == values for index, values in helped.items())
    assert len({value for values in alone.values() for value in values}) == 3 * 48


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["arrays", "files"])
def test_a_last_batch_smaller_than_the_number_of_ranks(
    folder: Path, kind: str, workers: int
) -> None:
    """50 samples in batches of 7: one is left, so one rank of two has nothing in that step."""
    seen = []
    for rank in range(2):
        mine = order(train=False, batch_size=7, rank=rank, world_size=2)
        if kind == "arrays":
            loader: ArrayLoader | FileLoader = ArrayLoader(arrays(), mine)
        else:
            loader = FileLoader(dataset(folder), mine, workers=workers)
        steps = list(loader.epoch(0))
        assert len(steps) == 8  # both take part in every step, as they count together
        seen += [int(i) for parts in steps for batch in parts for i in batch.ids]
    assert sorted(seen) == list(range(SAMPLES))


class Failing(Dataset):
    """The fifth sample's file is bad; the ninth ends the process that reads it."""

    def __init__(self, deadly: bool) -> None:
        self.deadly = deadly

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> int:
        if index == 5 and not self.deadly:
            raise DataError("cannot be read: cut off", "cats/5.jpg", "replace it", name="BAD-IMAGE")
        if index == 9 and self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_arrives_as_its_own_error(workers: int) -> None:
    loader = FileLoader(Failing(deadly=False), order(batch_size=10), workers=workers)
    with pytest.raises(DataError) as caught:
        list(loader.epoch(0))
    line = "cvtrain: error[BAD-IMAGE]: cannot be read: cut off; cats/5.jpg; replace it"
    assert (caught.value.line(), caught.value.code) == (line, 3)


def test_a_worker_that_dies_is_named() -> None:
    loader = FileLoader(Failing(deadly=True), order(batch_size=10), workers=2)
    with pytest.raises(MachineError) as caught:
        list(loader.epoch(0))
    loader.close()
    assert re.match(
        r"cvtrain: error\[WORKER-DIED\]: .* pid \d+, killed by SIGKILL; trainer.workers=2; ",
        caught.value.line(),
    )
