"""One command from its words to its end: composed here, run here or in several processes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from cvtrain.compose import Composed, compose_config

SHARED = ("train", "eval")  # the verbs that several processes can share (`trainer.devices`)


def run_job(
    overrides: list[str],
    *,
    extra_dir: Path | None = None,
    run_dir: Path | None = None,
    verb: str = "train",
    keys: dict[str, str] | None = None,
    gpus: Path | None = None,
) -> float | None:
    """One run, alone or as a job of a sweep: the same way through. Returns its figure, if any.

    `gpus` is a folder of locks on the machine's GPUs, where several runs share them.
    """
    keys, words = keys or {}, overrides
    if keys.get("run"):  # it brings its own config; the verb puts over it what was typed
        words = [word for word in overrides if word.startswith(("trainer.", "eval.", "trust="))]
    composed = compose_config(words, extra_dir=extra_dir, run_dir=run_dir)
    trainer, number = composed.config.trainer, 1
    if trainer.devices != 1 and verb in SHARED and not of_a_launcher():
        from cvtrain.launch import launch, processes

        number = processes(trainer.devices, trainer.device)
    with chosen_gpus(composed, number, gpus) as composed:
        if number > 1:
            return launch(number, verb, composed, overrides, keys)
        do = getattr(import_module(f"cvtrain.verbs.{verb}"), verb)
        return do(composed, overrides, **keys)


def of_a_launcher() -> bool:
    """Whether torchrun, or an srun of several tasks, began this process: then it starts no others.

    (A job of a sweep under SLURM is an srun of one.)
    """
    return "WORLD_SIZE" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1


@contextmanager
def chosen_gpus(composed: Composed, number: int, locks: Path | None) -> Iterator[Composed]:
    """The config with GPUs of its own, if it has not named one and several runs share them."""
    if locks is None or composed.config.trainer.device not in ("auto", "cuda"):
        yield composed
        return
    from cvtrain.gpus import taken

    with taken(locks, number) as gpus:
        yield replace(composed, gpus=gpus)
