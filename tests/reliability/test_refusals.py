"""What cannot be run is refused in one line, quickly, and leaves nothing behind."""

import os
from pathlib import Path

import pytest
import torch
from harness import Case, checkpoint, write_mnist
from tiny import write_images

from cvtrain.build import build_parts
from cvtrain.compose import compose_config
from cvtrain.engine.distributed import Ranks
from cvtrain.errors import ConfigError

CONFIG = r"error\[CONFIG\]: "


@pytest.fixture
def without_torch(tmp_path: Path) -> dict[str, str]:
    """An environment in which importing torch ends the process with another exit code."""
    folder = tmp_path / "no_torch"
    folder.mkdir()
    (folder / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.fault("C1")
@pytest.mark.parametrize(
    ("typed", "line"),
    [
        # What was typed, then the nearest that is right.
        ("optimizer.lrr=0.1", r"there is no key optimizer\.lrr; .*optimizer\.lr=0\.1"),
        ("trainer.epochs=3", r"there is no key trainer\.epochs"),
        ("optimiser.lr=0.1", r"there is no key optimiser\.lr; .*optimizer\.lr=0\.1"),
        ("model=lenet6", "there is no model named lenet6; .*type model=lenet5"),
        ("data=mnits", "there is no data named mnits; .*type data=mnist"),
        (
            "recipe=lenet5_mnits",
            "there is no recipe named lenet5_mnits; .*type recipe=lenet5_mnist",
        ),
        ("debug=smok", "there is no debug named smok; .*type debug=smoke"),
        ("trian", "trian is neither a verb nor key=value; .*train"),
        ("--lr=0.1", "there is no flag --lr"),
        # A wrong type or a value out of range, by its key.
        ("data.batch_size=many", r".*many.*data\.batch_size"),
        ("data.batch_size=0", r"data\.batch_size=0 is out of range; .*at least 1"),
        ("trainer.precision=fp8", r".*fp8.*trainer\.precision"),
        ("optimizer.lr=nan", r"optimizer\.lr=nan is not finite"),
        ("optimizer.lr=-1", r"optimizer\.lr=-1 is out of range; .*at least 0"),
        ("optimizer.lr=fast", r"optimizer\.lr=fast is not a number"),
        (
            "trainer.duration=-3",
            r"trainer\.duration=-3 is not a duration; .*trainer\.duration=20ep",
        ),
        ("trainer.duration=0ep", r"trainer\.duration=0.* is out of range"),
        ("trainer.duration=5", r"trainer\.duration=5 is not a duration; .*trainer\.duration=20ep"),
        ("eval.every=30min", r"eval\.every=30min cannot be in minutes here"),
        ("trainer.accumulate=0", r"trainer\.accumulate=0 is out of range"),
        ("seed=-1", "seed=-1 is out of range"),
    ],
)
def test_before_torch_is_imported(
    tmp_path: Path, without_torch: dict[str, str], typed: str, line: str
) -> None:
    case = Case(tmp_path / "case")
    process = case.run(
        typed, env=without_torch, fresh=True, where=False, code=2, last=CONFIG + line
    )
    assert len(process.err.splitlines()) == 1


@pytest.mark.fault("D7")
def test_too_few_samples_for_a_step(mlp: Case) -> None:
    """96 samples."""
    arithmetic = r"error\[NO-STEPS\]: 96 train samples in batches of 97 make 0 whole steps"
    mlp.run("data.batch_size=97", code=2, last=arithmetic)


@pytest.mark.fault("D7")
def test_more_micro_batches_than_samples_in_a_batch(mlp: Case) -> None:
    arithmetic = r"error\[NO-STEPS\]: .* batches of 16 .* 17 micro-batches; data\.batch_size"
    mlp.run("trainer.accumulate=17", code=2, last=arithmetic)


@pytest.mark.fault("D7")
def test_a_split_without_samples(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_images(images)
    for file in (images / "val").rglob("*.jpg"):
        file.unlink()
    typed = ("data=folder", f"data.root={images}", "data.batch_size=4")
    case = Case(tmp_path / "case", *typed, inputs=(images,))
    case.run(code=2, last=r"error\[NO-STEPS\]: the val split has no samples, .*; data; ")


@pytest.mark.fault("D7")
@pytest.mark.parametrize(("samples", "batch_size"), [(3, 3), (96, 3)])
def test_fewer_samples_than_processes(tmp_path: Path, samples: int, batch_size: int) -> None:
    root = write_mnist(tmp_path, train=samples)
    typed = ["model=mlp", "data=mnist", f"data_dir={root}", f"data.batch_size={batch_size}"]
    config = compose_config(typed).config
    arithmetic = rf"{samples} train samples .*shared by 4 processes x 1 micro-batches"
    with pytest.raises(ConfigError, match=arithmetic) as caught:
        build_parts(config, device=torch.device("cpu"), ranks=Ranks(0, 0, 4))
    assert caught.value.name == "NO-STEPS"


@pytest.mark.fault("C2")
@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_a_gpu_that_is_not_there(mlp: Case, device: str) -> None:
    """Never silently on the CPU."""
    line = (
        rf"error\[NO-CUDA\]: {device} was asked for, 0 GPUs are there; torch .*trainer\.device=cpu"
    )
    mlp.run(f"trainer.device={device}", code=6, last=line)


@pytest.mark.fault("C1")
@pytest.mark.parametrize("place", ["typed", "in a file"])
def test_secrets_stay_where_they_are(mlp: Case, tmp_path: Path, place: str) -> None:
    """No file of the run holds the value; its config and the checkpoint's keep the reference."""
    secret, token = "correct-horse-battery", "x${oc.env:SECRET,none}"
    if place == "typed":
        mlp.overrides += ["+task.note=${oc.env:SECRET}", f"+task.token={token}"]
    else:
        mine = tmp_path / "mine/recipe"
        mine.mkdir(parents=True)
        text = f"# @package _global_\ntask: {{note: '${{oc.env:SECRET}}', token: '{token}'}}\n"
        (mine / "secret.yaml").write_text(text)
        mlp.overrides += ["--config-dir", str(mine.parent), "recipe=secret"]
    mlp.run(
        *("task._target_=user_code.WithSecret", "trainer.duration=1st"),
        env={"SECRET": secret, "SECRETS": f"{secret} x{secret}"},
    )
    files = [path for path in mlp.run_dir.rglob("*") if path.is_file()]
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
    saved = checkpoint(mlp.run_dir / "checkpoints/last.pt")
    for text in ((mlp.run_dir / "config.yaml").read_text(), saved["config"]):
        assert "note: ${oc.env:SECRET}" in text
        assert f"token: {token}" in text
