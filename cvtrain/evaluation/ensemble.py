"""Runs measured, and several of them as one."""

import time
from dataclasses import replace

import torch
from torch import nn

from cvtrain.compose import Composed
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.machine import settings
from cvtrain.errors import ConfigError
from cvtrain.evaluation.measured import Measured, opened
from cvtrain.evaluation.result import Result, check_same_samples
from cvtrain.evaluation.stored import compared, differing
from cvtrain.models.detection.nms import suppress
from cvtrain.tasks.ensemble import MERGES, Ensemble, Votes
from cvtrain.tasks.rows import Recorded, rows_of
from cvtrain.trained.classes import places


class Measuring:
    """`result` of one run or of several."""

    def __init__(
        self,
        composed: Composed,
        overrides: list[str],
        device: torch.device,
        merge: str,
        ranks: Ranks,
    ) -> None:
        if merge not in MERGES:
            raise ConfigError(f"merge={merge}", "", f"type merge={' or merge='.join(MERGES)}")
        self.composed, self.overrides = composed, overrides
        self.device, self.merge, self.ranks = device, merge, ranks
        self.done: dict[str, Result] = {}

    def result(self, runs: list[str]) -> Result:
        """Raises ConfigError, DataError, CheckpointError."""
        return self.together(runs) if len(runs) > 1 else self.alone(runs[0])

    def alone(self, run: str) -> Result:
        if run not in self.done:
            measured = opened(run, self.composed, self.overrides, self.device, self.ranks)
            self.done[run] = self.judged(measured, None)
            measured.loader.close()
        return self.done[run]

    def judged(self, measured: Measured, votes: Votes | None) -> Result:
        """One run's result; what it says of each sample goes into `votes`, too."""
        start, rows, config = time.perf_counter(), rows_of(measured.task), measured.config
        keepers = [keeper for keeper in (rows, votes) if keeper is not None]
        with settings(config.trainer):
            evaluator = measured.evaluate(Recorded(measured.task, keepers), self.device)
            figures, state = evaluator.compute(), measured.state
            differs = ["the data, for the training split, by which they are known, is not there"]
            if measured.whole_data:
                fingerprint = measured.source.info.fingerprint
                known = (fingerprint, self.device, self.ranks)
                differs = differing(measured.stored, config, state, *known)
        if rows is not None:
            rows.finish(evaluator, self.ranks.gather)
        seconds = time.perf_counter() - start
        exact = self.device.type == "cpu" or config.trainer.deterministic
        said, error = compared(figures, state, differs, str(measured.path), exact=exact)
        network = replace(measured.network, model=nn.Identity())  # which takes no room
        measured = replace(measured, network=network)
        return Result([measured.run], measured, evaluator, figures, rows, seconds, said, error)

    def together(self, runs: list[str]) -> Result:
        """Each for itself, then their mean on the batches of the first."""
        if len(set(runs)) < len(runs):
            raise ConfigError("a run is named twice", f"run=[{','.join(runs)}]", "type it once")
        results, ballots = list[Result](), list[Votes]()
        for run in runs:
            measured = opened(run, self.composed, self.overrides, self.device, self.ranks)
            first = results[0].measured if results else measured
            votes = _ballot(first, measured)
            results.append(self.judged(measured, votes))
            ballots.append(votes.finish())
            if results[1:]:
                measured.loader.close()
            self.done[run] = results[-1]
        first, ids = results[0].measured, [one.rows.ids for one in results if one.rows]
        if any(of_one != ids[0] for of_one in ids):
            raise ConfigError("the runs were not measured on the same samples", "run=[...]")
        start = time.perf_counter()
        task = Ensemble(ballots, suppress, self.merge)
        rows = rows_of(task.first)
        with settings(first.config.trainer):
            evaluator = first.evaluate(Recorded(task, [rows] if rows else []), self.device)
            figures = evaluator.compute()
        first.loader.close()
        if rows is not None:
            rows.finish(evaluator, self.ranks.gather)
        seconds = time.perf_counter() - start + sum(one.seconds for one in results)
        same = sum(one.stored.startswith("exactly") for one in results)
        said = f"exactly those of {same} of the {len(runs)} runs"
        error = next((one.error for one in results if one.error), None)
        return Result(runs, first, evaluator, figures, rows, seconds, said, error, members=results)


def _ballot(first: Measured, measured: Measured) -> Votes:
    """Raises ConfigError, DataError where the runs have not learnt the same."""
    check_same_samples(first, measured, "run=[...]")
    known, own = first.source.info, measured.source.info
    if type(first.task) is not type(measured.task) or known.columns != own.columns:
        raise ConfigError(f"{measured.run} has learnt something else", f"run={first.run}")
    return Votes(measured.task, places(known.classes, own.classes))
