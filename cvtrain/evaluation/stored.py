"""Is what an evaluation gives what the checkpoint says? To the last bit, if nothing differs."""

import math
from dataclasses import asdict
from typing import Any

import torch

from cvtrain.build_loaders import eval_batch_size
from cvtrain.config import Config, EvalSplit, below, flat
from cvtrain.engine.distributed import Ranks
from cvtrain.engine.machine import device_name, pick_precision
from cvtrain.engine.summary import versions
from cvtrain.errors import CheckpointError

# What an evaluation's figures hang on, of a config,
KEYS = ("data", "task", "eval", "trainer.channels_last", "trainer.compile", "trainer.deterministic")
# but for where data lie and what only training asks for.
OTHER = (
    *("data.args.root", "data.args.url", "data.args.sha256", "data.augment", "data.sampler"),
    *("data.batch_size", "data.limit", "eval.every", "eval.batch_size"),
)
# Of figures that need not be exact; per cent count samples that are on the edge.
CLOSE = {"rel_tol": 0.01, "abs_tol": 0.05}


def differing(
    stored: Config,
    now: Config,
    state: dict[str, Any],
    fingerprint: str,
    device: torch.device,
    ranks: Ranks,
) -> list[str]:
    """`what old -> new` of all that may change the figures; empty if they have to be the same."""
    old, new = settings_of(stored, device), settings_of(now, device)
    old |= {"threads": state["threads"], "versions": state["versions"]}
    old |= {"device": state.get("device", device_name(device)), "processes": state["world_size"]}
    if "precision" in state:
        old["precision"] = state["precision"]
    new |= {"threads": torch.get_num_threads(), "versions": versions()}
    new |= {"device": device_name(device), "processes": ranks.world_size}
    if device.type == "cuda":  # which does the work
        old["threads"] = new["threads"]
    texts = [
        f"{name} {_short(old.get(name))} -> {_short(new.get(name))}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]
    return texts + ["other data"] * (not texts and state["fingerprint"] != fingerprint)


def settings_of(config: Config, device: torch.device) -> dict[str, Any]:
    """By the names that are typed."""
    kept = {
        key.replace(".args.", "."): value
        for key, value in flat(asdict(config)).items()
        if below(key, KEYS) and not below(key, OTHER)
    }
    kept["eval.batch_size"] = eval_batch_size(config)
    kept["precision"] = str(pick_precision(config.trainer.precision, device))
    if config.eval.split is EvalSplit.train:
        kept["data.limit"] = config.data.limit
    return kept


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {of}" for name, of in value.items()) or "none"
    return "null" if value is None else str(value)


def compared(
    figures: dict[str, float],
    state: dict[str, Any],
    differs: list[str],
    where: str,
    *,
    exact: bool = True,
) -> tuple[str, CheckpointError | None]:
    """A line that says what came of it, and the error, if the figures should be the same.

    To the last digits, but for those of COCO's measure, of which there are two engines. Not
    `exact`, on a device that picks its algorithms by the clock, they are only close.
    """
    position = state["position"]
    step, evaluated_at = position.get("step"), position.get("evaluated_at")
    metrics = position.get("metrics") or {}
    if not metrics or evaluated_at != step:
        return f"none: the checkpoint, of step {step}, was not evaluated when it was written", None
    if differs:
        more = f" and {len(differs) - 4} more" if len(differs) > 4 else ""
        return f"not compared, for settings differ: {', '.join(differs[:4])}{more}", None
    now = {f"val/{name}": value for name, value in figures.items()}
    common = {name: (now[name], metrics[name]) for name in metrics if name in now}
    wrong = {name: pair for name, pair in common.items() if pair[0] != pair[1]}
    if not wrong:
        return f"exactly these {len(common)} figures, of step {step}", None
    text = ", ".join(f"{name} is {ours!r}, stored {old!r}" for name, (ours, old) in wrong.items())
    if all(math.isclose(*pair, rel_tol=1e-9) for pair in wrong.values()):
        return f"these {len(common)} figures, of step {step}, but for their last digits", None
    if not exact and all(math.isclose(*pair, **CLOSE) for pair in wrong.values()):
        return f"close, as a GPU is without trainer.deterministic=true: {text}", None
    fix = "the images evaluated have changed, or the file has, or the code: look at each"
    what = f"not the figures stored with the checkpoint: {text}"
    return "OTHER FIGURES: see the error", CheckpointError(what, where, fix, name="EVAL-DIFFERS")
