"""`cvtrain doctor`: what it says, held against the machine by other means; what it warns of."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
from tiny import command, write_data

from cvtrain.compose import compose_config
from cvtrain.config import config_dir, options
from cvtrain.data.source import Source
from cvtrain.targets import make
from cvtrain.verbs import doctor

CORES = len(os.sched_getaffinity(0))


def said(tmp_path: Path, *words: str, env: dict[str, str] | None = None) -> dict[str, str]:
    """The sections by their titles."""
    plain = {"CVTRAIN_DATA": str(tmp_path / "d"), "OMP_NUM_THREADS": str(CORES)}
    done = command("doctor", *words, cwd=tmp_path, env=plain | (env or {}), fresh=True)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert done.stdout.count("\n") <= 40  # one screen
    assert not list(tmp_path.glob("outputs*"))
    parts = re.split(r"^(\S+) +", done.stdout, flags=re.MULTILINE)[1:]
    assert parts[::2] == ["versions", "CPU", "GPU", "disk", "data", "extras", "warnings"]
    return {t: " ".join(text.split()) for t, text in zip(parts[::2], parts[1::2], strict=True)}


def test_the_machine(tmp_path: Path) -> None:
    sections = said(tmp_path)
    for name in ("torchvision", "hydra-core", "omegaconf"):
        assert f"{name} {metadata.version(name)}" in sections["versions"]
    assert f"torch {torch.__version__}," in sections["versions"]
    assert f"{CORES} cores to use, threads {CORES}," in sections["CPU"]
    assert "fp32, bf16 (auto: fp32)" in sections["CPU"]
    listed = subprocess.run(["df", "-B1", "--output=size", "/"], capture_output=True, text=True)
    size = int(listed.stdout.split()[1]) / 1e9
    if os.stat(tmp_path).st_dev == os.stat("/").st_dev:
        assert f"of {size:,.0f} GB free at {tmp_path}/outputs" in sections["disk"]
    if not torch.cuda.is_available():
        assert sections["GPU"].startswith("none; torch is built")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu(tmp_path: Path) -> None:
    query = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    name, capability = listed.splitlines()[0].split(", ")
    gpu = said(tmp_path)["GPU"]
    assert f"cuda:0 {name}, " in gpu
    assert f"capability {capability}; " in gpu
    if float(capability) >= 8:
        assert "fp32, tf32, bf16, fp16 (auto: bf16)" in gpu


# Data


@pytest.mark.parametrize("name", options("data"))
def test_a_data_set_is_found_where_the_run_finds_it(name: str, tmp_path: Path) -> None:
    """Written as the tests of the readers write it, or as they draw it."""
    before, *_ = doctor.data(tmp_path)
    assert before.endswith("nothing yet")
    words = write_data(name, tmp_path)
    if name in doctor.DRAWN:
        args = compose_config([f"data={name}", *words]).config.data.args
        make(args, Source, key="data", trust=[])
    if name == "coco":  # its tiny one has other names
        shutil.move(
            tmp_path / "coco/annotations/train.json",
            tmp_path / "coco/annotations/instances_train2017.json",
        )
    if name == "voc":  # and this one no year
        (tmp_path / "VOCdevkit/VOC2007").mkdir()
        shutil.move(tmp_path / "VOCdevkit/ImageSets", tmp_path / "VOCdevkit/VOC2007")
        sets = tmp_path / "VOCdevkit/VOC2007/ImageSets/Main"
        shutil.move(sets / "train.txt", sets / "trainval.txt")
    first, *others = doctor.data(tmp_path)
    assert first.endswith(f": {name}")
    told = [line.partition(": ")[2].split(", ") for line in others]
    assert sorted([name, *(n for names in told for n in names)]) == options("data")


def test_what_can_be_had(tmp_path: Path) -> None:
    """Those with an address are downloaded, by their own files."""
    lines = dict(line.split(": ") for line in doctor.data(tmp_path))
    with_address = [
        name
        for name in options("data")
        if "\nurl: http" in (config_dir() / "data" / f"{name}.yaml").read_text()
    ]
    assert sorted(lines["downloaded on first use"].split(", ")) == sorted(with_address)
    assert all(name.startswith("shapes") for name in lines["drawn on first use"].split(", "))


# Extras


def test_every_extra_is_listed() -> None:
    project = tomllib.loads((config_dir().parent / "pyproject.toml").read_text())["project"]
    text = "\n".join(doctor.extras())
    for extra, needs in project["optional-dependencies"].items():
        if extra not in ("test", "dev"):
            package = re.match(r"[\w-]+", needs[0])[0]  # type: ignore[index]
            try:
                assert f"{package} {metadata.version(package)}" in text
            except metadata.PackageNotFoundError:
                assert f"{extra}: pip install 'cvtrain[{extra}]'" in text


def test_of_an_installed_package(tmp_path: Path) -> None:
    """No checkout beside it: the package's own metadata say which extras there are."""
    about = tmp_path / "cvtrain-9.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: cvtrain\nVersion: 9.9\n"
        "Requires-Dist: numpy>=1\n"
        'Requires-Dist: no-such-thing>=2; extra == "one"\n'
        'Requires-Dist: numpy>=1; extra == "two"\n'
        'Requires-Dist: numpy>=999; extra == "three"\n'
        "Provides-Extra: one\nProvides-Extra: two\nProvides-Extra: three\nProvides-Extra: dev\n"
    )
    (tmp_path / "cvtrain").symlink_to(Path(doctor.__file__).parents[1])
    code = (
        "from pathlib import Path\nfrom cvtrain.verbs import doctor\n"
        f"doctor.config_dir = lambda: Path({str(tmp_path)!r}) / 'cvtrain' / 'configs'\n"
        "print(*doctor.extras(), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    numpy = metadata.version("numpy")
    assert done.stdout.splitlines() == [
        f"installed: two (numpy {numpy})",
        "one: pip install 'cvtrain[one]' (needs no-such-thing>=2)",
        f"three: pip install 'cvtrain[three]' (needs numpy>=999, there is {numpy})",
    ]


# Warnings


@pytest.mark.skipif(CORES < 2, reason="needs two cores")
def test_few_threads(tmp_path: Path) -> None:
    fewer = said(tmp_path, env={"OMP_NUM_THREADS": "1"})["warnings"]
    assert f"1 of {CORES} cores used (OMP_NUM_THREADS=1): type trainer.threads={CORES}" in fewer


def test_threads_that_are_no_number(tmp_path: Path) -> None:
    warnings = said(tmp_path, env={"OMP_NUM_THREADS": "many"})["warnings"]
    assert "OMP_NUM_THREADS=many is no number of threads: unset it" in warnings


@pytest.mark.parametrize(
    ("text", "cores"), [("max 100000\n", None), ("150000 100000\n", 1.5), ("", None)]
)
def test_a_containers_share_of_time(text: str, cores: float | None, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert doctor.cpu_quota(tmp_path / "cpu.max") == cores
    assert doctor.cpu_quota(tmp_path / "none") is None


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "outputs"
    if shutil.disk_usage(tmp_path).free > doctor.LOW_DISK:
        assert not [w for w in doctor.warnings([folder]) if "space" in w]
    monkeypatch.setattr(doctor, "LOW_DISK", shutil.disk_usage(tmp_path).total)
    [line] = [w for w in doctor.warnings([folder]) if "space" in w]
    assert line.startswith(f"little space for {folder}: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert any("cannot be written" in w for w in doctor.warnings([tmp_path / "outputs"]))


@pytest.mark.parametrize(
    ("arch", "capability", "runs"),
    [
        *(("sm_80", 86, True), ("sm_86", 80, False), ("sm_80", 90, False)),
        *(("compute_80", 90, True), ("sm_90a", 90, True)),
    ],
)
def test_kernels(arch: str, capability: int, runs: bool) -> None:
    """As NVIDIA says: binaries within a major version, PTX on all that came later."""
    assert doctor.runs_on(arch, capability) is runs
