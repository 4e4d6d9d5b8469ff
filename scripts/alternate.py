"""Trains Faster R-CNN by the paper's four alternating steps, each a run of its own.

    python scripts/alternate.py --out outputs/alternate
    python scripts/alternate.py --out outputs/voc --model faster_rcnn --data voc task.voc=2007

Ren, He, Girshick, Sun 2015, section 3.2; the folders of `--out`:

    1_rpn            the RPN and the convolutions, from the typed start; then its proposals
    2_fast_rcnn      Fast R-CNN on these proposals, from the same start
    3_rpn            an RPN on the convolutions of 2, which stand still
    4_faster_rcnn    the rest of 2 on the same convolutions and the proposals of 3: the result

Further words are of all four runs: their recipe is that of the pair, so that each is as long as it
is. A start (model.pretrained, model.pretrained_backbone, init.weights) is of the first two. Without
one both start from the same random convolutions, those of the seed. Typed again, the command goes
on where it was stopped; what is done is not done again.

Differs: the proposals of 3 are made anew in each step of 4, of images as they are augmented. What a
step does not train is computed all the same, as figures.
"""

import argparse
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from cvtrain.compose import compose_config
from cvtrain.data.proposals import IN_RUN
from cvtrain.engine.checkpoint import read_checkpoint
from cvtrain.errors import ConfigError, CvtrainError
from cvtrain.models.detection.faster_rcnn import FasterRCNN
from cvtrain.trained.network import build, described

STEPS = ("1_rpn", "2_fast_rcnn", "3_rpn", "4_faster_rcnn")
START = ("model.pretrained", "model.pretrained_backbone", "init.weights", "init.reset_head")
# What a step settles.
OWN = (
    *("model", "data", "model.freeze", "task.losses", "data.proposals"),
    *("resume", "resume_allow", "hydra.run.dir"),
)
LAST = ("cls_score", "bbox_pred")  # of Fast R-CNN
AS_FAST = ("model._target_=cvtrain.models.detection.fast_rcnn.FastRCNN", "~model.rpn")
# An RPN's detections say nothing of it: its only evaluation is the last, so best.pt is last.pt.
AS_RPN = ("task.losses=[rpn_cls,rpn_box]", "eval.every=1000000ep")


def alternate(model: str, data: str, out: Path, words: list[str]) -> Path:
    """The run directory of the whole detector. Raises ConfigError; SystemExit where a run fails."""
    for word in words:
        if key_of(word) in OWN:
            fix = "leave it out; --model, --data and --out are the script's own"
            raise ConfigError("the four steps settle that themselves", word, fix)
    pair = [f"model={model}", f"data={data}"]
    convolutions, head = layers_of([*pair, *words])
    rpn, fast, rpn_again, whole = (out / name for name in STEPS)
    train(rpn, *pair, *words, *AS_RPN, frozen(*head, *LAST))
    propose(rpn, words)
    train(fast, *pair, *words, *AS_FAST, f"data.proposals='{rpn}'")
    shared = [*pair, *(word for word in words if key_of(word) not in START), *settled(fast, words)]
    again = ("init.reset_head=true", *AS_RPN, frozen("body", *LAST))  # that has no RPN
    train(rpn_again, *shared, *weights_of(fast), *again)
    rest = frozen(*convolutions, "rpn")
    train(whole, *shared, *weights_of(rpn_again), "task.losses=[cls,box]", rest)
    return whole


def key_of(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def layers_of(words: list[str]) -> tuple[list[str], list[str]]:
    """The layers of the body that make its map, which the RPN shares, and those that follow the
    pooling. Raises ConfigError for a network that has no such parts.
    """
    config, meta = compose_config(words).config, torch.device("meta")
    model: Any = build(config, described(config), device=meta).model
    if not isinstance(model, FasterRCNN):
        what = f"{type(model).__name__} is not made of an RPN and Fast R-CNN"
        raise ConfigError(what, words[0], "type --model faster_rcnn, or another of that family")
    layers = {f"body.{n}": x for n, x in model.body.named_children() if [*x.parameters()]}
    seen: set[str] = set()
    for name, layer in layers.items():
        layer.register_forward_hook(lambda *_, name=name: seen.add(name))
    model.body(torch.zeros(1, 3, 64, 64, device=meta))
    return [name for name in layers if name in seen], [n for n in layers if n not in seen]


def frozen(*layers: str) -> str:
    return f"model.freeze=[{','.join(layers)}]"


def last_of(run: Path) -> Path:
    return run / "checkpoints" / "last.pt"


def weights_of(run: Path) -> tuple[str, ...]:
    """The next step's start, in place of what was typed."""
    none = ("model.pretrained=null", "model.pretrained_backbone=null")
    return f"init.weights={last_of(run)}", *none


def settled(run: Path, words: list[str]) -> list[str]:
    """What the pretrained weights of a run settled, as the mean of the images."""
    typed, followed = {key_of(word) for word in words}, read_checkpoint(last_of(run))["followed"]
    return [f"{key}={value}" for key, value in followed.items() if key not in typed]


def train(run: Path, *words: str) -> None:
    print(f"# {run}", flush=True)
    cvtrain(*words, "resume=auto", f"hydra.run.dir={run}")


def propose(run: Path, words: list[str]) -> None:
    """Once."""
    if not all((run / IN_RUN / f"{split}.npz").exists() for split in ("train", "val")):
        machine = (word for word in words if word.startswith(("trainer.", "eval.", "trust=")))
        cvtrain("proposals", f"run={run}", *machine)


def cvtrain(*words: str) -> None:
    """The command. SystemExit with its code, as a shell has it, where that is not 0."""
    child = subprocess.Popen([sys.executable, "-m", "cvtrain", *words])
    # It saves before it ends: a terminal's Ctrl-C reaches it too, other signals are passed on.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda number, _: child.send_signal(number))
    if code := child.wait():
        sys.exit(code if code > 0 else 128 - code)  # -15: SIGTERM came before it listened


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="faster_rcnn_tiny", help="of the family of faster_rcnn")
    parser.add_argument("--data", default="shapes_boxes")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the four runs")
    parser.add_argument("overrides", nargs="*", help="of all four, as trainer.duration=6ep")
    arguments = parser.parse_intermixed_args()
    try:
        run = alternate(arguments.model, arguments.data, arguments.out, arguments.overrides)
    except CvtrainError as error:
        print(error.line(), file=sys.stderr)
        sys.exit(error.code)
    print(f"# the detector: {run}")


if __name__ == "__main__":
    main()
