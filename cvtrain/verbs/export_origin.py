"""Where an export comes from, and what is written beside its file."""

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from cvtrain.compose import Composed
from cvtrain.engine.checkpoint import best_of
from cvtrain.exports import folder
from cvtrain.exports.card import Origin, card
from cvtrain.exports.check import Difference
from cvtrain.exports.subject import Subject
from cvtrain.exports.usage import loading, usage
from cvtrain.resume import read_run_checkpoint
from cvtrain.targets import resolve
from cvtrain.trained.inputs import Inputs
from cvtrain.trained.network import Network, described, of_config, of_run
from cvtrain.trained.runs import find
from cvtrain.trained.start import Start
from cvtrain.verbs.summary import read_papers

CPU = torch.device("cpu")
FIGURES = ("top1_err", "top5_err", "mAP")  # that papers give


def place(run: str, composed: Composed) -> Path:
    """Where an export goes that is not told: into the working directory, never into the run."""
    if not run:
        return Path(f"export_{composed.choices['model']}")
    path = find(run).resolve()
    home = path.parent.parent if path.parent.name == "checkpoints" else path
    name = f"export_{home.name if home.is_dir() else home.stem}"
    inside = home.is_dir() and Path.cwd().resolve().is_relative_to(home)
    return home.with_name(name) if inside else Path(name)


def of_the_run(run: str, composed: Composed, overrides: list[str]) -> tuple[Network, Origin]:
    """Raises CheckpointError, ConfigError."""
    network = of_run(run, composed, overrides, device=CPU)
    path = best_of(find(run))
    state = read_run_checkpoint(path)
    home = path.absolute().parent.parent
    name = _name_of(home / "summary.json") or network.config.model.args["_target_"].split(".")[-1]
    position = state["position"]
    kept = f"{home.name}, step {position.get('step')}{', averaged' if state.get('ema') else ''}"
    metrics = position.get("metrics") or {}
    said = dict(network.config.published)
    paper = _told(said, str(said.get("source", ""))) or paper_of(name)
    trained = f"trained on {type_name(network)} ({kept})"
    return network, Origin(name, state["config"], trained, metrics, paper)


def of_model(composed: Composed, overrides: list[str]) -> tuple[Network, Origin]:
    start = Start.read(composed, overrides)
    config = start.composed.config
    network = of_config(start, described(config), device=CPU)
    weights = start.pretrained.name if start.pretrained else config.init.weights or "random"
    name = composed.choices["model"]
    return network, Origin(name, start.composed.text, weights, {}, paper_of(name))


def type_name(network: Network) -> str:
    return str(network.config.data.args["_target_"]).rpartition(".")[2]


def _name_of(summary: Path) -> str:
    try:
        return str(json.loads(summary.read_text()).get("model") or "")
    except (OSError, ValueError, AttributeError):
        return ""


def paper_of(model: str) -> str:
    """What its paper says, if any."""
    paper = read_papers().get(model, {})
    return _told(paper, "; ".join(str(paper[k]) for k in ("error_of", "source") if k in paper))


def _told(figures: Any, source: str) -> str:
    told = [f"{name} {figures[name]}" for name in FIGURES if name in figures]
    return f"{', '.join(told)} ({source})" if told else ""


# What lies beside the file


def write_companions(
    draft: Path,
    network: Network,
    origin: Origin,
    subject: Subject,
    format: str,
    checked: list[Difference],
) -> None:
    settings, classes = Inputs(network, CPU).settings(), classes_of(network)
    file = next(file.name for file in draft.iterdir())
    code = code_of(network, subject, format, file, settings)
    text = card(origin, subject, checked, settings=settings, classes=classes, file=file, code=code)
    (draft / folder.CARD).write_text(text, encoding="utf-8")
    (draft / folder.CLASSES).write_text(as_json(classes), encoding="utf-8")
    (draft / folder.INPUT).write_text(as_json(settings), encoding="utf-8")
    (draft / folder.CONFIG).write_text(origin.text, encoding="utf-8")


def as_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def classes_of(network: Network) -> Any:
    """Names in the order of the outputs; of several heads, by head."""
    info = network.source.info
    if info.columns:
        return {name: list(of) for name, of in info.columns.items()}
    return list(info.shown)


def code_of(
    network: Network, subject: Subject, format: str, file: str, settings: dict[str, Any]
) -> str:
    if format != "safetensors":
        about = "A picture's path follows, as in `python run.py cat.jpg`:"
        if "proposals" in subject.inputs:
            return "It takes the proposals of a picture beside it: see the inputs above."
        return f"{about}\n\n```python\n{usage(format, file, subject, settings)}\n```"
    again = f"`cvtrain predict model=... model.pretrained={file} source=cat.jpg`, or as a start:"
    lines = f"{again} `cvtrain model=... model.pretrained={file}`."
    if len(subject.outputs) > 1 and not subject.detects:
        return lines
    return f"{lines}\n\n```python\n{_loading(network, file)}\n```"


def _loading(network: Network, file: str) -> str:
    config, info = network.config, network.source.info
    target = resolve(config.model.args["_target_"], nn.Module, config.trust)
    given = {name: value for name, value in config.model.args.items() if name != "_target_"}
    taken = inspect.signature(target).parameters
    outputs = len(info.classes) + (config.model.task == "detection")
    known = {"num_classes": outputs, "in_channels": network.channels, "image_size": network.size}
    given = OmegaConf.to_container(OmegaConf.create(given))  # type: ignore[assignment]
    return loading(target, {k: v for k, v in known.items() if k in taken} | given, file)
