"""`cvtrain VERB --help`, and a shell's completion, in a real bash."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import command

from cvtrain.cli import VERBS, split_keys, split_verb
from cvtrain.compose import compose_config
from cvtrain.config import options
from cvtrain.usage import EXAMPLES, KEYS, completions, verb_help

KEYS_OF = {name: verb.keys for name, verb in VERBS.items()}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verbs_help(verb: str) -> None:
    """Its keys with their defaults, each explained, and an example that the command takes."""
    text = verb_help(verb, VERBS[verb].about, VERBS[verb].keys)
    assert text.startswith(f"cvtrain {verb}: {VERBS[verb].about}\n")
    assert all(len(line) <= 100 for line in text.splitlines())
    for key, default in VERBS[verb].keys.items():
        explained = rf"^  {re.escape(f'{key}={default}')} +\S"
        assert re.search(explained, text, flags=re.MULTILINE), key
    program, *words = shlex.split(EXAMPLES[verb])
    assert program == "cvtrain"
    found, rest = split_verb(words)
    keys, overrides = split_keys(found, rest)
    assert found == verb
    assert not keys.keys() - VERBS[verb].keys.keys() - {"names"}
    compose_config(overrides)


def test_nothing_is_explained_that_is_not_there() -> None:
    assert EXAMPLES.keys() == VERBS.keys()
    there = {key for keys in KEYS_OF.values() for key in keys}
    there |= {f"{verb}.{key}" for verb, keys in KEYS_OF.items() for key in keys}
    assert not KEYS.keys() - there


@pytest.mark.parametrize("words", [["predict", "--help"], ["-h", "predict"]])
def test_the_help_is_the_verbs_own(words: list[str], tmp_path: Path) -> None:
    done = command(*words, cwd=tmp_path, fresh=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("cvtrain predict: ")
    assert "top_k=5" in done.stdout
    assert "alexnet" not in done.stdout


def test_help_loads_nothing() -> None:
    code = "import sys\nfrom cvtrain.cli import run\nrun(['why', '--help'])\n"
    code += "assert not {'torch', 'hydra', 'omegaconf'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# Completion


@pytest.mark.parametrize(
    ("line", "ours", "rest"),
    [
        ("cvtrain su", ["summary"], "cvtrain su"),
        ("cvtrain ", list(VERBS), "cvtrain "),
        ("cvtrain model=res", [], "cvtrain model=res"),
        ("cvtrain model=lenet5 su", [], "cvtrain model=lenet5 su"),
        ("cvtrain summary model=v", [], "cvtrain model=v"),
        ("cvtrain summary ", ["input=", "depth="], "cvtrain "),
        ("cvtrain features run=a lay", ["layer="], "cvtrain lay"),
        ("cvtrain why seed model=lenet5 optimizer.", [], "cvtrain model=lenet5 optimizer."),
        ("/opt/bin/cvtrain -m model=r", [], "/opt/bin/cvtrain -m model=r"),
    ],
)
def test_what_is_completed(line: str, ours: list[str], rest: str) -> None:
    assert completions(line, KEYS_OF) == (ours, rest)


@pytest.fixture(scope="module")
def bin_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the command as an installed one is."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "cvtrain"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cvtrain "$@"\n')
    script.chmod(0o755)
    return folder


def replies(bin_dir: Path, *lines: str) -> list[list[str]]:
    """What bash would offer after each line, by the function that the command gave it."""
    script = ['eval "$(cvtrain -sc install=bash)"', "complete -p cvtrain"]
    for line in lines:
        words = [*line.split(), *([""] if line.endswith(" ") else [])]
        script += [
            f"COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)} COMP_CWORD={len(words) - 1}",
            f"COMP_WORDS=({shlex.join(words)})",
            "hydra_bash_completion",
            'echo "== ${COMPREPLY[*]}"',
        ]
    bash = shutil.which("bash") or pytest.skip("no bash")
    done = subprocess.run(
        [bash, "--norc", "-c", "\n".join(script)],
        cwd=bin_dir,
        env={**os.environ, "PATH": f"{bin_dir}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == ""  # it would stand in the middle of what is typed
    first, *found = done.stdout.splitlines()
    assert first.startswith("complete ")
    assert first.endswith(" -F hydra_bash_completion cvtrain")
    return [line.removeprefix("== ").split() for line in found]


def test_in_bash(bin_dir: Path) -> None:
    models, optimizer, verbs, after, wrong = replies(
        bin_dir,
        "cvtrain model=res",
        "cvtrain why seed optimizer=adam optimizer.am",
        "cvtrain su",
        "cvtrain summary data=c",
        "cvtrain there.is=none recipe=lenet",
    )
    assert models == [f"model={name}" for name in options("model") if name.startswith("res")]
    assert optimizer == ["optimizer.amsgrad="]
    assert verbs == ["summary"]
    assert after == [f"data={name}" for name in options("data") if name.startswith("c")]
    assert wrong == [f"recipe={name}" for name in options("recipe") if name.startswith("lenet")]
