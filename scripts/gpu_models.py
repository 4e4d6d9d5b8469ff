"""Every classifier on a device: a training step in each precision, and its speed beside
torchvision's own network in the same bare loop. What gpu_check.py runs of the models.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torchvision
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from cvtrain.build import build_model, size_of
from cvtrain.compose import compose_config
from cvtrain.config import Precision, config_dir, options
from cvtrain.engine.machine import mixed_precision, settings
from cvtrain.tasks.classification import all_logits
from cvtrain.trained.network import described

OTHERS = ("torchvision", "timm")  # any network by name


def classifiers() -> list[str]:
    files = {name: config_dir() / "model" / f"{name}.yaml" for name in options("model")}
    tasks = {name: yaml.safe_load(file.read_text())["task"] for name, file in files.items()}
    return [n for n, task in tasks.items() if task == "classification" and n not in OTHERS]


def network(name: str, device: torch.device) -> tuple[nn.Module, int]:
    """Of 1,000 classes, and the side of its images in pixels."""
    config = compose_config([f"model={name}", "data=imagenet", "recipe=none"]).config
    source = described(config)
    size = size_of(config, source)
    return build_model(config, source, size, device=device)[1], size


def train_step(
    model: nn.Module, batch: tuple[Tensor, Tensor], precision: Precision
) -> Callable[[], Tensor]:
    images, labels = batch
    autocast, scaler = mixed_precision(precision, images.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> Tensor:
        with autocast:
            logits = all_logits(model(images))
        loss = sum(F.cross_entropy(each, labels) for each in logits)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def batch_of(count: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    images = torch.randn(count, 3, size, size, device=device)
    labels = torch.randint(1000, (count,), device=device)
    return images.to(memory_format=torch.channels_last), labels


def images_per_second(step: Callable[[], Tensor], count: int, repeats: int) -> float:
    """The median of the repeats, after two that warm up."""
    seconds = []
    for repeat in range(repeats + 2):
        start = time.perf_counter()
        step().item()  # waits for the device
        if repeat >= 2:
            seconds.append(time.perf_counter() - start)
    return count / statistics.median(seconds)


def beside(name: str, size: int, count: int, device: torch.device, repeats: int) -> str:
    """torchvision's network of that name, where it has one."""
    if name not in torchvision.models.list_models(module=torchvision.models):
        return ""
    extra = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, **extra).to(device)
    model = model.to(memory_format=torch.channels_last).train()
    batch = batch_of(count, max(size, 224), device)
    speed = images_per_second(train_step(model, batch, bf16(device)), count, repeats)
    return f", torchvision's {speed:.0f}"


def bf16(device: torch.device) -> Precision:
    return Precision.bf16 if device.type == "cuda" else Precision.fp32


def run_models(device: torch.device, *, quick: bool) -> int:
    """A line for each model. Returns how many have a loss that is not finite."""
    failed, count, repeats = 0, 2 if quick else 64, 1 if quick else 10
    on_gpu = (Precision.fp32, Precision.tf32, Precision.bf16, Precision.fp16)
    config = compose_config([]).config.trainer
    for name in classifiers():
        losses, speed = {}, ""
        for precision in on_gpu if device.type == "cuda" else (Precision.fp32, Precision.bf16):
            model, size = network(name, device)
            config.precision = precision
            with settings(config):
                step = train_step(model.train(), batch_of(count, size, device), precision)
                losses[precision] = step().item()
                if precision is bf16(device):
                    own = images_per_second(step, count, repeats)
                    speed = f"{own:.0f} images/s{beside(name, size, count, device, repeats)}"
            del model, step
        bad = [str(p) for p, loss in losses.items() if not torch.tensor(loss).isfinite()]
        failed += bool(bad)
        words = f"not finite in {', '.join(bad)}" if bad else f"a step in {', '.join(losses)}"
        print(f"{'FAIL' if bad else 'ok':<5} {name:<16} {size} px  {words}; {speed}", flush=True)
    return failed
