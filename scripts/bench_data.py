"""Times the reading of image files, one core, and how far scaled decoding is from a full one.

    python scripts/bench_data.py crops                     # JPEG to a 224 training crop
    python scripts/bench_data.py crops --images DIR        # of your own JPEGs, resized to 500x375
    python scripts/bench_data.py folder                    # ResNet-18 on a folder of 32 px JPEGs

`crops` takes turns between torchvision's reference transforms (PIL), its v2 transforms on
torchvision.io's decoder, Pillow's draft mode and ours, over the same 500x375 files; medians.
`folder` times one pass of training end to end against a bare loop over the same images in memory.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from bench_epoch import network, our_epoch, step, trainer_of
from PIL import Image
from torchvision import io
from torchvision import transforms as v1
from torchvision.transforms import v2

from cvtrain.data.crops import RandomResizedCrop
from cvtrain.data.image_folder import ImageFiles
from cvtrain.data.images import probe, read_box
from cvtrain.data.scan import Scan, look, scan
from cvtrain.engine.trainer import Trainer

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SIZE = (500, 375)  # the commonest of ImageNet


def write_jpegs(folder: Path, source: Path | None, count: int) -> list[Path]:
    """Photographs below `source`, or smooth noise with sharp edges, as 500x375 JPEGs."""
    folder.mkdir(parents=True)
    found = sorted(source.rglob("*.jp*g"))[:count] if source else []
    rng, files = np.random.default_rng(0), []
    for number in range(count):
        if found:
            image = Image.open(found[number % len(found)]).convert("RGB").resize(SIZE)
        else:
            coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            fine = rng.normal(0, 12, (SIZE[1], SIZE[0], 1))
            smooth = np.asarray(Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC))
            image = Image.fromarray((smooth + fine).clip(0, 255).astype(np.uint8))
        files.append(folder / f"{number:04d}.jpg")
        image.save(files[-1], quality=92)
    return files


def readers(files: list[Path]) -> dict[str, Callable[[Path], object]]:
    """Each from a file to the uint8 or float crop that its users feed on."""
    reference = v1.Compose(
        [
            v1.RandomResizedCrop(224),
            v1.RandomHorizontalFlip(),
            v1.PILToTensor(),
            v1.ConvertImageDtype(torch.float),
            v1.Normalize(MEAN, STD),
        ]
    )
    modern = v2.Compose([v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()])
    crop = RandomResizedCrop(scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3])
    found = Scan(files[0].parent, ["all"])
    for file in files:
        look(found, file, 0, max_pixels=10**9)
    ours = ImageFiles(found, size=224, crop=crop)
    numbers = {file: number for number, file in enumerate(files)}

    def with_pillow(file: Path) -> object:
        return reference(Image.open(file).convert("RGB"))

    def with_io(file: Path) -> object:
        return modern(io.decode_jpeg(io.read_file(str(file)), io.ImageReadMode.RGB))

    def with_draft(file: Path) -> object:
        image = Image.open(file)
        width, height = image.size
        box = crop.box(torch.rand(crop.draws).tolist(), width, height)
        image.draft("RGB", (int(224 * width / (box[2] - box[0])), 224))
        scale = image.size[0] / width
        scaled = tuple(side * scale for side in box)
        return np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR, box=scaled))

    def with_ours(file: Path) -> object:
        return ours[numbers[file]]

    return {
        "torchvision reference (PIL, v1, normalised)": with_pillow,
        "torchvision.io + v2 (uint8)": with_io,
        "Pillow draft + resize(box) (uint8)": with_draft,
        "cvtrain (uint8)": with_ours,
    }


def bench_crops(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = write_jpegs(Path(folder) / "jpegs", options.images, options.count)
        runs = readers(files)
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for repeat in range(options.repeats + 1):  # the first one warms up
            for name, read in runs.items():
                torch.manual_seed(repeat)
                start = time.perf_counter()
                for file in files:
                    read(file)
                if repeat:
                    rates[name].append(len(files) / (time.perf_counter() - start))
        size = sum(file.stat().st_size for file in files) / len(files) / 1000
        print(f"{len(files)} JPEGs of {SIZE[0]}x{SIZE[1]}, {size:.0f} kB, to 224, one thread")
        base = rates["torchvision reference (PIL, v1, normalised)"]
        for name, values in rates.items():
            ratio = statistics.median(v / b for v, b in zip(values, base, strict=True))
            print(f"  {name:<46} {statistics.median(values):7.0f} images/s  {ratio:.2f}")
        print_errors(files)


def print_errors(files: list[Path]) -> None:
    """Mean difference in 0..255 to a full decode and an antialiased resize by Pillow."""
    for text, side in (("crops of 300 px", 300.0), ("whole, to a third (scaled decode)", None)):
        errors = []
        for file in files:
            header = probe(file, max_pixels=10**9)
            box = (20.0, 30.0, 20 + side, 30 + side) if side else (0.0, 0.0, *map(float, SIZE))
            size = 224 if side else 112
            ours = read_box(file, header, box, size).numpy().astype(float)
            whole = Image.open(file).convert("RGB")
            full = whole.resize((size, size), Image.Resampling.BILINEAR, box=box)
            errors.append(np.abs(ours - np.asarray(full)).mean())
        print(f"  mean pixel error to a full decode, {text}: {np.mean(errors):.2f} of 255")


def write_folder(root: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("val", 20)):
        for index in range(number):
            folder = root / split / f"class{index % 10}"
            folder.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            image = coarse.resize((32, 32), Image.Resampling.BICUBIC)
            image.save(folder / f"{index:05d}.jpg", quality=90)


def bench_folder(options: argparse.Namespace) -> None:
    """The whole of one pass: files, crop, flip, transfer, training."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        write_folder(root, options.count)
        typed = [f"data.root={root}", "data.image_size=32", "data.crop_fraction=1"]
        typed += ["augment=[pad_crop,flip]", f"model.stem={options.stem}"]
        typed += [] if options.workers is None else [f"trainer.workers={options.workers}"]
        device = torch.device(options.device)
        trainer = trainer_of("resnet18", "folder", typed, Path(folder), device)
        runs = {"bare loop": in_memory(trainer, root, device), "cvtrain": our_epoch(trainer)}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for repeat in range(options.repeats + 1):
            for name, epoch in runs.items():
                start = time.perf_counter()
                epoch()
                if repeat:
                    times[name].append(time.perf_counter() - start)
        trainer.logs.close()
        trainer.parts.train.close()
    samples = trainer.parts.train.steps * trainer.plan.batch_size
    print(
        f"ResNet-18 ({options.stem} stem), {samples} JPEGs of 32x32 a pass, "
        f"{torch.get_num_threads()} threads, {device}"
    )
    for name, seconds in times.items():
        print(f"  {name:<12} {samples / statistics.median(seconds):8.0f} images/s")
    pairs = zip(times["bare loop"], times["cvtrain"], strict=True)
    print(f"  cvtrain / bare loop: {statistics.median(b / o for b, o in pairs):.3f} of its speed")


def in_memory(
    trainer: Trainer, root: Path, device: torch.device, size: int = 32
) -> Callable[[], None]:
    """Batches of the same images, resident on the device as floats; no reading, no augmentation."""
    model, optimizer = network(trainer)
    model.train()
    found = scan(
        root / "train",
        sorted(p.name for p in (root / "train").iterdir()),
        max_pixels=10**9,
        on_bad="error",
    )
    opened = (Image.open(file).convert("RGB").resize((size, size)) for file in found.files)
    pixels = [np.asarray(image) for image in opened]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    images = images.to(device).float().div(255).contiguous(memory_format=torch.channels_last)
    labels = torch.tensor(found.labels, device=device)
    batch_size = trainer.plan.batch_size

    def epoch() -> None:
        order = torch.randperm(len(labels), device=device)
        for start in range(0, len(labels) - batch_size + 1, batch_size):
            index = order[start : start + batch_size]
            batch = images[index].contiguous(memory_format=torch.channels_last)
            step(model, optimizer, batch, labels[index], trainer.autocast)

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("crops", "folder"))
    parser.add_argument("--images", type=Path, help="photographs to resize (crops)")
    parser.add_argument("--count", type=int, help="files (60 for crops, 2560 for folder)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, help="processes that read (folder)")
    # The paper's stem, as timm's, leaves the least work for an image: reading weighs most.
    parser.add_argument("--stem", default="imagenet", help="of ResNet-18: imagenet or small")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    options.count = options.count or {"crops": 60, "folder": 2560}[options.what]
    torch.set_flush_denormal(True)
    {"crops": bench_crops, "folder": bench_folder}[options.what](options)


if __name__ == "__main__":
    sys.exit(main())
