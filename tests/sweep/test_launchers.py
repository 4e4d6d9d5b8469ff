"""Several jobs at once, and a search: Hydra's plugins, by the real command."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import metrics, write_mnist

from cvtrain import cli, gpus
from cvtrain.recipes import plain, ready

pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="cvtrain[sweep]")

RELIABILITY = Path(__file__).parents[1] / "reliability"
MLP = [
    *("model=mlp", "model.hidden=[8]", "data=mnist", "data_dir=digits", "data.batch_size=16"),
    *("trainer.threads=1", "trainer.progress=no", "trainer.log_every=1st"),
]


def jobs(folder: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(file.read_text()) for file in (folder / "jobs").glob("*.json")]
    return {" ".join(job["swept"].values()): job for job in found}


def begun(home: Path, *words: str) -> subprocess.Popen[str]:
    paths = [str(RELIABILITY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "cvtrain", "-m", *words, "hydra.sweep.dir=mine"],
        cwd=home,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("name", ["SIGINT"])
def test_several_at_once_stopped_and_typed_again(tmp_path: Path, name: str) -> None:
    """Ctrl-C reaches the whole group: both jobs save, none that is left begins; then all end."""
    write_mnist(tmp_path / "digits")
    words = ["hydra/launcher=joblib", *MLP, "seed=0,1,2", "trainer.duration=60st"]
    words += ["trust=[user_code]", "task._target_=user_code.Slow"]
    process = begun(tmp_path, *words)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if len(list(tmp_path.glob("mine/*/metrics.jsonl"))) == 2:
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.Signals[name])
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.Signals[name], said
    assert said.splitlines()[-1].startswith("cvtrain: the sweep was stopped; mine; to go on type: ")
    first = jobs(tmp_path / "mine")
    assert [first[seed]["state"] for seed in "01"] == ["stopped", "stopped"]
    assert "2" not in first
    again = begun(tmp_path, *words)
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    last = jobs(tmp_path / "mine")
    assert [job["state"] for job in last.values()] == ["done"] * 3
    for job in last.values():
        run = tmp_path / "mine" / job["run"]
        steps = [line["step"] for line in metrics(run) if "train/loss" in line]
        assert steps == list(range(1, 61))  # each once
        starts = json.loads((run / "environment.json").read_text())["starts"]
        assert len(starts) == (1 if job["swept"]["seed"] == "2" else 2)


def test_a_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the search space that is ready, and with the jobs that there are already."""
    write_mnist(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cvtrain"])
    words = ["-m", "hydra/sweeper=optuna", *MLP, "trainer.duration=2st", "sweep=search"]
    assert cli.run([*words, "hydra.sweeper.n_trials=2"]) == 0
    folder = tmp_path / "outputs/sweep/search"
    two = jobs(folder)
    assert len(two) == 2
    assert all(set(j["swept"]) == {"optimizer.lr", "optimizer.weight_decay"} for j in two.values())
    assert all(0.001 <= float(job["swept"]["optimizer.lr"]) <= 0.3 for job in two.values())
    capsys.readouterr()
    assert cli.run([*words, "hydra.sweeper.n_trials=3"]) == 0
    assert capsys.readouterr().out.count("finished before") == 2
    three = jobs(folder)
    assert {name: three[name]["figure"] for name in two} == {n: two[n]["figure"] for n in two}
    assert len(three) == 3


@pytest.mark.nightly
def test_as_on_a_cluster(tmp_path: Path) -> None:
    write_mnist(tmp_path / "digits")
    words = ["hydra/launcher=submitit_local", *MLP, "seed=0,1", "trainer.duration=2st"]
    process = begun(tmp_path, *words)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert [job["state"] for job in jobs(tmp_path / "mine").values()] == ["done"] * 2


# GPUs


@pytest.mark.parametrize(("number", "expected"), [(1, [(0,), (1,), (0,)]), (2, [(0, 1)] * 3)])
def test_gpus_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: list[tuple[int, ...]]
) -> None:
    """As many jobs on each as on any other; what ended makes room."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with (
        gpus.taken(tmp_path, number) as first,
        gpus.taken(tmp_path, number) as second,
        gpus.taken(tmp_path, number) as third,
    ):
        assert [first, second, third] == expected
    with gpus.taken(tmp_path, number) as first:
        assert first == expected[0]
        if number == 1:
            with gpus.taken(tmp_path, 1) as second:
                assert second == (1,)
            with gpus.taken(tmp_path, 1) as again:
                assert again == (1,)


def test_one_gpu_is_everybodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with gpus.taken(tmp_path / "none", 1) as taken:
        assert taken == ()
    assert not (tmp_path / "none").exists()


# Words


@pytest.mark.parametrize("path", ["/a b/c(1)", "it's", "x\\", "x\\'y", "ä=1,2", "", "null"])
def test_a_path_as_it_was_typed(path: str) -> None:
    assert plain(ready(f"data.root={path}")) == f"data.root={path}"
