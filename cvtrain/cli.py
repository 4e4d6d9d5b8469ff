"""The `cvtrain` command: verb, config, run; errors become one line and an exit code, here alone."""

import os
import sys
import textwrap
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cvtrain import __version__
from cvtrain.config import AUGMENT, GROUPS, options
from cvtrain.errors import ConfigError, CvtrainError
from cvtrain.usage import completions, verb_help


@dataclass(frozen=True)
class Verb:
    """The function `NAME(composed, overrides, **keys)` of cvtrain/verbs/NAME.py."""

    about: str
    keys: dict[str, str] = field(default_factory=dict)  # its own, with their defaults; no config's


VERBS = {
    "train": Verb("train a network (the default); -m: a sweep", {"sweep": ""}),
    "eval": Verb(
        "measure a run again, on any data; several runs together; two against each other",
        {"run": "", "compare": "", "merge": "nms", "out": ""},
    ),
    "predict": Verb(
        "what a network says of pictures or a video",
        {"run": "", "source": "", "out": "predictions", "format": "jsonl", "top_k": "5"}
        | {"threshold": "", "nms": "", "draw": "true", "show": "false"}
        | {"precision": "", "compile": "false"},
    ),
    "export": Verb(
        "a network for other programs, checked against itself",
        {"run": "", "format": "onnx", "out": ""},
    ),
    "summary": Verb("layers, sizes, parameters, multiply-adds", {"input": "", "depth": "3"}),
    "features": Verb(
        "what a layer makes of images, into a .npz",
        {"run": "", "layer": "", "source": "data", "pool": "avg", "out": "features.npz"},
    ),
    "proposals": Verb("the regions that a detector's RPN proposes", {"run": "", "out": ""}),
    "check": Verb("look at a data set before training on it", {"out": "check"}),
    "report": Verb(
        "the page of a run, report.html, or the leaderboard of a sweep",
        {"run": "", "sweep": "", "out": ""},
    ),
    "why": Verb("the value of a key and what set it"),
    "doctor": Verb("this machine: versions, devices, disk, data, extras"),
}

# Hydra's own flags: it reads the command line as it is.
HYDRA_FLAGS = {
    *("-m", "--multirun", "-c", "--cfg", "-i", "--info", "--resolve", "-p", "--package"),
    *("-sc", "--shell-completion", "--hydra-help", "--experimental-rerun", "--version-base"),
}
SHOWING = {"-c", "--cfg", "-i", "--info", "-sc", "--shell-completion", "--hydra-help"}
VALUE_FLAGS = {"-c", "--cfg", "-p", "--package", "-cd", "--config-dir", "--experimental-rerun"}


def main() -> None:
    """Entry point: leaves through `sys.exit` with the codes that the README lists."""
    arguments = sys.argv[1:]
    try:
        code = run(arguments)
    except CvtrainError as error:
        if "traceback=true" in arguments:
            traceback.print_exc()
        print(error.line(), file=sys.stderr)
        code = error.code
    except KeyboardInterrupt:  # before the run takes the signals over
        print("cvtrain: stopped before anything was written", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # `cvtrain --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line; raises CvtrainError. Returns the exit code, 0."""
    if {"-h", "--help"} & set(arguments):
        print(help_text(next((word for word in arguments if word in VERBS), "")))
        return 0
    if "--version" in arguments:
        print(f"cvtrain {__version__}")
        return 0
    flags, words = split_flags(arguments)
    verb, words = split_verb(words)
    keys, overrides = split_keys(verb, words)
    many = bool({"-m", "--multirun"} & set(flags))
    if many and verb != "train":
        raise ConfigError(f"cvtrain {verb} has no sweep", "-m", "leave out -m")
    name = keys.pop("sweep", "") if verb == "train" else ""
    if name and not many:
        raise ConfigError("a single run is no sweep", f"sweep={name}", "type cvtrain -m for one")
    asked = any(word.startswith("query=") for word in words)
    if asked and {"-sc", "--shell-completion"} & set(flags):
        complete(flags, words)
    elif many and not set(flags) & SHOWING:
        from cvtrain.sweep.run import sweep

        sweep(flags, overrides, name, extra_config_dir(flags))
    elif any(flag.split("=")[0] in HYDRA_FLAGS for flag in flags):
        hydra_main(flags, overrides)
    else:
        from cvtrain.job import run_job

        run_job(overrides, extra_dir=extra_config_dir(flags), verb=verb, keys=keys)
    return 0


def split_flags(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Flags to the front: Hydra's parser breaks on one between two overrides."""
    flags, words = [], []
    rest = iter(arguments)
    for word in rest:
        if not word.startswith("-") or "=" in word.split("--")[0]:
            words.append(word)
            continue
        flags.append(word)
        if word in VALUE_FLAGS:
            flags.extend([next(rest, "")])
    unknown = [
        f for f in flags if f.startswith("-") and f.split("=")[0] not in HYDRA_FLAGS | VALUE_FLAGS
    ]
    if unknown:
        raise ConfigError(f"there is no flag {unknown[0]}", "", "type key=value, or see --help")
    return flags, words


def split_verb(words: list[str]) -> tuple[str, list[str]]:
    if not words or "=" in words[0] or words[0].startswith(("~", "+")):
        return "train", words
    if words[0] not in VERBS:
        verbs = ", ".join(VERBS)
        raise ConfigError(
            f"{words[0]} is neither a verb nor key=value", "", f"verbs: {verbs}; see --help"
        )
    return words[0], words[1:]


def split_keys(verb: str, words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The verb's own keys as they were typed, or their defaults, and what is left for the config.

    Raises ConfigError for a key of another verb.
    """
    keys, rest = dict(VERBS[verb].keys), []
    for word in words:
        key, equals, value = word.partition("=")
        owners = [name for name, other in VERBS.items() if equals and key in other.keys]
        if verb in owners:
            keys[key] = value
        elif owners:
            fix = f"type cvtrain {owners[0]} {word}"
            raise ConfigError(f"{key} is a key of cvtrain {' and '.join(owners)}", word, fix)
        elif verb == "why" and not value and not word.startswith("~"):
            keys["names"] = f"{keys.get('names', '')} {key}".strip()  # what it is asked for
        else:
            rest.append(word)
    return keys, rest


def extra_config_dir(flags: list[str]) -> Path | None:
    for flag, value in zip(flags, [*flags[1:], ""], strict=False):
        name, _, inline = flag.partition("=")
        if name in ("-cd", "--config-dir"):
            folder = Path(inline or value)
            if not folder.is_dir():
                raise ConfigError(f"--config-dir {folder} is no directory")
            return folder
    return None


def hydra_main(flags: list[str], overrides: list[str]) -> None:
    """Hand the command line to Hydra for a flag of its own, as --cfg: it shows what would run."""
    from hydra.core.hydra_config import HydraConfig

    from cvtrain.job import run_job
    from cvtrain.recipes import with_recipe
    from cvtrain.sweep.run import run_hydra

    def again() -> float | None:  # --experimental-rerun
        config = HydraConfig.get()
        run_dir = Path(config.runtime.output_dir)
        return run_job(
            list(config.overrides.task), extra_dir=extra_config_dir(flags), run_dir=run_dir
        )

    words, *_ = with_recipe(overrides, extra_config_dir(flags))
    run_hydra(flags, words, again)


def complete(flags: list[str], words: list[str]) -> None:
    """Answer a shell: verbs and their keys, then Hydra's groups and keys. An error says nothing."""
    line = os.environ.get("COMP_LINE", "cvtrain ")
    ours, rest = completions(line, {name: verb.keys for name, verb in VERBS.items()})
    print("\n".join(ours))
    os.environ["COMP_LINE"] = rest
    with suppress(CvtrainError):
        hydra_main(flags, words)


def help_text(verb: str = "") -> str:
    """Of a verb, or of everything."""
    if verb not in ("", "train"):
        return verb_help(verb, VERBS[verb].about, VERBS[verb].keys)
    groups = "\n".join(_row(group, options(group)) for group in (*GROUPS, AUGMENT))
    rows = []
    for name, one in VERBS.items():
        rows.append(f"  {name:<10} {one.about}")
        if one.keys:
            rows.append(_row("", [f"{key}={default}" for key, default in one.keys.items()]))
    verbs = "\n".join(rows)
    return f"""cvtrain {__version__}: train the classic vision networks from one command

  cvtrain                                              train the small default on its own data
  cvtrain model=resnet20 data=cifar10                  train, with the paper's recipe
  cvtrain model=lenet5 data=mnist optimizer=adam trainer.duration=5ep seed=1
  cvtrain -m model=lenet5,cnn optimizer.lr=0.1,0.01    sweep: four runs
  cvtrain model=resnet18 data=folder data.root=photos  your own images, a folder for each class
  cvtrain debug=smoke model=resnet50 data=cifar10      two steps of everything
  cvtrain model=lenet5 data=mnist --cfg job            show the config instead of running it
  cvtrain summary model=resnet50                       its layers and what they cost
  cvtrain features run=outputs/... layer=layer3 source=photos

verbs (cvtrain VERB key=value ...; cvtrain VERB --help)
{verbs}

groups (group=choice, then group.key=value; augment=[flip,mixup], then data.augment.mixup.alpha=0.5)
{groups}

other keys
  seed data_dir resume resume_allow trust report traceback init.weights init.reset_head
  hydra.run.dir
  durations: 20ep (epochs), 500st (optimizer steps), 30min (trainer.duration only)"""


def _row(name: str, words: list[str]) -> str:
    text = f"  {name:<10} {' '.join(words)}"
    return textwrap.fill(text, 96, subsequent_indent=" " * 13, break_on_hyphens=False)
