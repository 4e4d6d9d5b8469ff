"""A run's network somewhere else."""

from pathlib import Path

import pytest
import torch
from tiny import command, write_data

from cvtrain.compose import compose_config
from cvtrain.trained.network import of_run


@pytest.mark.parametrize("by", ["typed", "environment"])
def test_data_that_have_moved(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`data_dir=` of today, whichever way the run had its own."""
    write_data("mnist", tmp_path / "then")
    words = ["model=mlp", "data=mnist", "debug=smoke", "hydra.run.dir=run"]
    mine = {"CVTRAIN_DATA": str(tmp_path / "then")}
    if by == "typed":
        words.append(f"data_dir={tmp_path / 'then'}")
    done = command(*words, cwd=tmp_path, env=mine if by == "environment" else None)
    assert done.returncode == 0, done.stderr
    monkeypatch.delenv("CVTRAIN_DATA", raising=False)
    now = tmp_path / "now, with a comma"
    network = of_run(
        *(str(tmp_path / "run"), compose_config([]), [f"data_dir={now}"]),
        device=torch.device("cpu"),
    )
    assert network.config.data.args["root"] == str(now)
    assert network.config.data_dir == str(now)
