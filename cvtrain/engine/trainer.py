"""The loop, in straight lines.

A run is steps. Step n takes the n-th batch of an order that is a function of the seed, draws its
random numbers from (seed, n), sets its rate from n: nothing depends on how the run got there, so a
killed run that is resumed ends with the same bits.
"""

import math
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from cvtrain.config import EvalConfig, Precision, TrainerConfig
from cvtrain.data.batch import to_device
from cvtrain.engine.checkpoint import Checkpoints, load_weights
from cvtrain.engine.distributed import Ranks, without_sync
from cvtrain.engine.ema import Ema
from cvtrain.engine.evaluate import evaluate
from cvtrain.engine.logs import Logs
from cvtrain.engine.machine import seed_generators
from cvtrain.engine.plan import Parts, Plan, Position
from cvtrain.engine.rundir import RunDir
from cvtrain.engine.signals import StopFlag
from cvtrain.engine.watch import FiniteWatch, non_finite_error, non_finite_tensor
from cvtrain.errors import NonFiniteError
from cvtrain.seeding import seed_for


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
        if config.compile:
            parts.model.compile()
        self.model = ranks.wrap(parts.model, device)
        fp16 = config.precision is Precision.fp16
        reduced = torch.float16 if fp16 else torch.bfloat16
        enabled = fp16 or config.precision is Precision.bf16
        self.autocast = torch.autocast(device.type, reduced, enabled=enabled)
        self.scaler = torch.amp.GradScaler(device.type, enabled=fp16)
        self.params = [p for p in parts.model.parameters() if p.requires_grad]
        self.watch, self.position = FiniteWatch(), Position()
        self.window: dict[str, Tensor] = {}
        self.grad_norm = torch.tensor(0.0)
        self.new_best = self.stopped = self.time_is_up = False
        self.images_per_sec: float | None = None

    # The run

    def fit(self) -> None:
        """Train to the end of the plan, or until a stop is asked for. Raises NonFiniteError."""
        position, steps = self.position, self.parts.train.steps
        evaluated_at, total = position.evaluated_at, self.plan.total
        self.logs.open(step=position.step, evaluated_at=evaluated_at, total=total)
        self.stop.finish_the_step()
        self.clock = time.perf_counter()
        self.window_clock, self.window_step = self.clock, position.step
        self.boundary()
        while not self.finished:
            epoch, start = divmod(position.step, steps)
            for micro_batches in self.parts.train.epoch(epoch, start):
                self.train_step(micro_batches)
                self.boundary()
                if self.finished:
                    break

    @property
    def finished(self) -> bool:
        position, plan = self.position, self.plan
        return (
            self.stopped
            or self.time_is_up
            or (plan.total is not None and position.step >= plan.total)
            or position.waited >= (self.config.early_stop or math.inf)
        )

    def boundary(self) -> None:
        """Between two steps: log, evaluate, save, as the plan has it; also what a resume owes."""
        position, plan = self.position, self.plan
        self._tick()
        self.stopped = self.ranks.any(bool(self.stop), self.device)
        if plan.seconds is not None:
            self.time_is_up = self.ranks.any(position.seconds >= plan.seconds, self.device)
        at_end = self.finished and not self.stopped
        if position.step and self.window and (at_end or position.step % plan.log_every == 0):
            self.log()
        due = position.step and (at_end or position.step % plan.eval_every == 0)
        if due and position.evaluated_at != position.step and not self.stopped:
            self.validate()
        if position.step and (
            due or self.stopped or self.finished or position.step % plan.checkpoint_every == 0
        ):
            self.save()

    def train_step(self, micro_batches: tuple[Any, ...]) -> None:
        """One optimizer step over this process's part of the global batch."""
        parts, step = self.parts, self.position.step
        parts.schedule.apply(parts.optimizer, step)
        seed_generators(seed_for(self.seed, "step", step, self.ranks.rank), self.device)
        batches = [to_device(batch, self.device) for batch in micro_batches]
        counts = self._counts(batches) if len(batches) > 1 else {}
        total = torch.zeros((), device=self.device)
        for number, batch in enumerate(batches):
            with without_sync(self.model, last=number == len(batches) - 1):
                with self.autocast:
                    pairs = parts.task.losses(self.model, parts.transform(batch))
                counts = counts or self.ranks.sum({name: pair[1] for name, pair in pairs.items()})
                loss = self._mean(pairs, counts)
                # DDP averages gradients over processes; the counts are already global.
                self.scaler.scale(loss * self.ranks.world_size).backward()
            total += loss.detach()
            self._add(pairs)
        self.scaler.unscale_(parts.optimizer)
        gradients = [p.grad for p in self.params if p.grad is not None]
        # On the CPU a loop over small tensors is the faster way, on a GPU one grouped kernel.
        self.grad_norm = get_total_norm(gradients, foreach=self.device.type != "cpu")
        # Under fp16 an infinite gradient is the scaler's business: it skips and scales down.
        finite = total.isfinite() & (self.grad_norm.isfinite() | self.scaler.is_enabled())
        self.watch.step(finite, lambda: self._non_finite(step, pairs, batches))
        if self.config.clip_norm is not None:
            clip_grads_with_norm_(self.params, self.config.clip_norm, self.grad_norm)
        self.scaler.step(parts.optimizer)
        self.scaler.update()
        parts.optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        self.position.step += 1
        self.logs.bar.update()

    def _counts(self, batches: list[Any]) -> dict[str, Tensor]:
        counts: dict[str, Tensor] = {}
        for batch in batches:
            for name, count in self.parts.task.counts(self.model, batch).items():
                counts[name] = counts.get(name, 0) + count
        return self.ranks.sum(counts)

    def _mean(self, pairs: dict[str, tuple[Tensor, Tensor]], counts: dict[str, Tensor]) -> Tensor:
        """The loss: of each named one that carries a gradient, its sum over the global count."""
        # A count of 0 (no positive in the batch) comes with a sum of 0.
        return sum(  # type: ignore[return-value]
            total / counts[name].to(total.dtype).clamp(min=torch.finfo(total.dtype).tiny)
            for name, (total, _) in pairs.items()
            if total.requires_grad
        )

    # Figures

    def _add(self, pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
        for name, (total, count) in pairs.items():
            kind = "loss" if total.requires_grad else "figure"
            for key, value in ((f"{name}/{kind}", total), (f"{name}/count", count)):
                self.window[key] = self.window.get(key, 0) + value.detach().double()

    def log(self) -> None:
        """Means since the last log point; the one place where training waits for the device."""
        position, plan = self.position, self.plan
        totals = {key: value.item() for key, value in self.ranks.sum(self.window).items()}
        values, loss = {}, 0.0
        for key in totals:
            name, _, kind = key.rpartition("/")
            if kind != "count":
                values[f"train/{name}"] = totals[key] / (totals[f"{name}/count"] or 1)
                loss += values[f"train/{name}"] if kind == "loss" else 0
        values["train/loss"] = loss
        values["train/lr"] = self.parts.optimizer.param_groups[0]["lr"]
        values["train/grad_norm"] = self.grad_norm.item()
        seconds = time.perf_counter() - self.window_clock
        images = (position.step - self.window_step) * plan.batch_size
        self.images_per_sec = values["train/images_per_sec"] = images / max(seconds, 1e-9)
        self.watch.check()
        self.logs.scalars(values, step=position.step, epoch=self.epoch)
        self.shown = {k: v for k, v in values.items() if k in ("train/loss", "train/top1_err")}
        self.logs.progress({**self.shown, "train/images_per_sec": values["train/images_per_sec"]})
        self.window = {}
        self.window_clock, self.window_step = time.perf_counter(), position.step

    @property
    def epoch(self) -> float:
        return self.position.step / self.parts.train.steps

    def validate(self) -> None:
        """Evaluate the (averaged) network; pick the best. A stop in between leaves it owed."""
        position, primary = self.position, self.parts.task.primary
        begin = time.perf_counter()
        figures = evaluate(
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
        self.window_clock += time.perf_counter() - begin
        if figures is None:
            self.stopped = True
            return
        values = {f"val/{name}": value for name, value in figures.items()}
        if not all(torch.isfinite(torch.tensor(list(values.values())))):
            raise self._error(position.step, values, [])
        position.evaluated_at, position.metrics = position.step, values
        value = values[f"val/{primary.name}"]
        sign = -1 if primary.higher_is_better else 1
        self.parts.schedule.observe(sign * value)
        self.new_best = position.best is None or sign * value < sign * position.best
        position.waited = 0 if self.new_best else position.waited + 1
        if self.new_best:
            position.best, position.best_step = value, position.step
        self.logs.scalars(values, step=position.step, epoch=self.epoch)
        shown = {**getattr(self, "shown", {}), **values}
        text = "  ".join(f"{name} {number:.4g}" for name, number in shown.items())
        self.logs.line(f"epoch {self.epoch:6.2f}  step {position.step:>6}  {text}")

    def _tick(self) -> None:
        now = time.perf_counter()
        self.position.seconds += now - self.clock
        self.clock = now

    def _non_finite(
        self, step: int, pairs: dict[str, tuple[Tensor, Tensor]], batches: list[Any]
    ) -> NonFiniteError:
        values = {name: (total / count).item() for name, (total, count) in pairs.items()}
        values["grad_norm"] = self.grad_norm.item()
        values["lr"] = self.parts.optimizer.param_groups[0]["lr"]
        ids = [i for b in batches if hasattr(b, "ids") for i in b.ids.tolist()]
        return self._error(step, values, ids)

    def _error(self, step: int, values: dict[str, float], ids: list[int]) -> NonFiniteError:
        samples = [self.parts.source.name_of(index) for index in ids]
        return non_finite_error(values, step=step, samples=samples, saved=self.checkpoints.last)

    # State

    def state(self) -> dict[str, Any]:
        """Tensors and plain values only; no random state, for there is none to keep."""
        window = {key: value.item() for key, value in self.ranks.sum(self.window).items()}
        return {
            "model": self.parts.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.parts.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "schedule": self.parts.schedule.state_dict(),
            "position": {**vars(self.position), "window": window},
            **self.about,
        }

    def load(self, state: dict[str, Any], *, source: str) -> None:
        """Go on from `state`. Raises CheckpointError when it is another network's."""
        load_weights(self.parts.model, state["model"], source=source, reset=False)
        self.ema.load_state_dict(state["ema"])
        optimizer = self.parts.optimizer
        # torch restores the old rates and decays too; the config's are meant to hold.
        fresh = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        optimizer.load_state_dict(state["optimizer"])
        for group, settings in zip(optimizer.param_groups, fresh, strict=True):
            group.update(settings)
        self.scaler.load_state_dict(state["scaler"])
        self.parts.schedule.load_state_dict(state["schedule"])
        self.position = Position(**state["position"])
        share = float(self.ranks.is_main)  # the sums were taken over all processes
        self.window = {
            key: torch.tensor(share * value, dtype=torch.float64, device=self.device)
            for key, value in self.position.window.items()
        }

    def save(self) -> None:
        """Write a checkpoint, on the main process; nothing that is not finite is ever written."""
        self.watch.check()
        state = self.state()
        # An update can overflow where loss and gradient did not.
        if bad := non_finite_tensor(state):
            raise self._error(self.position.step, {bad: math.nan}, [])
        if self.run is not None:  # the main process
            path = self.checkpoints.save(state, step=self.position.step, best=self.new_best)
            self.run.status(step=self.position.step, epoch=self.epoch, last_checkpoint=path.name)
        self.new_best = False
        self._tick()
