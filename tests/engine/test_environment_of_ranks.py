"""What torchrun and srun leave in the environment; keys that are about several processes."""

import os
from pathlib import Path

import pytest
import torch
from tiny import metrics, write_mnist
from torch import nn

from cvtrain import build, cli
from cvtrain.compose import compose_config
from cvtrain.engine.distributed import FIRST_PORT, PORTS, Ranks, meet_in_slurm
from cvtrain.engine.machine import pick_device
from cvtrain.errors import ConfigError, MachineError
from cvtrain.job import of_a_launcher

SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in ("MASTER_ADDR", "CUDA_VISIBLE_DEVICES"):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, (0, 0, 1)),
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, (3, 1, 4)),
        (SRUN, (3, 1, 4)),
        ({**SRUN, "CUDA_VISIBLE_DEVICES": "0,1"}, (3, 1, 4)),
        ({**SRUN, "CUDA_VISIBLE_DEVICES": "5"}, (3, 0, 4)),  # its own, which is number 0 to it
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, (0, 0, 1)),  # of sbatch's script itself
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, (0, 0, 1)),
    ],
)
def test_which_process_this_is(
    env: pytest.MonkeyPatch, found: dict[str, str], expected: tuple[int, int, int]
) -> None:
    for name, value in found.items():
        env.setenv(name, value)
    assert Ranks.from_environment() == Ranks(*expected)


@pytest.mark.parametrize(
    ("found", "begun"),
    [
        ({}, False),
        ({"WORLD_SIZE": "1"}, True),
        (SRUN, True),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
    ],
)
def test_whether_others_are_to_be_started(
    env: pytest.MonkeyPatch, found: dict[str, str], begun: bool
) -> None:
    """Also by a job of a sweep under SLURM, which is an srun of one."""
    for name, value in found.items():
        env.setenv(name, value)
    assert of_a_launcher() == begun


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[003-005,9]", "gpu003"), ("gpu7", "gpu7"), ("a-1,b-2", "a-1"), ("n[8,11]", "n8")],
)
def test_where_srun_meets(env: pytest.MonkeyPatch, nodes: str, first: str) -> None:
    env.setenv("MASTER_PORT", "x")
    env.delenv("MASTER_PORT")
    env.setenv("SLURM_STEP_NODELIST", nodes)
    env.setenv("SLURM_JOB_ID", "123456")
    meet_in_slurm()
    assert os.environ.pop("MASTER_ADDR") == first
    assert FIRST_PORT <= int(os.environ.pop("MASTER_PORT")) < FIRST_PORT + PORTS


def test_half_of_an_environment(env: pytest.MonkeyPatch) -> None:
    ranks = Ranks(0, 0, 2)
    with (
        pytest.raises(MachineError, match=r"MASTER_ADDR and MASTER_PORT are not.*trainer.devices"),
        ranks.joined(torch.device("cpu")),
    ):
        pass


def test_the_gpus_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    assert pick_device("auto", Ranks(), (3,)) == torch.device("cuda", 3)
    assert pick_device("cuda", Ranks(1, 1, 2), (2, 0)) == torch.device("cuda", 0)
    assert pick_device("cuda:1", Ranks(), (3,)) == torch.device("cuda", 1)
    assert chosen == [3, 0, 1]


def test_batch_norm_together() -> None:
    """On GPUs alone; the names of what a checkpoint holds stay."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    names, weight = list(model.state_dict()), model[1].weight
    together = build._synchronised(model, torch.device("cuda", 0))
    assert isinstance(together[1], nn.SyncBatchNorm)
    assert together[1].weight is weight
    assert list(together.state_dict()) == names
    with pytest.raises(ConfigError, match=r"on GPUs alone; trainer.sync_batch_norm"):
        build._synchronised(model, torch.device("cpu"))


def test_the_linear_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A rate for batches of 8 is twice as large for batches of 16, at every step of a schedule."""
    write_mnist(tmp_path / "digits")
    words = ["model=mlp", "model.hidden=[8]", "data=mnist", f"data_dir={tmp_path / 'digits'}"]
    words += ["optimizer.lr=0.1", "scheduler=cosine", "scheduler.warmup=2st", "data.batch_size=16"]
    words += ["trainer.duration=1ep", "trainer.log_every=1st", "trainer.progress=no"]
    rates = {}
    for rule in ("null", "8"):
        run = tmp_path / rule
        assert cli.run([*words, f"trainer.scale_lr={rule}", f"hydra.run.dir={run}"]) == 0
        rates[rule] = [line["train/lr"] for line in metrics(run) if "train/lr" in line]
    assert rates["8"] == pytest.approx([2 * rate for rate in rates["null"]])
    assert max(rates["null"]) > 0
    assert "meant for batches of 8, is multiplied by 2" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["true", "0", "-1", "1.5"])
def test_a_rule_that_is_none(value: str) -> None:
    with pytest.raises(ConfigError, match=r"trainer.scale_lr"):
        compose_config([f"trainer.scale_lr={value}"])
