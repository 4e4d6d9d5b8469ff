"""`cvtrain [train]`: one run, from its config to its summary."""

import json
import logging
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from cvtrain.build import build_parts, build_plan
from cvtrain.compose import Composed, flatten
from cvtrain.config import Switch
from cvtrain.engine.checkpoint import Checkpoints
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.logs import Logs, speak
from cvtrain.engine.machine import device_name, pick_device, pick_precision, settings
from cvtrain.engine.pictures import draw_evaluation
from cvtrain.engine.plan import Parts
from cvtrain.engine.rundir import RunDir, read_status
from cvtrain.engine.signals import StopFlag
from cvtrain.engine.summary import (
    draw_curves,
    git_revision,
    report_of,
    settings_of,
    table,
    time_lines,
    versions,
    write_summary,
)
from cvtrain.engine.trainer import Trainer
from cvtrain.errors import CvtrainError, MachineError, Stopped
from cvtrain.resume import changed_keys, check_same, checkpoint_file, read_run_checkpoint
from cvtrain.trained.start import Start, input_of
from cvtrain.verbs.train_files import write_end, write_start

log = logging.getLogger(__name__)


def train(composed: Composed, overrides: list[str]) -> float | None:
    """Run a config to its end. Returns the primary figure, which a sweep optimises."""
    ranks = Ranks.from_environment()
    speak(logging.INFO if ranks.is_main else logging.WARNING)
    return Run(composed, overrides, ranks).run()


class Run:
    """One run: its directory, what it goes on from, its outcome in `status.json`."""

    def __init__(self, composed: Composed, overrides: list[str], ranks: Ranks) -> None:
        self.ranks = ranks
        self.overrides = [o for o in overrides if not o.startswith(("resume=", "hydra.run.dir="))]
        self.typed_dir = any(o.startswith("hydra.run.dir=") for o in overrides)
        resume = composed.config.resume
        self.device = pick_device(composed.config.trainer.device, ranks, composed.gpus)
        self.path = composed.run_dir
        file = checkpoint_file(resume)
        if resume not in (None, "auto") and file is None:
            self.path = Path(str(resume))
        # Read before anything is made: a bad file leaves nothing behind.
        self.state = read_run_checkpoint(file) if file else None
        goes_on = self.state or (resume and Checkpoints(self.path).last)
        self.start = Start(composed) if goes_on else Start.read(composed, overrides)
        self._settle(self.start.composed)

    def _settle(self, composed: Composed) -> None:
        self.composed, self.config = composed, composed.config
        trainer = self.config.trainer
        trainer.precision = pick_precision(trainer.precision, self.device)

    def run(self) -> float | None:
        resume = self.config.resume is not None and self.state is None
        with (
            StopFlag().listening() as stop,
            self.ranks.joined(self.device),
            settings(self.config.trainer),
        ):
            directory = None
            if self.ranks.is_main:
                directory = RunDir.take(self.path, resume=resume, exact=self.typed_dir)
            self.path = Path(self.ranks.agree(str(directory.path if directory else "")))
            try:
                with self.ranks.together():
                    return self._train(directory, stop)
            except Stopped as stopped:
                saved = Checkpoints(self.path).last is not None
                if directory and saved:
                    directory.status(state="preempted", exit_code=stopped.code, error=stopped.name)
                elif directory:
                    directory.discard()
                raise self._go_on(stop) if saved else stopped from None
            except BaseException as error:
                if directory:
                    self._record(directory, error)
                raise
            finally:
                if directory:
                    directory.release()

    def _record(self, directory: RunDir, error: BaseException) -> None:
        """The outcome, or no trace of a run that was refused."""
        code = error.code if isinstance(error, CvtrainError) else 1
        if code == 2:
            directory.discard()
            return
        name = error.name if isinstance(error, CvtrainError) else type(error).__name__
        with suppress(MachineError):  # where nothing can be written now, the error says so
            directory.status(state="failed", exit_code=code, error=name, message=str(error))

    def _train(self, directory: RunDir | None, stop: StopFlag) -> float | None:
        checkpoints = Checkpoints(self.path)
        if directory:
            checkpoints.clean()
        if self.config.resume is not None and self.state is None:
            self.state = checkpoints.load_last()
            if self.state is None:
                log.info("resume: no checkpoint in %s yet, starting at step 0", self.path)
        if self.state is not None:  # what the weights settled when the run began
            followed = self.state.get("followed", {})
            self.start = self.start.following(followed, self.overrides)
            self._settle(self.start.composed)
        changed = self._check_config()
        if self.state and not changed and self._is_finished(self.state):
            log.info("finished already: %s", self.path)
            return self._finished_figure()
        self._announce()
        parts = build_parts(self.config, device=self.device, ranks=self.ranks)
        trainer = self._trainer(parts, directory, checkpoints, stop)
        self._begin(trainer, changed)
        state = trainer.state()  # on every process: it sums over them
        if directory:
            checkpoints.warn_if_short_of_space(state)
            self._write_start(directory, parts)
        try:
            trainer.fit()
            if stop:
                raise self._go_on(stop)
            return self._finish(trainer, directory)
        finally:
            trainer.logs.close()
            parts.train.close()
            parts.val.close()

    def _write_start(self, directory: RunDir, parts: Parts) -> None:
        """What is known before the first step."""
        write_start(self.path, self.start, self.overrides, self.device, parts.source.bad)
        directory.status(state="running", exit_code=None, error=None)

    def _is_finished(self, state: dict[str, Any]) -> bool:
        """Not where a damaged last checkpoint was passed over: the rest is trained again."""
        status = read_status(self.path)
        return status.get("state") == "done" and status.get("step") == state["position"]["step"]

    def _check_config(self) -> dict[str, str]:
        if self.state is None:
            return {}
        allow, trust = self.config.resume_allow, self.config.trust
        check_same("world_size", self.state["world_size"], self.ranks.world_size, allow=allow)
        return changed_keys(self.state["config"], self.composed.text, allow=allow, trust=trust)

    def _announce(self) -> None:
        choices, sets = self.composed.choices, self.composed.recipe_sets
        precision = self.config.trainer.precision
        log.info(
            f"{choices['model']} on {choices['data']}, {self.device}, {precision}: {self.path}"
        )
        if (count := self.ranks.world_size) > 1:
            batch, threads = self.config.data.batch_size, torch.get_num_threads()
            log.info("%d processes share each batch of %d, threads: %d", count, batch, threads)
        if choices["recipe"] != "none":
            words = " ".join(f"{key}={value}" for key, value in sets.items())
            log.info("recipe %s sets %s", choices["recipe"], words)

    def _trainer(
        self, parts: Parts, directory: RunDir | None, checkpoints: Checkpoints, stop: StopFlag
    ) -> Trainer:
        progress = self.config.trainer.progress
        bar = progress is Switch.yes or (progress is Switch.auto and sys.stderr.isatty())
        return Trainer(
            parts,
            build_plan(self.config, parts.train.steps),
            config=self.config.trainer,
            eval_config=self.config.eval,
            device=self.device,
            seed=self.config.seed,
            run=directory,
            logs=Logs(self.path, active=self.ranks.is_main, bar=bar),
            checkpoints=checkpoints,
            stop=stop,
            ranks=self.ranks,
            about={
                "config": self.composed.text,
                "classes": list(parts.source.info.classes),
                "columns": {name: list(c) for name, c in parts.source.info.columns.items()},
                "input": input_of(self.config, parts.source),
                "followed": self.start.followed,
                "fingerprint": parts.source.info.fingerprint,
                "world_size": self.ranks.world_size,
                "threads": torch.get_num_threads(),
                "device": device_name(self.device),
                "precision": str(self.config.trainer.precision),
                "versions": versions(),
            },
        )

    def _begin(self, trainer: Trainer, changed: dict[str, str]) -> None:
        """Load what the run goes on from, or the weights that it starts from."""
        if self.state is not None:
            old, now = self.state, trainer.about
            allow = self.config.resume_allow
            check_same("data", old["fingerprint"], now["fingerprint"], allow=allow)
            for name in ("threads", "versions"):
                if old[name] != now[name]:
                    log.warning("warning: not bit-exact: %s %s -> %s", name, old[name], now[name])
            trainer.load(self.state, source=str(self.path))
            log.info("resumed at step %d", trainer.position.step)
            for key, change in changed.items():
                log.info("changed: %s: %s", key, change)
            if any(key.startswith("eval.") for key in changed):  # what was evaluated is owed anew
                position = trainer.position
                position.evaluated_at = min(position.evaluated_at, position.step - 1)
            if changed:
                trainer.parts.schedule.apply(trainer.parts.optimizer, trainer.position.step)
                rate = trainer.parts.optimizer.param_groups[0]["lr"]
                log.info("the schedule is computed anew: the next rate is %g", rate)
        else:
            self.start.load(trainer.parts.model, trainer.parts.source)

    def _go_on(self, stop: StopFlag) -> Stopped:
        """What happened and what to type, once there is a checkpoint."""
        if not self.ranks.is_main:  # which knows of no checkpoint
            return Stopped(
                f"stopped by {stop.name}", f"process {self.ranks.rank}", signum=stop.signum
            )
        extra = self.composed.extra_dir
        words = [*(["--config-dir", str(extra)] if extra else []), *self.overrides]
        words += ["resume=auto", f"hydra.run.dir={self.path}"]
        step = read_status(self.path).get("step")
        return Stopped(
            f"stopped by {stop.name} at step {step}; the checkpoint is saved",
            "",
            f"to go on type: cvtrain {shlex.join(words)}",
            signum=stop.signum,
        )

    def _finish(self, trainer: Trainer, directory: RunDir | None) -> float | None:
        primary = trainer.parts.task.primary.name
        figure = trainer.position.metrics.get(f"val/{primary}")
        if directory is None:
            return figure
        source, logs, choices = trainer.parts.source, trainer.logs, self.composed.choices
        about = {**self._about(trainer), **report_of(trainer.evaluator, source)}
        summary = write_summary(
            self.path, trainer.position, trainer.parts, device=self.device, about=about
        )
        draw_curves(logs.read(), self.path / "curves.png", primary=primary)
        split, step = self.config.eval.split, trainer.position.step
        pictures = draw_evaluation(trainer.evaluator, source, logs, split=split, step=step)
        settings = settings_of(flatten(self.composed.text), choices)
        logs.hparams(settings, trainer.position.metrics)
        logs.bar.close()
        directory.status(state="done", exit_code=0, error=None)
        lines = table(
            summary,
            self.config.published,
            title=f"{choices['model']} on {choices['data']}",
            run_dir=self.path,
            time=time_lines(summary, trainer.parts.train),
            pictures=pictures,
        )
        page = write_end(self.path) if self.config.report else []
        print(lines, *page, trainer.profile.table, sep="\n", end="", flush=True)
        return figure

    def _about(self, trainer: Trainer) -> dict[str, Any]:
        """What the summary says of the run besides its figures."""
        choices = self.composed.choices
        return {
            "train/images_per_sec": trainer.images_per_sec,
            "model": choices["model"],
            "data": choices["data"],
            "recipe": choices["recipe"],
            "seed": self.config.seed,
            "published": self.config.published,
            "git": git_revision(Path(__file__).parent),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }

    def _finished_figure(self) -> float | None:
        summary = json.loads((self.path / "summary.json").read_text())
        return summary.get(f"val/{summary['primary']}")
