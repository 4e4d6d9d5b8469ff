"""`cvtrain summary`: a network's layers and what they cost; on shapes alone, nothing is read.

The table is torchinfo's, without its multiply-adds: those are counted by operation, on torch's meta
device, and are of convolutions and matrix products only. A detector is run on the CPU, with random
weights on noise: what it does to boxes depends on how many it finds.
"""

import inspect
import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torchinfo
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torchinfo.layer_info import LayerInfo

from cvtrain.build import input_size
from cvtrain.compose import Composed
from cvtrain.config import Config
from cvtrain.data.batch import DataInfo
from cvtrain.data.source import Source
from cvtrain.engine.logs import speak
from cvtrain.errors import ConfigError
from cvtrain.targets import resolve
from cvtrain.trained.network import build, described

META = torch.device("meta")
PAPERS = Path(__file__).parents[1] / "models" / "papers.yaml"
COLUMNS = ("input_size", "output_size", "kernel_size", "num_params")
# Names under which a network keeps what is beside its main path, as shortcuts and auxiliary heads.
BESIDE = ("shortcut", "skip", "aux")
NO_LAYERS = ("Identity", "Sequential")  # where they are empty
VIEWS = ("_unsafe_view",)  # that do not say so


@dataclass
class Costs:
    """Of one forward pass in evaluation, batch size 1."""

    parameters: int
    multiply_adds: int = 0
    activations: int = 0  # bytes: what all operations give, in fp32
    layers: Counter[str] = field(default_factory=Counter)
    beside: Counter[str] = field(default_factory=Counter)  # of these, off the main path
    functions: Counter[str] = field(default_factory=Counter)  # operations outside of layers
    idle: dict[str, int] = field(default_factory=dict)  # parts that only training uses: parameters
    table: str = ""

    @property
    def used(self) -> int:
        """The parameters of evaluation."""
        return self.parameters - sum(self.idle.values())


def summary(composed: Composed, overrides: list[str], *, input: str, depth: str) -> None:
    """Print the table and the totals. Raises ConfigError for what the network cannot take."""
    speak(logging.INFO)
    if not depth.isdigit() or depth == "0":
        raise ConfigError(f"depth={depth} is no number of levels", "", "type depth=3")
    name, config = composed.choices["model"], composed.config
    data_given = any(word.startswith(("data=", "data.", "recipe=")) for word in overrides)
    source, size, why = sizes(name, config, input=input, data_given=data_given)
    costs, channels = measure(config, source, size, depth=int(depth))
    classes = len(source.info.classes)
    image = f"{channels}x{size}x{size}"
    print(costs.table)
    print(f"{name}, images {image}, {classes} classes ({why})")
    print("\n".join(totals(costs, read_papers().get(name, {}), image=image)))


def read_papers() -> dict[str, dict[str, Any]]:
    """What the papers claim, by the name of the model's YAML."""
    papers: dict[str, dict[str, Any]] = OmegaConf.to_container(OmegaConf.load(PAPERS))  # type: ignore[assignment]
    return papers


def sizes(name: str, config: Config, *, input: str, data_given: bool) -> tuple[Source, int, str]:
    """What sizes the network, its images' side in pixels, and where these come from."""
    if data_given:
        source, why = described(config), "of the data"
        native = source.info.image_size
    else:
        source, native = _own(name, config)
        why = "the network's own"
    size = input_size(config.model.input, native)
    if input:
        *channels, side = input.split("x")
        square = len(channels) in (0, 2) and all(part.isdigit() for part in (*channels, side))
        if not square or channels[1:] not in ([], [side]) or int(side) == 0:
            raise ConfigError(f"input={input} is no size", "", "type input=224 or input=3x224x224")
        size, why = int(side), f"{why}, but input={input}"
        _check_size(name, config, size)
        if channels:
            source.info = replace(source.info, channels=int(channels[0]))
    return source, size, why


def _own(name: str, config: Config) -> tuple[Source, int]:
    """The classes and channels of the constructor's defaults, the paper's image size, else 224."""
    target = resolve(config.model.args.get("_target_"), nn.Module, config.trust)
    defaults = {key: p.default for key, p in inspect.signature(target).parameters.items()}
    classes, channels = defaults.get("num_classes"), defaults.get("in_channels")
    classes = classes if isinstance(classes, int) else 1000
    classes -= config.model.task == "detection"  # which count the background
    channels = channels if isinstance(channels, int) else 3
    paper = read_papers().get(name, {}).get("input", "").split("x")[-1]
    size = int(paper or defaults.get("image_size", 224))
    source = Source()
    names = tuple(str(number) for number in range(classes))
    source.info = DataInfo(
        "none", classes=names, channels=channels, image_size=size, fingerprint=""
    )
    return source, size


def _check_size(name: str, config: Config, size: int) -> None:
    if input_size(config.model.input, size) != size:
        word, _, number = config.model.input.partition(" ")
        takes = f"at least {number}" if word == "min" else number
        raise ConfigError(
            f"{name} takes images of {takes} px, not {size}",
            f"input={size}",
            f"type input={number}",
        )


def measure(config: Config, source: Source, size: int, *, depth: int = 3) -> tuple[Costs, int]:
    """What the network of a config costs, and the channels that it takes. Raises ConfigError."""
    config.trainer.channels_last = False  # a layout, which would add copies
    detects = config.model.task == "detection"
    device = torch.device("cpu") if detects else META
    network = build(config, source, device=device, size=size)
    image = torch.zeros(1, network.channels, size, size, device=device)
    model, root = network.model, type(network.model).__name__
    names = {id(module): f"{root}.{name}" for name, module in model.named_modules() if name}
    names[id(model)] = root
    leaves = {names[id(module)] for module in model.modules() if not any(module.children())}
    costs = Costs(sum(parameter.numel() for parameter in model.parameters()))
    try:
        with FlopCounterMode(display=False) as counter, Operations(costs, counter, leaves):
            told = torchinfo.summary(
                model,
                input_data=[[image[0].normal_()]] if detects else image,
                depth=depth,
                col_names=COLUMNS,
                col_width=18,  # [1, 1024, 14, 14]
                row_settings=("depth", "var_names"),
                verbose=0,
            )
    except RuntimeError as error:  # torchinfo's, around what the network raised
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise ConfigError(
            f"the network cannot take images of {size} px ({reason})",
            f"model.input={config.model.input}",
            "type a larger input=, as input=224",
        ) from error
    counts = {name: sum(kinds.values()) // 2 for name, kinds in counter.get_flop_counts().items()}
    costs.multiply_adds = counts.get("Global", 0)
    costs.table = _table(told, [counts.get(names[x.layer_id], 0) for x in told.summary_list])
    _count_layers(costs, model, told.summary_list, names)
    return costs, network.channels


class Operations(TorchDispatchMode):
    """Counts the operations outside of layers, and the bytes that each one newly makes."""

    def __init__(self, costs: Costs, counter: FlopCounterMode, leaves: set[str]) -> None:
        super().__init__()
        self.costs, self.counter, self.leaves = costs, counter, leaves

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, tuple | list) else result
        returns = func._schema.returns
        # What has an alias is a view, or was written into what was there.
        old, name = any(value.alias_info for value in returns), func.overloadpacket.__name__
        if isinstance(first, Tensor) and not old and name not in VIEWS:
            self.costs.activations += 4 * first.numel()
            if not self.counter.mod_tracker.parents & self.leaves:
                self.costs.functions[name.strip("_")] += 1
        return result


def _table(told: torchinfo.ModelStatistics, counts: list[int]) -> str:
    """torchinfo's rows, our multiply-adds behind each: of a container, those of its parts."""
    form = told.formatting
    rows = form.layers_to_str(told.summary_list, told.total_params).splitlines()
    head = form.header_row().rstrip()
    width = form.get_total_width()
    shown = zip(told.summary_list, counts, strict=True)
    numbers = [count for layer, count in shown if layer.depth <= form.max_depth]
    lines = [
        f"{row:<{width}} {f'{number:,}' if number else '--':>15}"
        for row, number in zip(rows, numbers, strict=True)
    ]
    return "\n".join([f"{head:<{width}} {'Multiply-adds':>15}", *lines])


def _count_layers(
    costs: Costs, model: nn.Module, called: list[LayerInfo], names: dict[int, str]
) -> None:
    for layer in called:
        if layer.is_leaf_layer and layer.class_name not in NO_LAYERS:
            costs.layers[layer.class_name] += 1
            costs.beside[layer.class_name] += is_beside(model, names[layer.layer_id])
    seen = {layer.layer_id for layer in called}
    for name, part in model.named_children():
        count = sum(parameter.numel() for parameter in part.parameters())
        if count and not any(id(module) in seen for module in part.modules()):
            costs.idle[name] = count


def is_beside(model: nn.Module, name: str) -> bool:
    """By its names. A `downsample` is a shortcut in a residual block; elsewhere it ends a stage."""
    owner = model
    for part in name.split(".")[1:]:
        word = part.rstrip("0123456789")
        if word in BESIDE or (word == "downsample" and hasattr(owner, "conv1")):
            return True
        owner = getattr(owner, part)
    return False


def totals(costs: Costs, paper: dict[str, Any], *, image: str) -> list[str]:
    """The lines below the table: ours, and the paper's where it has the figure."""
    other = f" for {paper.get('input')}" if paper.get("input", image) != image else ""

    def kinds(counts: Counter[str]) -> str:
        return ", ".join(f"{count} {name}" for name, count in counts.most_common() if count)

    def claim(key: str) -> str:
        return f" (paper: {rounded(paper[key])}{other})" if key in paper else ""

    idle = ""
    if costs.idle:
        idle = f", {costs.used:,} without {', '.join(costs.idle)}, which only training uses"
    beside = f"; {kinds(costs.beside)} of these off the main path" if +costs.beside else ""
    lines = [
        f"parameters     {costs.parameters:,}{idle}{claim('parameters')}; "
        f"{4 * costs.parameters / 1e6:.2f} MB in fp32",
        f"multiply-adds  {costs.multiply_adds:,}{claim('multiply_adds')}",
        f"activations    {costs.activations / 1e6:.2f} MB in fp32: what all operations of one "
        "forward pass make of one image",
        f"layers         {kinds(costs.layers)}{beside}",
    ]
    if costs.functions:
        lines.append(f"outside them   {kinds(costs.functions)}")
    if "source" in paper:
        lines.append(f"paper          {paper['source']}")
    return lines


def rounded(number: int) -> str:
    """As papers write it: 60,000, 0.27 M, 3.8 G; 22,855,952 where it is given to the unit."""
    if number >= 10**9:
        return f"{number / 1e9:.4g} G"
    whole = number % 10_000 and number > 10**7  # given to the unit
    return f"{number:,}" if whole or number < 10**5 else f"{number / 1e6:.4g} M"
