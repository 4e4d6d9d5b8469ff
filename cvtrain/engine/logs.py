"""Where figures go: `metrics.jsonl` (the truth), TensorBoard, the terminal."""

import json
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cvtrain.files import write_atomic, writing
from cvtrain.hparams import write_settings
from cvtrain.tasks.base import Picture

log = logging.getLogger(__name__)


def speak(level: int) -> None:
    """Our messages, bare, to stderr; the root logger stays Hydra's or the caller's."""
    ours = logging.getLogger("cvtrain")
    ours.setLevel(level)
    ours.propagate = False
    ours.handlers = [logging.StreamHandler(sys.stderr)]


def _leave_tensorboard_alone(args: threading.ExceptHookArgs) -> None:
    """Its writer's thread hands every error to us besides: one warning is enough."""
    if not type(args.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(args)


class Logs:
    """Writers of one run; silent (`active=False`) on every process but the main one."""

    def __init__(self, run_dir: Path, *, active: bool = True, bar: bool = False) -> None:
        self.run_dir, self.active = run_dir, active
        self.file = run_dir / "metrics.jsonl"
        self.tensorboard: Any = None
        self._excepthook = threading.excepthook
        self.bar = tqdm(disable=not (bar and active), unit="step", dynamic_ncols=True, leave=False)

    def open(self, *, step: int, evaluated_at: int, total: int | None) -> None:
        """Begin, or go on after `step`: later lines, of steps that are taken anew, are dropped."""
        self.bar.reset(total)
        self.bar.update(step)
        if not self.active:
            return
        kept = [
            line
            for line in self.read()
            if line["step"]
            <= (evaluated_at if any(key.startswith("val/") for key in line) else step)
        ]
        if self.file.exists():
            write_atomic(self.file, "".join(json.dumps(line) + "\n" for line in kept))
        try:
            from torch.utils.tensorboard import SummaryWriter

            threading.excepthook = _leave_tensorboard_alone
            self.tensorboard = SummaryWriter(str(self.run_dir), purge_step=step)
        except Exception as error:
            self._without_tensorboard(error)
        # All of this step is purged, its pictures too, and the lines that stay are drawn anew.
        for line in kept:
            if line["step"] == step:
                self._points(line)

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
        self._points({"step": step, **values})

    def _points(self, line: dict[str, Any]) -> None:
        def add(writer: Any) -> None:
            for name, value in line.items():
                if name not in ("step", "epoch"):
                    writer.add_scalar(name, value, line["step"])

        self._show(add)

    def picture(self, name: str, picture: Picture, *, step: int) -> None:
        self._show(lambda writer: writer.add_image(name, picture, step, dataformats="HWC"))

    def text(self, name: str, table: str, *, step: int) -> None:
        """A table as it is, line by line."""
        indented = "\n".join(f"    {line}" for line in table.splitlines())  # Markdown's verbatim
        self._show(lambda writer: writer.add_text(name, indented, step))

    def hparams(self, settings: dict[str, Any], figures: dict[str, float]) -> None:
        """What was set, beside the curves that tell what came of it: `figures` are among them."""
        self._show(lambda writer: write_settings(self.run_dir, settings))

    def _show(self, add: Callable[[Any], None]) -> None:
        """Let `add` write to TensorBoard; a run must not end for its plots."""
        if self.tensorboard is not None:
            try:
                add(self.tensorboard)
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
        self._show(lambda writer: writer.close())
        self.tensorboard = None
        threading.excepthook = self._excepthook  # the jobs of a sweep share a process
