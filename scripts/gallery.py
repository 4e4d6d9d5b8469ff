"""The README's two tables of networks: counted from configs/model, beside what the papers say.

python scripts/gallery.py            # print them
python scripts/gallery.py --write    # into README.md, each between its two markers
python scripts/gallery.py --check    # exit code 1 if README.md is not current
"""

import argparse
import inspect
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cvtrain.compose import compose_config
from cvtrain.config import Config, config_dir, options
from cvtrain.errors import ConfigError
from cvtrain.targets import make, resolve
from cvtrain.verbs.summary import measure, read_papers, rounded, sizes

README = Path(__file__).parents[1] / "README.md"
# The tables, by the name in their markers: <!-- gallery --> ... <!-- /gallery -->
HEADS = {
    "gallery": "| `model=` | network, year | parameters (paper) | multiply-adds (paper) | "
    "published error | recipes |\n|---|---|---|---|---|---|",
    "detectors": "| `model=` | network, year | parameters (published) | outputs | "
    "published mAP | recipes |\n|---|---|---|---|---|---|",
}


def classifier(name: str, config: Config, paper: dict[str, Any]) -> str:
    """Of a YAML's network at its paper's image size. Raises ConfigError if it cannot be built."""
    source, size, _ = sizes(name, config, input="", data_given=False)
    costs, channels = measure(config, source, size, depth=1)
    counts = [
        f"{count:,}" + (f" ({rounded(paper[key])})" if key in paper else "")
        for key, count in (("parameters", costs.used), ("multiply_adds", costs.multiply_adds))
    ]
    counts[1] += f", {channels}x{size}x{size}"
    return cells(name, title(name, paper), *counts, error(paper), recipes(name))


def detector(name: str, paper: dict[str, Any]) -> str:
    """With the outputs of its paper; without multiply-adds, which go by what it finds."""
    config = compose_config([f"model={name}", *paper.get("counted_with", [])]).config
    outputs, parameters = parameters_of(config)
    count = f"{parameters:,}"
    if "parameters" in paper:
        count += f" ({paper['parameters']:,})"
    figures = ", ".join(f"{figure} % ({of})" for of, figure in paper.get("mAP", {}).items())
    return cells(name, title(name, paper), count, str(outputs), figures, recipes(name))


def parameters_of(config: Config) -> tuple[int, int]:
    """The outputs that a network has by default, one of them the background; its parameters."""
    target = resolve(config.model.args.get("_target_"), nn.Module, config.trust)
    outputs: int = inspect.signature(target).parameters["num_classes"].default
    with torch.device("meta"):
        network = make(config.model.args, nn.Module, key="model", trust=config.trust)
    return outputs, sum(parameter.numel() for parameter in network.parameters())


def cells(name: str, *others: str) -> str:
    return f"| {' | '.join([f'`{name}`', *others])} |"


def title(name: str, paper: dict[str, Any]) -> str:
    return f"{paper['title']}, {paper['year']}" if "title" in paper else about(name)


def about(name: str) -> str:
    """What the YAML's first line says of a network of no paper."""
    first = (config_dir() / "model" / f"{name}.yaml").read_text().splitlines()[0]
    return first.lstrip("# ").partition(";")[0]


def error(paper: dict[str, Any]) -> str:
    if "error_of" not in paper:
        return ""
    kinds = {"top1_err": "top-1", "top5_err": "top-5"}
    shown = ", ".join(f"{paper[key]} % {kind}" for key, kind in kinds.items() if key in paper)
    return f"{shown} ({paper['error_of']})"


def recipes(name: str) -> str:
    """The data sets for which there is a recipe."""
    found = [r.removeprefix(f"{name}_") for r in options("recipe") if r.startswith(f"{name}_")]
    others = [n for n in options("model") if n.startswith(f"{name}_")]  # lenet5, lenet5_1998
    mine = [data for data in found if not any(f"{name}_{data}".startswith(f"{n}_") for n in others)]
    return ", ".join(mine)


def tables() -> dict[str, str]:
    """A row for each YAML of one network, in the order of papers.yaml, those of no paper last."""
    papers, rows = read_papers(), {name: [head] for name, head in HEADS.items()}
    named = [name for name in papers if name in options("model")]
    for name in [*named, *(name for name in options("model") if name not in named)]:
        config, paper = compose_config([f"model={name}"]).config, papers.get(name, {})
        if config.model.args.get("name", name) != name:  # any of a family, this one by default
            continue
        try:
            if config.model.task == "detection":
                rows["detectors"].append(detector(name, paper))
            else:
                rows["gallery"].append(classifier(name, config, paper))
        except ConfigError as problem:
            print(f"left out: {name}: {problem}", file=sys.stderr)
    return {name: "\n".join(lines) for name, lines in rows.items()}


def put(text: str, name: str, table: str) -> str | None:
    """The README's text with the table between its markers; None without them."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, begin, rest = text.partition(opening)
    _, end, after = rest.partition(closing)
    return f"{before}{opening}\n{table}\n{closing}{after}" if begin and end else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="into README.md")
    parser.add_argument("--check", action="store_true", help="exit code 1 if it is not current")
    arguments = parser.parse_args()
    made = tables()
    if not arguments.write and not arguments.check:
        print("\n\n".join(made.values()))
        return
    text = done = README.read_text(encoding="utf-8")
    for name, table in made.items():
        found = put(done, name, table)
        if found is None:
            sys.exit(f"README.md lacks <!-- {name} --> and <!-- /{name} -->")
        done = found
    if arguments.check and done != text:
        sys.exit("README.md is not current: python scripts/gallery.py --write")
    if arguments.write:
        README.write_text(done, encoding="utf-8")


if __name__ == "__main__":
    main()
