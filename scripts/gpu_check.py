"""Runs what depends on the device, a line each, and times training against a bare loop and timm.

    python scripts/gpu_check.py                       # on a machine with CUDA
    python scripts/gpu_check.py --only checks         # or: models, times
    python scripts/gpu_check.py --device cpu --quick  # the script itself, anywhere

Every check trains through the command on small data that it writes. Exit code 1 if one fails.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_epoch import trainer_of, write_images
from gpu_models import run_models
from gpu_times import run_times
from PIL import Image

from cvtrain.engine.distributed import Ranks, without_sync
from cvtrain.models.resnet_cifar import ResNetCifar

REPOSITORY = Path(__file__).resolve().parents[1]
OPTIONS = argparse.Namespace()


# What the command does


def train(run: Path, *typed: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """`cvtrain TYPED` on the device; AssertionError when it ends with another exit code."""
    words = [*typed, f"trainer.device={OPTIONS.device}", f"hydra.run.dir={run}"]
    done = subprocess.run(
        [sys.executable, "-m", "cvtrain", *words],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == code, f"exit code {done.returncode}: {done.stderr[-2000:]}"
    return done


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def digest(run: Path) -> str:
    """Of the weights, buffers and optimizer of the last checkpoint, bit for bit."""
    state = torch.load(run / "checkpoints/last.pt", map_location="cpu", weights_only=True)
    hashed = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            hashed.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                add(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)

    add({name: state[name] for name in ("model", "ema", "optimizer", "scaler")})
    return hashed.hexdigest()


def cifar(root: Path) -> list[str]:
    if not (root / "cifar").exists():
        write_images(root / "cifar", 2560)
    return ["data=cifar10", f"data_dir={root / 'cifar'}", "recipe=none", "trainer.log_every=1st"]


def check_precision(name: str) -> Callable[[Path], str]:
    def check(root: Path) -> str:
        line = ["model=resnet20", *cifar(root), "trainer.duration=10st", "optimizer.lr=0.01"]
        train(root / name, *line, f"trainer.precision={name}")
        found = summary(root / name)
        return f"val/loss {found['val/loss']:.4f}, {found['train/images_per_sec']:.0f} images/s"

    return check


def check_layouts(root: Path) -> str:
    """channels_last changes the speed, and the figures by rounding at most."""
    losses = []
    for word in ("true", "false"):
        line = ["model=resnet20", *cifar(root), "trainer.duration=10st", "trainer.precision=fp32"]
        train(root / word, *line, "optimizer.lr=0.01", f"trainer.channels_last={word}")
        losses.append(summary(root / word)["val/loss"])
    assert abs(losses[0] - losses[1]) < 0.02 * losses[0], losses
    return f"val/loss {losses[0]:.4f} and {losses[1]:.4f}"


def check_compile(root: Path) -> str:
    line = ["model=resnet20", *cifar(root), "trainer.duration=10st", "optimizer.lr=0.01"]
    train(root / "compiled", *line, "trainer.compile=true")
    return f"val/loss {summary(root / 'compiled')['val/loss']:.4f}"


def check_resume(root: Path) -> str:
    """Twelve steps in one go, and in two: deterministic kernels, EMA, the same bits."""
    line = ["model=resnet20", *cifar(root), "trainer.deterministic=true", "trainer.ema=0.9"]
    line += ["optimizer.lr=0.01", "scheduler=constant", "eval.every=100ep"]
    train(root / "whole", *line, "trainer.duration=12st")
    train(root / "parts", *line, "trainer.duration=5st")
    more = ["trainer.duration=12st", "resume=auto", "resume_allow=[trainer.duration]"]
    train(root / "parts", *line, *more)
    first, second = digest(root / "whole"), digest(root / "parts")
    assert first == second, f"{first[:12]} is not {second[:12]}"
    return f"sha256 {first[:12]} both"


def check_formats(root: Path) -> str:
    """A folder of every kind of file, through pinned memory and workers, onto the device."""
    rng = np.random.default_rng(0)
    modes = {"a.jpg": "RGB", "b c.png": "RGBA", "c.gif": "P", "d.png": "L", "e.jpg": "CMYK"}
    for split in ("train", "val"):
        for name in ("ants", "bees"):
            folder = root / "images" / split / name
            folder.mkdir(parents=True)
            for file, mode in modes.items():
                pixels = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels).convert(mode).save(folder / file)
            wide = rng.integers(0, 2**16, (40, 50), dtype=np.uint16)
            Image.fromarray(wide).save(folder / "f.png")
    line = ["model=resnet18", "data=folder", f"data.root={root / 'images'}", "data.image_size=64"]
    line += ["augment=[random_resized_crop,flip,color_jitter,lighting,mixup,cutmix]"]
    train(root / "folder", *line, "debug=smoke", "trainer.workers=2")
    return f"val/loss {summary(root / 'folder')['val/loss']:.4f}"


def check_device_data(root: Path) -> str:
    """Array data lie on the device, and give the batches that the CPU gives."""
    typed = ["augment=[pad_crop,flip,affine]", f"data_dir={root / 'cifar'}"]
    cifar(root)
    batches = []
    for name in ("cpu", OPTIONS.device):
        trainer = trainer_of("resnet20", "cifar10", typed, root, torch.device(name))
        ((batch,), *_) = trainer.parts.train.epoch(0)
        assert batch.images.device.type == torch.device(name).type
        batches.append(batch.images.cpu().int())
    away = (batches[0] - batches[1]).abs()
    assert away.max() <= 1, f"pixels differ by {away.max()}"
    return f"{(away > 0).float().mean():.2%} of the pixels round differently"


def check_non_finite(root: Path) -> str:
    line = ["model=resnet20", *cifar(root), "trainer.duration=10st", "optimizer.lr=1e30"]
    done = train(root / "wild", *line, code=5)
    return done.stderr.splitlines()[-1][:90]


def check_cpu_can_read(root: Path) -> str:
    """A checkpoint of this device starts a run on the CPU."""
    line = ["model=resnet20", *cifar(root), "optimizer.lr=0.01", "trainer.duration=2st"]
    train(root / "there", *line)
    weights = f"init.weights={root / 'there/checkpoints/last.pt'}"
    device, OPTIONS.device = OPTIONS.device, "cpu"
    try:
        train(root / "here", *line, weights, "trainer.precision=fp32")
    finally:
        OPTIONS.device = device
    return "read"


def check_one_rank(root: Path) -> str:
    """What several processes do, in a group of one: a GPU takes no second process of a group."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}
    backend = "cpu:gloo,cuda:nccl" if OPTIONS.device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, rank=0, world_size=1)
    try:
        device, ranks = torch.device(OPTIONS.device, 0), Ranks(0, 0, 2)  # two do not pass over it
        network = ResNetCifar(num_classes=10, in_channels=3, depth=20).to(device)
        if OPTIONS.device == "cuda":
            network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
        model = ranks.wrap(network, device)
        with without_sync(model, last=False):
            model(torch.randn(8, 3, 32, 32, device=device)).sum().backward()
        model(torch.randn(8, 3, 32, 32, device=device)).sum().backward()
        ranks.share(network.buffers())
        total = ranks.sum({"a": torch.ones(3, device=device), "b": torch.tensor(2.0)})
        assert [*total["a"].tolist(), total["b"].item()] == [1, 1, 1, 2]
        assert (ranks.any(True), ranks.agree("x")) == (True, "x")
    finally:
        torch.distributed.destroy_process_group()
    return backend


def check_sweep(root: Path) -> str:
    """Four jobs on one device at once."""
    words = ["model=resnet20", *cifar(root), "trainer.duration=10st", "seed=0,1,2,3"]
    launcher = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=4"]
    train(root / "unused", *launcher, *words, f"hydra.sweep.dir={root / 'sweep'}")
    found = [json.loads(file.read_text()) for file in (root / "sweep").glob("jobs/*.json")]
    assert [job["state"] for job in found] == ["done"] * 4, found
    return ", ".join(f"{job['seconds']:.0f} s" for job in found)


CHECKS: dict[str, Callable[[Path], str]] = {
    **{f"precision {p}": check_precision(p) for p in ("fp32", "tf32", "bf16", "fp16")},
    "channels_last": check_layouts,
    "compile": check_compile,
    "resume exact (deterministic)": check_resume,
    "data on the device": check_device_data,
    "mixed formats, workers": check_formats,
    "non-finite stops": check_non_finite,
    "checkpoint on the CPU": check_cpu_can_read,
    "a group of one process": check_one_rank,
    "four jobs at once (joblib)": check_sweep,
}


def run_checks() -> int:
    failed = 0
    for name, check in CHECKS.items():
        if OPTIONS.device == "cpu" and name in ("precision fp16", "precision tf32"):
            print(f"SKIP  {name:<30} not for the CPU", flush=True)
            continue
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                text, word = check(Path(folder)), "ok"
            except Exception as error:  # the others are still of interest
                text, word = " ".join(str(error).split())[-600:] or repr(error), "FAIL"
                if not isinstance(error, AssertionError):
                    traceback.print_exc()
                failed += 1
        print(f"{word:<5} {name:<30} {time.perf_counter() - start:6.1f} s  {text}", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", choices=("checks", "models", "times"))
    parser.add_argument("--quick", action="store_true", help="small data, to try the script")
    parser.parse_args(namespace=OPTIONS)
    if OPTIONS.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; --device cpu --quick tries the script itself")
        return 1
    name = torch.cuda.get_device_name() if OPTIONS.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {len(os.sched_getaffinity(0))} cores")
    device = torch.device(OPTIONS.device)
    parts = [OPTIONS.only] if OPTIONS.only else ["checks", "models", "times"]
    failed = run_checks() if "checks" in parts else 0
    failed += run_models(device, quick=OPTIONS.quick) if "models" in parts else 0
    if "times" in parts:
        run_times(device, quick=OPTIONS.quick)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
