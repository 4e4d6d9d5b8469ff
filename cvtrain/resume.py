"""What a run goes on from, and whether it is still the same run."""

from pathlib import Path
from typing import Any

from cvtrain.compose import flatten
from cvtrain.config import bad_targets, below
from cvtrain.engine.checkpoint import read_checkpoint
from cvtrain.errors import CheckpointError, ConfigError

RUN_KEYS = {"model", "ema", "optimizer", "scaler", "schedule", "position", "config"} | {
    *("fingerprint", "world_size", "threads", "versions"),
}
# They change how a run is driven and looked at, not what it computes.
FREE = (
    *("resume", "resume_allow", "trust", "traceback", "report", "published", "init"),
    *("model.pretrained", "model.pretrained_backbone"),
    *("data_dir", "data.root", "data.url", "data.sha256"),
    *("trainer.workers", "trainer.progress", "trainer.log_every", "trainer.checkpoint_every"),
    *("trainer.threads", "trainer.device", "trainer.profile", "eval.batch_size"),
    "trainer.devices",  # of the processes there are, the checkpoint knows the number
)


def checkpoint_file(resume: str | None) -> Path | None:
    """The file that `resume=` names, if it is neither `auto` nor a run directory."""
    if resume in (None, "auto") or (Path(resume) / "checkpoints" / "checkpoints.json").exists():
        return None
    return Path(resume)


def read_run_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of a run. Raises CheckpointError, also for a mere state dict."""
    state = read_checkpoint(path)
    if not state.keys() >= RUN_KEYS or not isinstance(state["config"], str):
        raise CheckpointError(
            "holds weights, not a run",
            str(path),
            f"type init.weights={path} to start from them",
            name="CKPT-MISMATCH",
        )
    return state


def changed_keys(stored: str, text: str, *, allow: list[str], trust: list[str]) -> dict[str, str]:
    """`{key: "old -> new"}` of what differs between two configs and was named in `resume_allow`.

    Raises ConfigError (RESUME-CHANGED) for what was not named, CheckpointError (TARGET) when the
    stored config names what no config may.
    """
    old, new = _stored_keys(stored, trust), flatten(text)
    differing = {
        key: f"{old.get(key, 'not set')} -> {new.get(key, 'not set')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not below(key, FREE)
    }
    duration = (old.get("trainer.duration"), new.get("trainer.duration"))
    refused = [
        f"{key}: {change}"
        for key, change in differing.items()
        if not below(key, allow)
        # A schedule as long as the run follows the run.
        and not ("trainer.duration" in allow and (old.get(key), new.get(key)) == duration)
    ]
    if refused:
        keys = ",".join(line.partition(":")[0] for line in refused)
        raise ConfigError(
            "the run to resume had another config: " + ", ".join(refused),
            "",
            f"type the old values, or resume_allow=[{keys}]",
            name="RESUME-CHANGED",
        )
    return differing


def _stored_keys(stored: str, trust: list[str]) -> dict[str, Any]:
    try:
        keys = flatten(stored)
    except Exception as error:  # of any parser; nothing of the text was followed
        raise CheckpointError(
            f"its config is no plain YAML: {error}", "", "do not load it", name="CKPT-CORRUPT"
        ) from error
    if bad := bad_targets(keys, trust):
        raise CheckpointError(
            "its config names what no config may",
            bad[0],
            "do not load it; nothing of it was imported",
            name="TARGET",
        )
    return keys


def check_same(name: str, old: Any, new: Any, *, allow: list[str]) -> None:
    """Raises ConfigError (RESUME-CHANGED) for what no config key shows, as the data themselves."""
    if old != new and name not in allow:
        raise ConfigError(
            f"the run to resume had another {name}: {old} -> {new}",
            "",
            f"resume it as it was, or type resume_allow=[{name}]",
            name="RESUME-CHANGED",
        )
