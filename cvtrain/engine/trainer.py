"""The loop, in straight lines.

A run is steps. Step n takes the n-th batch of an order that is a function of the seed, draws its
random numbers from (seed, n), sets its rate from n: nothing depends on how the run got there, so a
killed run that is resumed ends with the same bits.
"""

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from cvtrain.config import EvalConfig, TrainerConfig
from cvtrain.data.batch import to_device
from cvtrain.engine.checkpoint import Checkpoints, load_weights
from cvtrain.engine.distributed import Ranks, without_sync
from cvtrain.engine.ema import Ema
from cvtrain.engine.evaluate import evaluate
from cvtrain.engine.logs import Logs
from cvtrain.engine.machine import mixed_precision, seed_generators
from cvtrain.engine.optim import load_optimizer
from cvtrain.engine.pictures import draw_samples
from cvtrain.engine.plan import Parts, Plan, Position
from cvtrain.engine.profile import NoProfile, Profile, profiled
from cvtrain.engine.rundir import RunDir
from cvtrain.engine.signals import StopFlag
from cvtrain.engine.stopwatch import Stopwatch
from cvtrain.engine.watch import (
    Buffers,
    FiniteWatch,
    Skips,
    non_finite_error,
    non_finite_tensor,
    step_figures,
)
from cvtrain.engine.window import Pairs, Window, added, mean_loss
from cvtrain.errors import NonFiniteError
from cvtrain.seeding import seed_for
from cvtrain.tasks.base import Evaluator


class Trainer:
    """Trains `parts` along `plan`; `about` (config text, class names) goes into checkpoints."""

    def __init__(
        self,
        parts: Parts,
        plan: Plan,
        *,
        config: TrainerConfig,
        eval_config: EvalConfig,
        device: torch.device,
        seed: int,
        run: RunDir | None,
        logs: Logs,
        checkpoints: Checkpoints,
        stop: StopFlag,
        ranks: Ranks,
        about: dict[str, Any],
    ) -> None:
        self.parts, self.plan, self.config, self.eval_config = parts, plan, config, eval_config
        self.device, self.seed, self.ranks, self.about = device, seed, ranks, about
        self.run, self.logs, self.checkpoints, self.stop = run, logs, checkpoints, stop
        self.ema = Ema(parts.model, config.ema)
        self.autocast, self.scaler = mixed_precision(config.precision, device)
        self.watch, self.skips, self.position = FiniteWatch(), Skips(config), Position()
        self.stopwatch, self.window = Stopwatch(self.position), Window()
        self.profile: NoProfile | Profile = NoProfile()
        self.model: Any = None  # as it trains, from the first step on
        self.evaluator: Evaluator | None = None  # of the last evaluation
        self.grad_norm = torch.tensor(0.0)
        self.new_best = self.stopped = self.time_is_up = False
        self.images_per_sec: float | None = None

    # The run

    def fit(self) -> None:
        """Train to the end of the plan, or until a stop is asked for. Raises NonFiniteError."""
        position, total = self.position, self.plan.total
        self.logs.open(step=position.step, evaluated_at=position.evaluated_at, total=total)
        self.stop.finish_the_step()
        if position.step == 0:
            draw_samples(self.parts, self.logs)
        self.stopwatch = Stopwatch(position)
        self.window.step, self.window.seconds = position.step, position.trained
        self.boundary()
        with profiled(self.config.profile, self.logs, self.device) as self.profile:
            while not self.finished:
                epoch, start = divmod(position.step, self.parts.train.steps)
                for micro_batches in self.parts.train.epoch(epoch, start):
                    self.stopwatch.lap("data")
                    self.train_step(micro_batches)
                    self.stopwatch.lap("compute")
                    self.boundary()
                    if self.finished:
                        break
        if self.evaluator is None and not self.stopped:
            self.evaluate()  # a run that was killed after its last one: for its pictures

    def begin_phase(self) -> None:
        """Fix what is trained from this step on; those who look at it once look again."""
        parts = self.parts
        parts.frozen.apply(parts.model, self.position.step)
        self.params = [p for p in parts.model.parameters() if p.requires_grad]
        if self.config.compile:
            parts.model.compile()
        self.model = self.ranks.wrap(parts.model, self.device)

    @property
    def finished(self) -> bool:
        position, total = self.position, self.plan.total
        enough = total is not None and position.step >= total
        patience = self.config.early_stop or math.inf
        return self.stopped or self.time_is_up or enough or position.waited >= patience

    def boundary(self) -> None:
        """Between two steps: log, evaluate, save, as the plan has it; also what a resume owes."""
        position, plan = self.position, self.plan
        self.stopped = self.ranks.stopped(self.stop)
        if plan.seconds is not None:
            self.time_is_up = self.ranks.any(position.seconds >= plan.seconds)
        at_end = self.finished and not self.stopped
        due = position.step and (at_end or position.step % plan.eval_every == 0)
        if self.window.totals and (due or position.step % plan.log_every == 0):
            self.log()
        if due and position.evaluated_at != position.step and not self.stopped:
            self.validate()
        if position.step and (
            due or self.stopped or self.finished or position.step % plan.checkpoint_every == 0
        ):
            self.save()
        self.stopwatch.lap()

    def train_step(self, micro_batches: tuple[Any, ...]) -> None:
        """One optimizer step over this process's part of the global batch."""
        parts, step = self.parts, self.position.step
        if self.model is None or step == parts.frozen.until:
            self.begin_phase()
        parts.schedule.apply(parts.optimizer, step)
        seed_generators(seed_for(self.seed, "step", step, self.ranks.rank), self.device)
        batches = [to_device(batch, self.device) for batch in micro_batches]
        before = Buffers(parts.model) if self.skips.on else None
        loss, figures = self._backward(batches)
        self.scaler.unscale_(parts.optimizer)
        gradients = [p.grad for p in self.params if p.grad is not None]
        # On the CPU a loop over small tensors is the faster way, on a GPU one grouped kernel.
        norm = get_total_norm(gradients, foreach=self.device.type != "cpu")
        # Under fp16 an infinite gradient is the scaler's business, unless it is to be skipped here.
        tolerated = self.scaler.is_enabled() and before is None
        finite = self.ranks.all(loss.isfinite() & (norm.isfinite() | tolerated))
        rate = parts.optimizer.param_groups[0]["lr"]

        def report() -> NonFiniteError:
            values, ids = step_figures(batches, figures, self.ranks)
            return self._error(step, {**values, "grad_norm": norm.item(), "lr": rate}, ids)

        if before is not None and not finite.item():  # skipping waits for the device, each step
            before.restore()
            self.logs.line(self.skips.count(self.position, report()))
        else:
            self.watch.step(finite, report)
            if self.config.clip_norm is not None:
                clip_grads_with_norm_(self.params, self.config.clip_norm, norm)
            self.scaler.step(parts.optimizer)
            self.ema.update()
            self.window.add(figures)  # nothing of a skipped step is ever logged
            self.grad_norm, self.position.skipped_in_a_row = norm, 0
        self.scaler.update()
        parts.optimizer.zero_grad(set_to_none=True)
        self.position.step += 1
        self.profile.step()
        self.logs.bar.update()

    def _backward(self, batches: list[Any]) -> tuple[Tensor, list[Pairs]]:
        """Gradients of the step's loss; that loss, and every micro-batch's named pairs."""
        parts, figures = self.parts, []
        counts = {}
        if len(batches) > 1:
            counts = self.ranks.sum(added(parts.task.counts(self.model, b) for b in batches))
        total = torch.zeros((), device=self.device)
        for number, batch in enumerate(batches):
            with without_sync(self.model, last=number == len(batches) - 1):
                with self.autocast:
                    pairs = parts.task.losses(self.model, parts.transform(batch))
                counts = counts or self.ranks.sum({name: pair[1] for name, pair in pairs.items()})
                loss = mean_loss(pairs, counts)
                # DDP averages gradients over processes; the counts are already global.
                self.scaler.scale(loss * self.ranks.world_size).backward()
            total += loss.detach()
            figures.append(pairs)
        return total, figures

    # Figures

    def log(self) -> None:
        """Means since the last log point; the one place where training waits for the device."""
        position = self.position
        values = self.window.means(self.ranks)
        self.stopwatch.lap("compute")
        values["train/lr"] = self.parts.optimizer.param_groups[0]["lr"]
        if math.isfinite(norm := self.grad_norm.item()):  # infinite only before fp16's scale fits
            values["train/grad_norm"] = norm
        self.images_per_sec = self.plan.batch_size * self.window.steps_per_second(position)
        values["train/images_per_sec"] = self.images_per_sec
        self.watch.check()
        self.logs.scalars(values, step=position.step, epoch=self.epoch)
        shown = ("train/loss", f"train/{self.parts.task.primary.name}")
        self.shown = {name: values[name] for name in shown if name in values}
        self.logs.progress({**self.shown, "train/images_per_sec": self.images_per_sec})
        self.window = Window(position.step, position.trained)

    @property
    def epoch(self) -> float:
        return self.position.step / self.parts.train.steps

    def evaluate(self) -> dict[str, float] | None:
        """The (averaged) network's figures; None when a stop came in between."""
        self.ranks.share(self.ema.model.buffers())
        self.evaluator = evaluate(
            self.ema.model,
            self.parts.val,
            task=self.parts.task,
            transform=self.parts.transform,
            device=self.device,
            autocast=self.autocast,
            ranks=self.ranks,
            stop=self.stop,
            max_batches=self.eval_config.max_batches,
        )
        figures = self.evaluator.compute() if self.evaluator else None
        self.stopwatch.lap("eval")
        self.stopped = figures is None
        return figures

    def validate(self) -> None:
        """Evaluate; pick the best. A stop in between leaves it owed."""
        position, primary = self.position, self.parts.task.primary
        self.stopwatch.lap()
        figures = self.evaluate()
        if figures is None:
            return
        values = {f"val/{name}": value for name, value in figures.items()}
        if not all(torch.isfinite(torch.tensor(list(values.values())))):
            raise self._error(position.step, values, [])
        position.evaluated_at, position.metrics = position.step, values
        value, sign = values[f"val/{primary.name}"], -1 if primary.higher_is_better else 1
        self.parts.schedule.observe(sign * value)
        self.new_best = position.judge(value, sign)
        self.logs.scalars(values, step=position.step, epoch=self.epoch)
        shown = {**getattr(self, "shown", {}), **values}.items()
        text = "  ".join(f"{name} {number:.4g}" for name, number in shown)
        self.logs.line(f"epoch {self.epoch:6.2f}  step {position.step:>6}  {text}")

    def _error(self, step: int, values: dict[str, float], ids: list[int]) -> NonFiniteError:
        samples = [self.parts.source.name_of(index) for index in ids]
        return non_finite_error(values, step=step, samples=samples, saved=self.checkpoints.last)

    # State

    def state(self) -> dict[str, Any]:
        """Tensors and plain values only; no random state, for there is none to keep."""
        return {
            "model": self.parts.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.parts.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "schedule": self.parts.schedule.state_dict(),
            "position": asdict(self.position) | {"window": self.window.state(self.ranks)},
            **self.about,
        }

    def load(self, state: dict[str, Any], *, source: str) -> None:
        """Go on from `state`. Raises CheckpointError when it is another network's."""
        load_weights(self.parts.model, state["model"], source=source, reset=False)
        self.ema.load_state_dict(state["ema"])
        load_optimizer(self.parts.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.parts.schedule.load_state_dict(state["schedule"])
        self.position = Position(**state["position"])
        self.window.load(self.position.window, self.ranks, self.device)

    def save(self) -> None:
        """Write a checkpoint, on the main process; nothing that is not finite is ever written."""
        self.stopwatch.lap()
        self.watch.check()
        state = self.state()
        # An update can overflow where loss and gradient did not.
        if bad := non_finite_tensor(state):
            raise self._error(self.position.step, {bad: math.nan}, [])
        if self.run is not None:  # the main process
            path = self.checkpoints.save(state, step=self.position.step, best=self.new_best)
            self.run.status(step=self.position.step, epoch=self.epoch, last_checkpoint=path.name)
        self.new_best = False
        self.stopwatch.lap("save")
