"""The shape of the code: which way imports run, what is loaded when, how long things are."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cvtrain"
FILES = sorted(PACKAGE.rglob("*.py"))

# What each room may import besides itself and the leaves; `room.module` is that module alone.
LEAVES = ("errors", "seeding", "files", "outcome")
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "errors": (),
    "seeding": (),
    "files": ("errors",),
    "outcome": ("errors",),
    "hparams": (),
    "durations": (),
    "config": ("durations",),
    "recipes": ("config",),
    "compose": ("config", "recipes"),
    "origins": ("compose", "config", "recipes"),
    "usage": (),
    "launch": ("compose",),
    "rank": ("compose", "engine.signals", "launch", "verbs"),
    "gpus": (),
    "job": ("compose", "gpus", "launch", "verbs"),
    "sweep": ("compose", "config", "engine.signals", "job", "recipes", "report.sweep"),
    "cli": ("compose", "config", "job", "recipes", "sweep", "usage"),
    "__main__": ("cli",),
    "verbs": (
        *("build", "build_loaders", "compose", "config", "data", "engine", "metrics", "origins"),
        *("resume", "targets", "tasks.base", "trained"),
        *("checks", "evaluation", "exports", "media", "report"),
    ),
    "trained": (
        *("build", "compose", "config", "data", "engine", "pretrained", "resume", "targets"),
        "tasks.base",
    ),
    "evaluation": (
        *("build", "build_loaders", "compose", "config", "data", "engine", "metrics", "targets"),
        *("models.detection.nms", "tasks", "trained"),
    ),
    "media": ("data",),
    "exports": ("data", "tasks.base"),
    "checks": ("build_loaders", "config", "data", "report", "tasks.base", "metrics"),
    "report": ("config", "data.batch", "hparams", "metrics", "origins"),
    "resume": ("compose", "config", "engine.checkpoint"),
    "targets": ("config", "models.zoo"),
    "build_loaders": ("config", "data", "engine.distributed", "targets"),
    "build": (
        "build_loaders",
        "config",
        "data",
        "durations",
        "engine",
        "models.heads",
        "targets",
        "tasks.base",
    ),
    "pretrained": (
        "data.download",
        "engine.checkpoint",
        "models.resnet",
        "models.torchvision_fpn",
        "models.zoo",
    ),
    "engine": ("config", "data.batch", "data.loader", "data.source", "hparams", "tasks.base"),
    "tasks": ("metrics", "data.batch"),
    # Reached through `_target_` only, and not knowing of each other:
    "models": (),
    "data": (),
    "metrics": (),
}

# `file:function` or `file` to the reason why it is longer than the rule.
LONGER: dict[str, str] = {}


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def module_of(file: Path) -> str:
    """`data.loader` of cvtrain/data/loader.py; empty for the package itself."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(tree: ast.Module, module: str, *, package: bool = False) -> Iterator[str]:
    """The modules of ours that `module` imports anywhere, without the leading `cvtrain.`."""
    here = ["cvtrain", *filter(None, module.split("."))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = len(here) + package - node.level
            base = ".".join([*(here[:up] if node.level else []), *filter(None, [node.module])])
            # `from cvtrain.data import loader` imports a module, `import Loader` a name of one.
            names = [
                f"{base}.{alias.name}" if is_module(f"{base}.{alias.name}") else base
                for alias in node.names
            ]
        else:
            continue
        for name in names:
            if name == "cvtrain" or name.startswith("cvtrain."):
                yield name.removeprefix("cvtrain").removeprefix(".")


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def allowed(importer: str, imported: str) -> bool:
    room, target = importer.partition(".")[0], imported.partition(".")[0]
    if imported == "" or (room == target and room not in LEAVES):  # the package has the version
        return True
    if room not in LEAVES and imported in LEAVES:
        return True
    return any(imported == name or imported.startswith(f"{name}.") for name in MAY_IMPORT[room])


def test_every_room_is_in_the_table() -> None:
    rooms = {module_of(file).partition(".")[0] for file in FILES} - {""}
    assert rooms == MAY_IMPORT.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: module_of(file) or "cvtrain")
def test_imports_run_one_way(file: Path) -> None:
    module, package = module_of(file), file.name == "__init__.py"
    imported = set(imports_of(parse(file), module, package=package))
    if module == "":
        assert not imported
    else:
        assert not {name for name in imported if not allowed(module, name)}


@pytest.mark.parametrize(
    ("source", "module", "expected"),
    [
        ("from cvtrain import models", "data.batch", "models"),
        ("import cvtrain.models.zoo as z", "data.batch", "models.zoo"),
        ("def f():\n    from cvtrain.build import make", "engine.plan", "build"),
        ("from cvtrain.data import mnist", "engine.plan", "data.mnist"),
        ("from ..data.cifar import CIFAR10", "engine.plan", "data.cifar"),
        ("from .. import build", "engine.plan", "build"),
        ("from cvtrain.compose import flatten", "seeding", "compose"),
    ],
)
def test_every_spelling_of_an_import_is_seen(source: str, module: str, expected: str) -> None:
    assert list(imports_of(ast.parse(source), module)) == [expected]
    assert not allowed(module, expected)


@pytest.mark.parametrize(
    "code",
    [
        "import cvtrain, cvtrain.cli, cvtrain.compose, cvtrain.config, cvtrain.errors",
        "import sys; sys.argv = ['cvtrain', '--help']\n"
        "from cvtrain.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0",
        "from cvtrain.compose import compose_config\n"
        "compose_config(['model=resnet20', 'data=cifar10', 'optimizer=adam'])",
    ],
    ids=["import", "help", "compose"],
)
def test_a_mistake_is_answered_without_torch(code: str) -> None:
    check = "import sys\nprint(sorted({'torch', 'torchvision'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_files_and_functions_are_short() -> None:
    long = {}
    for file in FILES:
        name = str(file.relative_to(PACKAGE))
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if lines > 300:
            long[name] = lines
        for node in ast.walk(parse(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > 40:
                    long[f"{name}:{node.name}"] = length
    assert long.keys() == LONGER.keys(), long  # a reason that is no longer needed goes, too


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("file", FILES, ids=lambda file: module_of(file) or "cvtrain")
def test_nothing_that_is_loaded_can_run(file: Path) -> None:
    tree = parse(file)
    for name, call in calls(tree):
        if name == "torch.load":
            switches = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert switches.get("weights_only") == "True", f"line {call.lineno}"
        # Each of these runs what a hostile file asks for.
        assert name not in {"pickle.load", "pickle.loads", "torch.hub.load", "eval", "exec"}
        assert not name.endswith("instantiate"), f"line {call.lineno}: see targets.resolve"
        assert not any(keyword.arg == "allow_pickle" for keyword in call.keywords)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "pickle"):
            assert not {alias.name for alias in node.names} & {"load", "loads"}
