"""What `cvtrain VERB --help` and a shell's completion say of the verbs. Loads nothing."""

import textwrap
from collections.abc import Mapping

EXAMPLES = {
    "train": "cvtrain model=resnet20 data=cifar10",
    "eval": "cvtrain eval run=outputs/mine data=mnist compare=outputs/other",
    "predict": "cvtrain predict run=last source=photos top_k=3",
    "export": "cvtrain export run=outputs/mine format=onnx",
    "summary": "cvtrain summary model=vgg16",
    "features": "cvtrain features run=outputs/mine layer=layer3 source=photos",
    "proposals": "cvtrain proposals run=outputs/mine",
    "check": "cvtrain check data=folder data.root=photos",
    "report": "cvtrain report run=last",
    "why": "cvtrain why optimizer.lr trainer model=resnet20 data=cifar10",
    "doctor": "cvtrain doctor",
}
# A key means the same to all verbs, but for those that are named with theirs.
KEYS = {
    "run": "the directory of a run, a checkpoint, or last",
    "eval.run": "the directory of a run, a checkpoint, or last; [a,b]: several as one",
    "compare": "another run, or several: is the difference more than chance?",
    "merge": "nms or soft: how the boxes of several detectors become one's",
    "out": "where to write",
    "eval.out": "a folder for what there is of each sample; none: only the figures are printed",
    "report.out": "a file or a folder, of a sweep a folder; none: beside what it shows",
    "sweep": "the name of a sweep below outputs/sweep, its folder, or last: also while it runs",
    "proposals.out": "a folder; none: proposals in the run",
    "source": "pictures, folders, videos, 0 (a camera), an address",
    "features.source": "data (the data set's images), an image or a folder of them",
    "format": "of what is written: jsonl, csv",
    "export.format": "onnx, torchscript, torch_export or safetensors",
    "top_k": "so many classes of each picture",
    "threshold": "the least probability of a box, from 0 to 1; none: the run's",
    "nms": "hard, soft, linear or gaussian: what becomes of overlapping boxes",
    "draw": "true: pictures and videos with what was found; false: only the words",
    "show": "true: in a window, while it goes",
    "precision": "auto, fp32, tf32, bf16 or fp16",
    "compile": "true: compiled by torch, slow to start and faster then",
    "input": "the images' size in pixels; none: that of the data",
    "depth": "so many levels of layers within layers",
    "layer": "its name; cvtrain summary lists them",
    "pool": "avg: the mean over the places of a map; none: the map",
}
# What there is to say besides.
MORE = {
    "train": "See cvtrain --help for the groups and keys.",
    "why": "A word is a key, a group or a part of the config; without one, every key in a table.",
}


def verb_help(verb: str, about: str, keys: Mapping[str, str]) -> str:
    """Of its own keys with their defaults, and one example."""
    lines = [f"cvtrain {verb}: {about}", "", f"  {EXAMPLES[verb]}"]
    if keys:
        lines += ["", f"keys of {verb}"]
    for key, default in keys.items():
        said = KEYS.get(f"{verb}.{key}", KEYS.get(key, ""))
        words = f"{key + '=' + default:<20} {said}"
        lines += textwrap.wrap(
            words, 96, initial_indent="  ", subsequent_indent=" " * 23, break_long_words=False
        )
    more = "All keys of a config can stand beside them: see cvtrain --help."
    return "\n".join([*lines, "", MORE.get(verb, more)])


def completions(line: str, verbs: Mapping[str, Mapping[str, str]]) -> tuple[list[str], str]:
    """What can follow of ours in a command line, and that line as one of a config alone.

    Hydra completes groups and keys; of verbs, and of what is theirs, it knows nothing.
    """
    program, *words = line.split()
    current = "" if line.endswith(" ") or not words else words.pop()
    if not words:
        ours = [verb for verb in verbs if verb.startswith(current)]
        return ours, f"{program} {current}"
    if words[0] not in verbs:
        return [], line
    verb, *words = words
    keys = verbs[verb]
    ours = [f"{key}=" for key in keys if f"{key}=".startswith(current)]
    plain = [word for word in words if "=" in word and word.partition("=")[0] not in keys]
    return ours, " ".join([program, *plain, current])
