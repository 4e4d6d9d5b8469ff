"""Where figures go: `metrics.jsonl` (the truth), TensorBoard, the terminal."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cvtrain.engine.rundir import write_atomic, writing

log = logging.getLogger(__name__)


class Logs:
    """Writers of one run; silent (`active=False`) on every process but the main one."""

    def __init__(self, run_dir: Path, *, active: bool = True, bar: bool = False) -> None:
        self.run_dir, self.active = run_dir, active
        self.file = run_dir / "metrics.jsonl"
        self.tensorboard: Any = None
        self.bar = tqdm(disable=not (bar and active), unit="step", dynamic_ncols=True, leave=False)

    def open(self, *, step: int, evaluated_at: int, total: int | None) -> None:
        """Begin, or go on after `step`: later lines, of steps that are taken anew, are dropped."""
        self.bar.reset(total)
        self.bar.update(step)
        if not self.active:
            return
        if self.file.exists():
            kept = [
                line
                for line in self.read()
                if line["step"]
                <= (evaluated_at if any(key.startswith("val/") for key in line) else step)
            ]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            write_atomic(self.file, text)
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(
                str(self.run_dir), purge_step=step + 1 if step else None
            )
        except Exception as error:  # a run must not end for its plots
            self._without_tensorboard(error)

    def read(self) -> list[dict[str, Any]]:
        """Every whole line written so far."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        whole = []
        for line in lines:
            try:
                whole.append(json.loads(line))
            except ValueError:
                break  # cut off by a kill in mid-line: the last one
        return whole

    def scalars(self, values: dict[str, float], *, step: int, epoch: float) -> None:
        """One line of `metrics.jsonl` and a point on each TensorBoard curve."""
        if not self.active:
            return
        with writing(self.file), self.file.open("a") as file:
            file.write(json.dumps({"step": step, "epoch": round(epoch, 4), **values}) + "\n")
        if self.tensorboard is not None:
            try:
                for name, value in values.items():
                    self.tensorboard.add_scalar(name, value, step)
                self.tensorboard.flush()
            except Exception as error:
                self._without_tensorboard(error)

    def _without_tensorboard(self, error: Exception) -> None:
        self.tensorboard = None
        log.warning("warning: TensorBoard is off for this run: %s; metrics.jsonl goes on", error)

    def progress(self, values: dict[str, float]) -> None:
        self.bar.set_postfix({name.split("/")[1]: f"{value:.4g}" for name, value in values.items()})

    def line(self, text: str) -> None:
        if self.active:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        self.bar.close()
        if self.tensorboard is not None:
            self.tensorboard.close()
