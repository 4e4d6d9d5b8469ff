"""A `_target_` is code: only classes of what is allowed are ever looked up, wherever it stands."""

import os
import pickle
import pydoc
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import HERE, Case, checkpoint, forge

pytestmark = pytest.mark.fault("S2")

REFUSED = r"error\[TARGET\]: "
STRANGER = "written_by_a_stranger"  # a module that can be imported, and shows that it was


class Lure:
    """A folder of things that create `marker` as soon as they are run, loaded or imported."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.marker, self.folder = folder / "code_has_run", folder
        touch = f"open({str(self.marker)!r}, 'w').close()\n"
        (folder / f"{STRANGER}.py").write_text(f"{touch}class Network: pass\n")
        (folder / "hubconf.py").write_text(f"{touch}def network(): pass\n")
        (folder / "file.pkl").write_bytes(pickle.dumps(self))
        torch.save(self, folder / "file.pt")
        self.env = {"PYTHONPATH": os.pathsep.join([str(HERE), str(folder)])}

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)

    def arguments(self, target: str) -> dict[str, Any]:
        """With which a call of the target would create the marker."""
        if target.endswith("hub.load"):
            local = {"source": "local", "trust_repo": True}
            return {"repo_or_dir": str(self.folder), "model": "network", **local}
        return {
            "system": {"command": f"touch {self.marker}"},
            "open": {"file": str(self.marker), "mode": "w"},
            "numpy.load": {"file": f"{self.folder}/file.pkl", "allow_pickle": True},
            "torch.load": {"f": f"{self.folder}/file.pt", "weights_only": False},
            "import_module": {"name": STRANGER},
            "write_atomic": {"path": str(self.marker), "text": ""},
            "Network": {},
        }[next(end for end in ENDS if target.endswith(end))]

    def typed(self, key: str, target: str) -> list[str]:
        """A new node `key` of the config that names the target and its arguments."""
        return [f"++{key}._target_={target}"] + [
            f"++{key}.{name}={value!r}" for name, value in self.arguments(target).items()
        ]


ENDS = ("system", "open", "numpy.load", "torch.load", "import_module", "write_atomic", "Network")
ELSEWHERE = [
    "os.system",
    "logging.os.system",
    "builtins.open",
    "numpy.load",
    "torch.load",
    "torch.hub.load",
    f"{STRANGER}.Network",
]
# They begin with the name of an allowed package, and lead out of it.
WITH_AN_ALLOWED_PREFIX = [
    "torch.nn.functional.torch.hub.load",
    "torch.nn.functional.importlib.import_module",
    "torchvision.models._api.importlib.import_module",
    "torchvision.models.detection.faster_rcnn.torch.load",
    "torch.optim.swa_utils.torch.load",
    "cvtrain.engine.rundir.os.system",
    "cvtrain.files.write_atomic",
]


@pytest.fixture
def lure(tmp_path: Path) -> Lure:
    return Lure(tmp_path / "lure")


@pytest.mark.parametrize("target", ELSEWHERE + WITH_AN_ALLOWED_PREFIX)
def test_the_lure_works(lure: Lure, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks the name up and calls it does create the marker."""
    monkeypatch.syspath_prepend(lure.folder)
    monkeypatch.delitem(sys.modules, STRANGER, raising=False)
    arguments = lure.arguments(target)
    if target.endswith("write_atomic"):
        arguments["path"] = Path(arguments["path"])
    pydoc.locate(target)(**arguments)
    assert lure.marker.exists()


@pytest.mark.parametrize("target", ELSEWHERE + WITH_AN_ALLOWED_PREFIX)
def test_typed(mlp: Case, lure: Lure, target: str) -> None:
    mlp.overrides += ["~model.hidden", "~model.dropout"]
    mlp.overrides.remove("model.hidden=[16]")
    mlp.run(
        *lure.typed("model", target), env=lure.env, code=2, last=REFUSED + f".*{target}", state=None
    )
    assert not lure.marker.exists()


@pytest.mark.parametrize(
    "target",
    [
        "builtins.eval",
        "pathlib.Path.write_text",
        "cvtrain.cli.main",
        "torch.utils.cpp_extension.load_inline",
        "torch.nn.functional",
        "torch.optim.Optimizer.step",
        "torch.nn.functional.linear",
        "torchvision.models.get_model",
        "cvtrain",
        "",
        "null",
        "[a]",
        "..os",
    ],
)
def test_typed_and_neither_class_nor_factory(mlp: Case, target: str) -> None:
    mlp.run(f"model._target_={target}", code=2, last=r"error\[(TARGET|CONFIG)\]: ", state=None)


@pytest.mark.parametrize("target", ["os.system", "torch.nn.functional.torch.hub.load"])
@pytest.mark.parametrize("key", ["data", "data.augment.flip", "task", "optimizer", "scheduler"])
def test_in_any_group(mlp: Case, lure: Lure, key: str, target: str) -> None:
    mlp.run(
        *lure.typed(key, target), env=lure.env, code=2, last=REFUSED + f".*{target}", state=None
    )
    assert not lure.marker.exists()


@pytest.mark.parametrize("target", ["os.system", "torch.nn.functional.torch.hub.load"])
def test_in_a_config_file(mlp: Case, lure: Lure, tmp_path: Path, target: str) -> None:
    folder = tmp_path / "theirs/model"
    folder.mkdir(parents=True)
    arguments = "".join(f"{name}: {value}\n" for name, value in lure.arguments(target).items())
    (folder / "theirs.yaml").write_text(
        f"_target_: {target}\ntask: classification\ninput: any\n{arguments}"
    )
    mlp.overrides = [word for word in mlp.overrides if not word.startswith("model")]
    mlp.run(
        *("model=theirs", "--config-dir", str(folder.parent)),
        env=lure.env,
        code=2,
        last=REFUSED + f".*{target}",
        state=None,
    )
    assert not lure.marker.exists()


def test_by_interpolation(mlp: Case, lure: Lure) -> None:
    mlp.overrides += ["~model.hidden", "~model.dropout"]
    mlp.overrides.remove("model.hidden=[16]")
    mlp.run(
        *("+published.first=os", "+published.second=${published.first}.system"),
        *("model._target_=${published.second}", f"+model.command='touch {lure.marker}'"),
        env=lure.env,
        code=2,
        last=REFUSED + r".*os\.system",
        state=None,
    )
    assert not lure.marker.exists()


def test_by_the_name_of_an_optimizer(mlp: Case, lure: Lure) -> None:
    """`optimizer=torch` makes a target of a name."""
    mlp.overrides.remove("optimizer.lr=0.02")
    target = "torch.optim.swa_utils.torch.load"
    arguments = [f"+optimizer.{key}={value!r}" for key, value in lure.arguments(target).items()]
    mlp.run(
        *("optimizer=torch", "optimizer.name=swa_utils.torch.load", "~optimizer.lr", *arguments),
        env=lure.env,
        code=2,
        last=REFUSED,
        state=None,
    )
    assert not lure.marker.exists()


@pytest.mark.parametrize("key", ["model.norm_layer", "model.more.norm_layer"])
def test_inside_an_argument(mlp: Case, lure: Lure, key: str) -> None:
    """What a network is given beyond its own keys is never made into an object."""
    mlp.overrides.remove("model.hidden=[16]")
    mlp.run(
        *("model=torchvision", "model.name=resnet18", *lure.typed(key, "os.system")),
        env=lure.env,
        code=2,
        last=r"error\[(TARGET|CONFIG)\]: ",
        state=None,
    )
    assert not lure.marker.exists()


def stored_config(kind: str, text: str, marker: Path) -> Any:
    mlp = "cvtrain.models.mlp.MLP"
    return {
        "model": text.replace(mlp, f"{STRANGER}.Network"),
        "nested": text.replace(
            "augment: {}", f"augment: {{x: {{_target_: os.system, command: 'touch {marker}'}}}}"
        ),
        "prefix": text.replace(mlp, "torch.nn.functional.torch.hub.load"),
        "tag": f"a: !!python/object/apply:os.system ['touch {marker}']",
        "number": 7,
    }[kind]


@pytest.mark.parametrize(
    ("kind", "code", "line"),
    [
        ("model", 4, rf"{REFUSED}.*model\._target_={STRANGER}\.Network"),
        ("nested", 4, rf"{REFUSED}.*data\.augment\.x\._target_=os\.system"),
        ("prefix", (2, 4), r"error\[(TARGET|RESUME-CHANGED)\]: .*model\._target_"),
        ("tag", 4, r"error\[\S+\]: "),
        ("number", 4, r"error\[\S+\]: "),
    ],
)
@pytest.mark.parametrize("resume", ["resume=auto", "resume={file}"])
def test_stored_in_a_checkpoint(
    mlp: Case, lure: Lure, kind: str, code: int, line: str, resume: str
) -> None:
    mlp.run("trainer.duration=1st")
    text = checkpoint(mlp.run_dir / "checkpoints/last.pt")["config"]
    stored = stored_config(kind, text, lure.marker)
    assert stored != text
    path = forge(mlp, config=stored)
    if "auto" not in resume:  # from another run directory
        mlp = Case(mlp.folder.with_name("other"), *mlp.overrides, inputs=mlp.inputs)
    mlp.run(
        *(resume.format(file=path), "trainer.duration=2st", "resume_allow=[trainer.duration]"),
        env=lure.env,
        code=code,
        last=line,
        state="unseen",
    )
    assert not lure.marker.exists()
