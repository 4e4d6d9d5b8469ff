"""Ten lines of Python that run an exported file on a picture, without this package."""

from typing import Any

from cvtrain.exports.subject import Subject

LIBRARIES = {"onnx": "onnxruntime", "torchscript": "torch", "torch_export": "torch"}
RUNS = {
    "onnx": 'onnxruntime.InferenceSession("{file}").run(None, {{"{input}": x}})',
    "torchscript": 'torch.jit.load("{file}")(torch.from_numpy(x))',
    "torch_export": 'torch.export.load("{file}").module()(torch.from_numpy(x))',
}


def usage(form: str, file: str, subject: Subject, settings: dict[str, Any]) -> str:
    """A script that takes a picture's path and prints what is in it."""
    called = RUNS[form].format(file=file, input=next(iter(subject.inputs)))
    outputs = ", ".join(subject.outputs) + "," * (len(subject.outputs) == 1)
    lines = [
        f"import json, sys, numpy as np, {LIBRARIES[form]}",
        "from PIL import Image, ImageOps",
        'how, names = json.load(open("preprocessing.json")), json.load(open("classes.json"))',
        "picture = ImageOps.exif_transpose(Image.open(sys.argv[1]))"
        f'.convert("{"L" if settings["grey"] else "RGB"}")',
        *(_resized if subject.detects else _cropped)(settings),
        'x = (np.atleast_3d(image) / 255 - how["mean"]) / how["std"]',
        *["x = x.repeat(3, axis=2)"] * (settings["grey"] and settings["channels"] == 3),
        f"x = x.transpose(2, 0, 1){'' if subject.detects else '[None]'}.astype(np.float32)",
        f"{outputs} = {called}",
        *(_detected(form) if subject.detects else _classified(form, subject)),
    ]
    return "\n".join(lines)


def _cropped(settings: dict[str, Any]) -> list[str]:
    frame, middle = settings["frame"], settings["center_crop"] != 1
    size = 'how["size"] - how["frame"]' if frame else 'how["size"]'
    lines = [
        'side = min(picture.size) * how["center_crop"]' if middle else "side = min(picture.size)",
        "left, top = (picture.width - side) / 2, (picture.height - side) / 2",
        f"size = ({size},) * 2",
        "image = picture.resize(size, 2, box=(left, top, left + side, top + side))  # 2: bilinear",
    ]
    border = (frame // 2, frame // 2, frame - frame // 2, frame - frame // 2)
    return [*lines, f"image = ImageOps.expand(image, {border})"] if frame else lines


def _resized(settings: dict[str, Any]) -> list[str]:
    if settings["square"]:
        sized = ['size = (how["square"],) * 2']
    else:
        scale = 'how["short_side"] / min(picture.size)'
        if settings["long_side"]:
            scale = f'min({scale}, how["long_side"] / max(picture.size))'
        sized = [f"scale = {scale}", "size = [max(1, round(scale * n)) for n in picture.size]"]
    return [*sized, "image = picture.resize(size, 2)  # bilinear"]


def _classified(form: str, subject: Subject) -> list[str]:
    if len(subject.outputs) == 1:
        return ["print(names[int(logits[0].argmax())])"]
    if subject.outputs == ("logits", "box"):
        return ["print(names[int(logits[0].argmax())], box[0])"]
    return [f"print({', '.join(f'{name}[0]' for name in subject.outputs)})"]


def _detected(form: str) -> list[str]:
    plain = "boxes" if form == "onnx" else "boxes.numpy()"
    return [
        "scale = np.divide(picture.size, size)  # back to the picture's own pixels",
        f"for box, label, score in zip({plain} * np.tile(scale, 2), labels, scores):",
        "    print(names[int(label)], round(float(score), 3), box.round(1).tolist())",
    ]


def loading(target: Any, arguments: dict[str, Any], file: str) -> str:
    """The network anew, with a file of weights; `target` makes it of `arguments`."""
    options = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return "\n".join(
        [
            "from safetensors.torch import load_file",
            f"from {target.__module__} import {target.__name__}",
            f"network = {target.__name__}({options})",
            f'network.load_state_dict(load_file("{file}"))',
            "network.eval()",
        ]
    )
