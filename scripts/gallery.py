"""The README's table of networks: counted from configs/model, beside what the papers say.

python scripts/gallery.py            # print it
python scripts/gallery.py --write    # into README.md, between its two markers
python scripts/gallery.py --check    # exit code 1 if README.md is not current
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from cvtrain.compose import compose_config
from cvtrain.config import Config, config_dir, options
from cvtrain.errors import ConfigError
from cvtrain.verbs.summary import measure, read_papers, rounded, sizes

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- gallery -->", "<!-- /gallery -->"
HEAD = (
    "| `model=` | network, year | parameters (paper) | multiply-adds (paper) | published error | "
    "recipes |\n|---|---|---|---|---|---|"
)


def row(name: str, config: Config, paper: dict[str, Any]) -> str:
    """Of a YAML's network at its paper's image size. Raises ConfigError if it cannot be built."""
    source, size, _ = sizes(name, config, input="", data_given=False)
    costs, channels = measure(config, source, size, depth=1)
    counts = [
        f"{count:,}" + (f" ({rounded(paper[key])})" if key in paper else "")
        for key, count in (("parameters", costs.used), ("multiply_adds", costs.multiply_adds))
    ]
    counts[1] += f", {channels}x{size}x{size}"
    title = f"{paper['title']}, {paper['year']}" if "title" in paper else about(name)
    cells = (f"`{name}`", title, *counts, error(paper), recipes(name))
    return f"| {' | '.join(cells)} |"


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


def table() -> str:
    """A row for each YAML of one network, in the order of papers.yaml, those of no paper last."""
    papers, rows = read_papers(), []
    named = [name for name in papers if name in options("model")]
    for name in [*named, *(name for name in options("model") if name not in named)]:
        try:
            config = compose_config([f"model={name}"]).config
            if "name" not in config.model.args:  # else a whole family
                rows.append(row(name, config, papers.get(name, {})))
        except ConfigError as problem:
            print(f"left out: {name}: {problem}", file=sys.stderr)
    return "\n".join([HEAD, *rows])


def put(text: str, gallery: str) -> str | None:
    """The README's text with the table between its markers; None without them."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{BEGIN}\n{gallery}\n{END}{after}" if begin and end else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="into README.md")
    parser.add_argument("--check", action="store_true", help="exit code 1 if it is not current")
    arguments = parser.parse_args()
    gallery = table()
    if not arguments.write and not arguments.check:
        print(gallery)
        return
    text = README.read_text(encoding="utf-8")
    done = put(text, gallery)
    if done is None:
        sys.exit(f"README.md lacks {BEGIN} and {END}")
    if arguments.check and done != text:
        sys.exit("README.md is not current: python scripts/gallery.py --write")
    if arguments.write:
        README.write_text(done, encoding="utf-8")


if __name__ == "__main__":
    main()
