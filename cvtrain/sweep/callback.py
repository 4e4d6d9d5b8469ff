"""What Hydra calls at the end of a sweep (`hydra.callbacks` of configs/config.yaml)."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from cvtrain.errors import CvtrainError
from cvtrain.report.sweep import write_leaderboard


class Leaderboard(Callback):
    """Writes and prints the sweep's leaderboard."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        try:
            lines = write_leaderboard(Path(config.hydra.sweep.dir))
        except CvtrainError as error:  # the runs are what counts
            lines = [f"warning: no leaderboard: {error}"]
        print("\n".join(lines), flush=True)
