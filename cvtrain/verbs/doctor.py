"""`cvtrain doctor`: this machine on one screen, and what on it will be in the way."""

import os
import platform
import re
import shutil
import textwrap
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement

import cvtrain
from cvtrain.compose import Composed
from cvtrain.config import Precision, config_dir, options
from cvtrain.engine.machine import pick_precision
from cvtrain.errors import ConfigError

INDENT = 10
LAYOUT = textwrap.TextWrapper(
    96, subsequent_indent=" " * (INDENT + 2), break_long_words=False, break_on_hyphens=False
)
PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf")
LOW_DISK = 5e9  # bytes: a few runs of a network of 100 MB
LOW_SHARED = 256 << 20  # bytes: batches of workers pass through it; a container has 64 MiB
# What is looked for below data_dir, where data.root is not typed.
FILES = {
    "mnist": "MNIST/raw/train-images-idx3-ubyte*",
    "fashion_mnist": "FashionMNIST/raw/train-images-idx3-ubyte*",
    "cifar10": "cifar-10-batches-*/data_batch_1*",
    "cifar100": "cifar-100-*/train*",
    "imagenet": "imagenet/train/*/",
    "folder": "folder/*/",
    "csv": "csv/train.csv",
    "csv_box": "csv_box/train.csv",
    "coco": "coco/annotations/instances_train2017.json",
    "voc": "VOCdevkit/VOC20*/ImageSets/Main/trainval.txt",
    **{name: f"{name}/*/" for name in ("shapes", "shapes_box", "shapes_labels", "shapes_boxes")},
}
DOWNLOADED = ("mnist", "fashion_mnist", "cifar10", "cifar100")
DRAWN = ("shapes", "shapes_box", "shapes_labels", "shapes_boxes")
DEVELOPERS = ("test", "dev")  # extras of no use to a run


def doctor(composed: Composed, overrides: list[str]) -> None:
    """Print versions, devices, disks, data, extras, and warnings. It changes nothing."""
    data_dir, run_dir = Path(composed.config.data_dir), composed.run_dir
    outputs = next((path for path in run_dir.parents if path.name == "outputs"), run_dir.parent)
    sections = {
        "versions": [", ".join(versions())],
        "CPU": cpu(),
        "GPU": list(gpus()),
        "disk": [f"{free(folder)} at {folder.absolute()}" for folder in (outputs, data_dir)],
        "data": data(data_dir),
        "extras": list(extras()),
        "warnings": list(warnings([outputs, data_dir])) or ["none"],
    }
    for title, lines in sections.items():
        for number, line in enumerate(lines):
            first = f"{'' if number else title:<{INDENT}}"
            print(LAYOUT.fill(f"{first}{line}"))


def versions() -> Iterator[str]:
    yield f"cvtrain {cvtrain.__version__}"
    yield f"Python {platform.python_version()}"
    for name in PACKAGES:
        yield f"{name} {torch.__version__ if name == 'torch' else version(name)}"


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# Devices


def cpu() -> list[str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    device, word = torch.device("cpu"), torch.backends.cpu.get_cpu_capability()
    slow = "" if has_bf16() else "; bf16 is slow, there are no instructions for it"
    return [
        f"{cores()} cores to use, threads {torch.get_num_threads()}, {memory / 1e9:.0f} GB, {word}",
        f"{', '.join(precisions(device))} (auto: {pick_precision(Precision.auto, device)}){slow}",
    ]


def has_bf16(file: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU multiplies bf16 itself."""
    try:
        return bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", file.read_text()))
    except OSError:
        return False


def cores() -> int:
    """That this process may use: fewer than the machine's in a container or a job."""
    return len(os.sched_getaffinity(0))


def gpus() -> Iterator[str]:
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        about = torch.cuda.get_device_properties(device)
        auto = pick_precision(Precision.auto, device)
        yield (
            f"cuda:{index} {about.name}, {about.total_memory / 1e9:.0f} GB, "
            f"capability {about.major}.{about.minor}; "
            f"{', '.join(precisions(device))} (auto: {auto})"
        )
    if not torch.cuda.device_count():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        yield f"none; torch is {built}"


def precisions(device: torch.device) -> Iterator[str]:
    """Those that `trainer.precision` takes on a device and that it computes in."""
    for precision in Precision:
        if precision is Precision.auto:
            continue
        try:
            pick_precision(precision, device)
        except ConfigError:
            continue
        if device.type == "cuda":
            major = torch.cuda.get_device_capability(device)[0]
            if precision is Precision.tf32 and major < 8:
                continue
            if precision is Precision.bf16 and not torch.cuda.is_bf16_supported(False):
                continue
        elif precision is Precision.tf32:
            continue
        yield str(precision)


# Disks and data


def existing(folder: Path) -> Path:
    """The nearest folder above that there is."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def free(folder: Path) -> str:
    usage = shutil.disk_usage(existing(folder))
    return f"{usage.free / 1e9:,.1f} of {usage.total / 1e9:,.0f} GB free"


def data(data_dir: Path) -> list[str]:
    """Which `data=NAME` would find its files, told by their names alone."""
    there = [name for name, pattern in FILES.items() if any(data_dir.glob(pattern))]
    absent = [name for name in options("data") if name not in there]
    variable = " (CVTRAIN_DATA)" * (os.environ.get("CVTRAIN_DATA") == str(data_dir))
    lines = [f"below {data_dir}{variable}: {', '.join(there) or 'nothing yet'}"]
    ways = {
        "drawn on first use": [name for name in absent if name in DRAWN],
        "downloaded on first use": [name for name in absent if name in DOWNLOADED],
        "not there": [name for name in absent if name not in (*DRAWN, *DOWNLOADED)],
    }
    return lines + [f"{way}: {', '.join(names)}" for way, names in ways.items() if names]


# Extras


def extras() -> Iterator[str]:
    """Each extra with what of it is installed, or how to add it."""
    installed, absent = [], []
    for extra, wanted in declared().items():
        found = {need: version(need.name) for need in wanted}
        lacking = [_lack(need, there) for need, there in found.items() if not _good(need, there)]
        if lacking:
            absent.append(f"{extra}: pip install 'cvtrain[{extra}]' (needs {', '.join(lacking)})")
        else:
            names = ", ".join(f"{need.name} {there}" for need, there in found.items())
            installed.append(f"{extra} ({names})")
    if installed:
        yield f"installed: {', '.join(installed)}"
    yield from absent


def _good(need: Requirement, there: str | None) -> bool:
    return there is not None and need.specifier.contains(there, prereleases=True)


def _lack(need: Requirement, there: str | None) -> str:
    return f"{need.name}{need.specifier}" + (f", there is {there}" if there else "")


def declared() -> dict[str, list[Requirement]]:
    """The optional dependencies, of the checkout's pyproject.toml or of the installed package."""
    project = config_dir().parent / "pyproject.toml"
    if project.is_file():
        listed = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
        found = {extra: [Requirement(line) for line in lines] for extra, lines in listed.items()}
    else:
        about = metadata.metadata("cvtrain")
        needs = [Requirement(line) for line in metadata.requires("cvtrain") or []]
        found = {
            extra: [
                need
                for need in needs
                if need.marker
                and need.marker.evaluate({"extra": extra})
                and not need.marker.evaluate({"extra": ""})
            ]
            for extra in about.get_all("Provides-Extra") or []
        }
    return {extra: needs for extra, needs in found.items() if extra not in DEVELOPERS}


# What will be in the way


def warnings(folders: list[Path]) -> Iterator[str]:
    yield from _of_threads()
    yield from _of_cuda()
    for folder in folders:
        place = existing(folder)
        if shutil.disk_usage(place).free < LOW_DISK:
            yield f"little space for {folder}: {free(folder)}"
    if not os.access(existing(folders[0]), os.W_OK):
        yield f"{existing(folders[0])} cannot be written: type hydra.run.dir=FOLDER"
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).total < LOW_SHARED:
        size = shutil.disk_usage(shared).total >> 20
        yield f"/dev/shm has {size} MiB: docker run --shm-size=1g, or type trainer.workers=0"


def _of_threads() -> Iterator[str]:
    threads, count, quota = torch.get_num_threads(), cores(), cpu_quota()
    word = os.environ.get("OMP_NUM_THREADS")
    if word is not None and not (word.isdigit() and int(word)):
        yield f"OMP_NUM_THREADS={word} is no number of threads: unset it"
    because = f" (OMP_NUM_THREADS={word})" if word else ""
    if threads < count:
        yield f"{threads} of {count} cores used{because}: type trainer.threads={count}"
    if threads > count:
        yield f"{threads} threads share {count} cores{because}: type trainer.threads={count}"
    if quota and quota < min(threads, count):
        fit = max(1, int(quota))
        yield f"this container has the time of {quota:g} cores: type trainer.threads={fit}"


def cpu_quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """Cores' worth of time that a container is given; None without a limit."""
    try:
        limit, period = file.read_text().split()
        return int(limit) / int(period)
    except (OSError, ValueError):  # no such file; `max`
        return None


def _of_cuda() -> Iterator[str]:
    card = Path("/proc/driver/nvidia/version").exists()
    if card and not torch.version.cuda:
        yield "there is an NVIDIA driver, but this torch is built without CUDA: see pytorch.org"
    elif card and not torch.cuda.is_available():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        because = "look at nvidia-smi" if hidden is None else f"CUDA_VISIBLE_DEVICES={hidden}"
        yield f"there is an NVIDIA driver, but torch finds no GPU: {because}"
    kernels = torch.cuda.get_arch_list()
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        if kernels and not any(runs_on(arch, 10 * major + minor) for arch in kernels):
            yield f"cuda:{index}: this torch has no kernels for capability {major}.{minor}"


def runs_on(arch: str, capability: int) -> bool:
    """sm_80 within a major version from 8.0 on, compute_80 on all from there on."""
    kind, _, number = arch.partition("_")
    built = int(re.sub(r"\D", "", number))
    return built <= capability and (kind == "compute" or built // 10 == capability // 10)
