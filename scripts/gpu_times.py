"""How fast training is on a device, against a bare loop and timm: what gpu_check.py times."""

import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from bench_data import in_memory
from bench_epoch import bare_epoch, our_epoch, step, trainer_of, write_images
from PIL import Image

from cvtrain.engine.trainer import Trainer

Timing = Callable[[Path, torch.device, bool], str]  # in a folder, on a device, quickly


def timed(
    runs: dict[str, Callable[[], None]], samples: int, device: torch.device, quick: bool
) -> str:
    """Images per second of each, the best of the repeats, which take turns."""
    best: dict[str, float] = {}
    for repeat in range(2 if quick else 5):
        for name, epoch in runs.items():
            synchronise(device)
            start = time.perf_counter()
            epoch()
            synchronise(device)
            if repeat:  # the first one warms up
                best[name] = min(best.get(name, 1e9), time.perf_counter() - start)
    base = best["bare loop"]
    return ", ".join(f"{n} {samples / s:.0f} images/s ({base / s:.2f})" for n, s in best.items())


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def with_timm(
    trainer: Trainer, name: str, folder: Path, size: int
) -> dict[str, Callable[[], None]]:
    """timm's network behind timm's own loader, in the same loop; nothing where it is missing."""
    try:
        import timm
        from timm.data import create_dataset, create_loader
    except ImportError:
        return {}
    device = trainer.device
    classes = len(trainer.parts.source.info.classes)
    model = timm.create_model(name, num_classes=classes).to(device)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), **trainer.parts.optimizer.defaults)
    loader = create_loader(
        create_dataset("", root=str(folder / "train"), is_training=True),
        input_size=(3, size, size),
        batch_size=trainer.plan.batch_size,
        is_training=True,
        use_prefetcher=device.type == "cuda",
        num_workers=max(1, len(os.sched_getaffinity(0)) - 1),
        device=device,
        persistent_workers=True,
    )

    def epoch() -> None:
        for images, labels in loader:
            images = images.contiguous(memory_format=torch.channels_last)
            step(model, optimizer, images, labels, trainer.autocast)

    return {"timm": epoch}


def write_photographs(root: Path, count: int, size: int) -> None:
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("val", 16)):
        for index in range(number):
            folder = root / split / f"class{index % 8}"
            folder.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
            coarse.resize((size + 60, size)).save(folder / f"{index}.jpg", quality=90)


def time_arrays(model: str, data: str, count: int) -> Timing:
    def time_it(root: Path, device: torch.device, quick: bool) -> str:
        if data == "mnist":
            write_digits(root, count)
        else:
            write_images(root, count)
        typed = [f"data_dir={root}", "augment=[none]"]
        trainer = trainer_of(model, data, typed, root / "run", device)
        runs = {"bare loop": bare_epoch(trainer), "cvtrain": our_epoch(trainer)}
        return timed(runs, trainer.parts.train.steps * trainer.plan.batch_size, device, quick)

    return time_it


def write_digits(root: Path, count: int) -> None:
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, number in (("train", count), ("t10k", 100)):
        for kind, shape in (("images-idx3", (number, 28, 28)), ("labels-idx1", (number,))):
            sizes = b"".join(side.to_bytes(4, "big") for side in shape)
            values = rng.integers(0, 256 if len(shape) == 3 else 10, shape, dtype=np.uint8)
            header = bytes([0, 0, 8, len(shape)]) + sizes
            (folder / f"{name}-{kind}-ubyte").write_bytes(header + values.tobytes())


def time_folder(model: str, size: int, count: int) -> Timing:
    """End to end from JPEG files, against resident batches and timm with its own loader."""

    def time_it(root: Path, device: torch.device, quick: bool) -> str:
        write_photographs(root / "images", count, size)
        typed = [f"data.root={root / 'images'}", f"data.image_size={size}"]
        trainer = trainer_of(model, "folder", typed, root / "run", device)
        runs = {
            "bare loop": in_memory(trainer, root / "images", device, size),
            "cvtrain": our_epoch(trainer),
            **with_timm(trainer, model, root / "images", size),
        }
        try:
            return timed(runs, trainer.parts.train.steps * trainer.plan.batch_size, device, quick)
        finally:
            trainer.parts.train.close()

    return time_it


def run_times(device: torch.device, *, quick: bool) -> None:
    times = {
        "LeNet-5, MNIST": time_arrays("lenet5", "mnist", 1280 if quick else 60_000),
        "ResNet-18, CIFAR": time_arrays("resnet18", "cifar10", 640 if quick else 50_000),
        "ResNet-50, 224, JPEGs": time_folder(
            "resnet50", 64 if quick else 224, 256 if quick else 5120
        ),
    }
    for name, time_it in times.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                text = time_it(Path(folder), device, quick)
            except Exception as error:  # the others are still of interest
                traceback.print_exc()
                text = f"FAIL {error}"
        print(f"time  {name:<30} {text}", flush=True)
