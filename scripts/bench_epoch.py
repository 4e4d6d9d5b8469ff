"""Times one training epoch: cvtrain, a bare loop over tensors in memory, and torchvision's data set
with PIL transforms and a DataLoader; one process, the same network, batch, optimizer and threads.

    python scripts/bench_epoch.py lenet5 --data DIR        # MNIST below DIR, as torchvision has it
    python scripts/bench_epoch.py resnet18 --images 2560   # 32x32 images, random ones

Prints the median of each over the repeats, which take turns, and the ratios to the bare loop.
"""

import argparse
import atexit
import copy
import gzip
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import datasets
from torchvision import transforms as v1

from cvtrain.build import build_parts, build_plan
from cvtrain.compose import compose_config
from cvtrain.engine.checkpoint import Checkpoints
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.logs import Logs
from cvtrain.engine.machine import pick_precision
from cvtrain.engine.signals import StopFlag
from cvtrain.engine.trainer import Trainer

BATCH = 128
SETS = {"lenet5": "mnist", "resnet18": "cifar10"}


def write_images(root: Path, count: int) -> None:
    """CIFAR-10's binary layout with random images: the time does not depend on what they show."""
    rng = np.random.default_rng(0)
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, number in (
        *((f"data_batch_{i}", count // 5) for i in range(1, 6)),
        ("test_batch", 10),
    ):
        labels = rng.integers(0, 10, (number, 1), np.uint8)
        pixels = rng.integers(0, 256, (number, 3072), np.uint8)
        np.concatenate([labels, pixels], 1).tofile(folder / f"{name}.bin")


def our_trainer(model: str, root: Path, run: Path, device: torch.device) -> Trainer:
    typed = [f"data_dir={root}", *(["augment=[none]"] if model == "resnet18" else [])]
    return trainer_of(model, SETS[model], typed, run, device)


def trainer_of(model: str, data: str, typed: list[str], run: Path, device: torch.device) -> Trainer:
    """A trainer as `cvtrain model=... data=...` would have it, which saves nothing."""
    typed = [f"model={model}", f"data={data}", "recipe=none", *typed]
    typed += [f"data.batch_size={BATCH}", "optimizer.lr=0.01", "trainer.log_every=100st"]
    config = compose_config(typed).config
    config.trainer.precision = pick_precision(config.trainer.precision, device)
    parts = build_parts(config, device=device, ranks=Ranks())
    return Trainer(
        parts,
        build_plan(config, parts.train.steps),
        config=config.trainer,
        eval_config=config.eval,
        device=device,
        seed=0,
        run=None,
        logs=Logs(run),
        checkpoints=Checkpoints(run),
        stop=StopFlag(),
        ranks=Ranks(),
        about={},
    )


def our_epoch(trainer: Trainer) -> Callable[[], None]:
    """The loop of `Trainer.fit`, without the evaluation and the saving that end an epoch."""
    trainer.logs.open(step=0, evaluated_at=0, total=None)
    trainer.clock = trainer.window_clock = time.perf_counter()
    trainer.window_step = 0

    def epoch() -> None:
        for micro_batches in trainer.parts.train.epoch(0):
            trainer.train_step(micro_batches)
            if trainer.position.step % trainer.plan.log_every == 0:
                trainer.log()

    return epoch


def network(trainer: Trainer) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A twin of our network and optimizer, for the loops of others."""
    model = copy.deepcopy(trainer.parts.model)
    return model, torch.optim.SGD(model.parameters(), **trainer.parts.optimizer.defaults)


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    autocast: AbstractContextManager[None],
) -> None:
    with autocast:
        loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def bare_epoch(trainer: Trainer) -> Callable[[], None]:
    """uint8 tensors in memory, a permutation, (x/255 - mean)/std on the batch; nothing else."""
    model, optimizer = network(trainer)
    model.train()
    split = trainer.parts.train.split
    mean = torch.tensor(trainer.parts.source.mean).view(-1, 1, 1).to(trainer.device)
    std = torch.tensor(trainer.parts.source.std).view(-1, 1, 1).to(trainer.device)

    def epoch() -> None:
        order = torch.randperm(len(split), device=trainer.device)
        for start in range(0, len(split) - BATCH + 1, BATCH):
            index = order[start : start + BATCH]
            images = ((split.images[index].float() / 255) - mean) / std
            images = images.contiguous(memory_format=torch.channels_last)
            step(model, optimizer, images, split.labels[index], trainer.autocast)

    return epoch


def unpacked(root: Path) -> Path:
    """A temporary copy of the IDX files without their gzip, which torchvision wants."""
    copy_root = Path(tempfile.mkdtemp(dir=tempfile.gettempdir(), prefix="bench-"))
    atexit.register(shutil.rmtree, copy_root)
    raw = copy_root / "MNIST/raw"
    raw.mkdir(parents=True)
    for file in (root / "MNIST/raw").glob("*ubyte*"):
        data = file.read_bytes()
        (raw / file.stem if file.suffix == ".gz" else raw / file.name).write_bytes(
            gzip.decompress(data) if file.suffix == ".gz" else data
        )
    return copy_root


def torchvision_epoch(trainer: Trainer, root: Path, workers: int) -> Callable[[], None] | None:
    """MNIST through PIL and a DataLoader, as torchvision's own examples have it."""
    if trainer.parts.source.info.name != "MNIST":
        return None
    model, optimizer = network(trainer)
    model.train()
    steps = [
        v1.Pad(2),
        v1.ToTensor(),
        v1.Normalize(trainer.parts.source.mean, trainer.parts.source.std),
    ]
    data = datasets.MNIST(str(unpacked(root)), train=True, transform=v1.Compose(steps))
    loader = torch.utils.data.DataLoader(
        data,
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )

    def epoch() -> None:
        for images, labels in loader:
            batch = images.to(trainer.device), labels.to(trainer.device)
            step(model, optimizer, *batch, trainer.autocast)

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=SETS)
    parser.add_argument("--data", type=Path, help="folder that holds MNIST/raw (lenet5)")
    parser.add_argument("--images", type=int, default=2560, help="random images (resnet18)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0, help="of torchvision's DataLoader")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        root = options.data or Path(folder) / "data"
        if options.model == "resnet18":
            root = Path(folder) / "data"
            write_images(root, options.images)
        trainer = our_trainer(options.model, root, Path(folder), device)
        runs = {"bare loop": bare_epoch(trainer), "cvtrain": our_epoch(trainer)}
        if peer := torchvision_epoch(trainer, root, options.workers):
            runs[f"torchvision + PIL + DataLoader ({options.workers} workers)"] = peer
        times: dict[str, list[float]] = {name: [] for name in runs}
        for repeat in range(options.repeats + 1):  # the first one warms up
            for name, epoch in runs.items():
                start = time.perf_counter()
                epoch()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if repeat:
                    times[name].append(time.perf_counter() - start)
        trainer.logs.close()
    samples = trainer.parts.train.steps * BATCH
    print(f"{options.model}, {samples} images a pass, {torch.get_num_threads()} threads, {device}")
    ratios = [ours / bare for ours, bare in zip(times["cvtrain"], times["bare loop"], strict=True)]
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"  {name:<45} {middle:7.2f} s  {samples / middle:8.0f} images/s")
    print(f"  cvtrain / bare loop: {statistics.median(ratios):.3f} (median of {len(ratios)} pairs)")


if __name__ == "__main__":
    sys.exit(main())
