"""README.md of an export: what it is, how good it is, what goes in and comes out, how it is run."""

import json
from dataclasses import dataclass
from typing import Any

from cvtrain.exports.check import Difference
from cvtrain.exports.subject import Subject

MEANING = {
    "logits": "float32, one for each class; softmax makes probabilities of them",
    "box": "float32 [batch, 4]: centre x, centre y, width, height, as shares of the image",
    "boxes": "float32 [n, 4]: left, top, right, bottom in pixels of the input",
    "labels": "int64 [n]: places in classes.json, from 0",
    "scores": "float32 [n], the surest first",
    "masks": "float32 [n, 1, height, width]: 0 to 1, an object's where above 0.5",
}


@dataclass(frozen=True)
class Origin:
    """What an export is of."""

    name: str
    text: str  # of its config, YAML
    weights: str
    figures: dict[str, float]
    paper: str


def card(
    origin: Origin,
    subject: Subject,
    checked: list[Difference],
    *,
    settings: dict[str, Any],
    classes: Any,
    file: str,
    code: str,
) -> str:
    measured = ", ".join(f"{key} {value:.6g}" for key, value in origin.figures.items())
    given = {name: _given(name, shape, settings) for name, shape in subject.shapes.items()}
    differences = "\n".join(f"- {line}" for line in checked)
    return f"""# {origin.name}

{"A detector" if subject.detects else "A classifier"} of {_counted(classes)}: `{file}`.

- Weights: {origin.weights}.
- Measured when they were kept: {measured or "nothing"}.
- The paper's: {origin.paper or "none is known here"}.

Errors, mAP and the like are in per cent.

{_table("input", given)}

{_table("output", {name: MEANING.get(name, MEANING["logits"]) for name in subject.outputs})}

How a picture becomes the input: `preprocessing.json` (mean and deviation of pixels divided by 255).
The classes in the order of the outputs: `classes.json`. What made the network: `config.yaml`.

## Run it

{code}

## Checked

Against the network it was made from, on the CPU:

{differences}
"""


def _table(head: str, rows: dict[str, str]) -> str:
    return "\n".join([f"| {head} | |", "|---|---|", *(f"| `{n}` | {rows[n]} |" for n in rows)])


def _given(name: str, shape: str, settings: dict[str, Any]) -> str:
    if name == "proposals":
        return f"float32 [{shape}]: left, top, right, bottom in pixels of the image"
    ends = [
        [(end - mean) / std for mean, std in zip(settings["mean"], settings["std"], strict=True)]
        for end in (0, 1)
    ]
    low, high = min(ends[0]), max(ends[1])
    colours = "grey" if settings["channels"] == 1 else "RGB"
    return f"float32 [{shape}], {colours}, {low:.2f} to {high:.2f}"


def _counted(classes: Any) -> str:
    if isinstance(classes, dict):
        return ", ".join(f"{name} ({len(of)} classes)" for name, of in classes.items())
    shown = ", ".join(json.dumps(name, ensure_ascii=False) for name in classes[:10])
    return f"{len(classes)} classes ({shown}{', ...' if len(classes) > 10 else ''})"
