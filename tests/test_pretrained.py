"""Weights to start from: torchvision's and timm's own networks, random, through the real paths."""

import hashlib
import os
import pickle
import re
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, SqueezeNet1_1_Weights, densenet
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.vision_transformer import MLPBlock
from torchvision.ops import FrozenBatchNorm2d

from cvtrain.compose import compose_config
from cvtrain.data import download
from cvtrain.engine.checkpoint import Checkpoints
from cvtrain.errors import CheckpointError, ConfigError, CvtrainError, DataError, MachineError
from cvtrain.models import zoo
from cvtrain.models.resnet import ResNet
from cvtrain.models.vgg import VGG
from cvtrain.models.xception import SamePool, Xception
from cvtrain.models.zoo import timm_model, torchvision_detector, torchvision_model
from cvtrain.pretrained import Pretrained, fit, fit_body, origin_of, read_pretrained
from cvtrain.pretrained.read import _of_torchvision, published
from cvtrain.targets import resolve

RESNET18 = {"depth": 18, "shortcut": "B", "stride_in": "1x1", "stem": "auto"}
SQUEEZENET = {"name": "squeezenet1_1"}
NAMES = ResNet18_Weights.DEFAULT.meta["categories"]
FC = {"fc.weight": 1, "fc.bias": 1}  # rows of a class


def randomised(network: nn.Module, images: Tensor) -> nn.Module:
    """Batch norm counts, as after training: what each layer gives depends on what it gets."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        nn.init.normal_(norm.bias, 0, 0.2)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(images)
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def same_logits(ours: nn.Module, theirs: nn.Module, size: int, tolerance: float = 1e-5) -> bool:
    """In proportion to how far two images' are apart."""
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        one, other = ours.eval()(images), theirs.eval()(images)
    return bool((one - other).abs().max() <= tolerance * (other[0] - other[1]).abs().max())


def publish(network: nn.Module, folder: Path, name: str) -> Path:
    """`name-<first digits of its sha256>.pth`, as torchvision does."""
    path = folder / "new.pth"
    torch.save(network.state_dict(), path)
    return path.rename(folder / f"{name}-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth")


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    torch.manual_seed(0)
    return randomised(torchvision.models.resnet18(), torch.randn(4, 3, 64, 64))


@pytest.fixture(scope="module")
def squeezenet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.squeezenet1_1().eval()


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        super().do_GET()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """Serves `folder`."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as http:
        http.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{http.server_port}"
        yield SimpleNamespace(folder=folder, url=url, asked=http.asked)  # type: ignore[attr-defined]
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's own, in an empty place; no way out of this machine."""
    monkeypatch.setattr(download, "WAITS", ())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home" / "hub" / "checkpoints"


def read(word: str, target: Any = ResNet, **arguments: Any) -> Pretrained:
    return read_pretrained(word, target=target, arguments=arguments or RESNET18)


def fails(kind: type[CvtrainError], error: str, word: str, /, *texts: str, **more: Any) -> str:
    with pytest.raises(kind) as caught:
        read(word, **more)
    line = caught.value.line()
    assert caught.value.name == error, line
    for text in texts:
        assert text in line, line
    return line


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Published weights


def test_imagenet(
    resnet18: nn.Module, server: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Downloaded into torch's cache, once; the network is then torchvision's."""
    path = publish(resnet18, server.folder, "resnet18")
    url = f"{server.url}/models/{path.name}"
    (server.folder / "models").mkdir()
    path.rename(server.folder / "models" / path.name)
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", url)
    weights = read("imagenet")
    assert [file.name for file in cache.iterdir()] == [path.name]
    assert weights.name == "ResNet18_Weights.IMAGENET1K_V1"
    assert (weights.size, weights.channels) == (224, 3)
    assert weights.mean == [0.485, 0.456, 0.406]
    assert weights.std == [0.229, 0.224, 0.225]
    assert weights.classes == tuple(NAMES)
    assert weights.arguments == {"stride_in": "3x3", "stem": "imagenet"}
    for word in ("IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1", "DEFAULT"):
        assert equal(read(word).tensors, weights.tensors)
    assert len(server.asked) == 1

    model = ResNet(**RESNET18 | weights.arguments)
    lines = fit(model, weights, head=FC, classes=NAMES, names=NAMES)
    said = "120 tensors loaded; head fc (1000 rows): all kept by name"
    assert lines == [f"pretrained {weights.name}: {said}"]
    assert same_logits(model, resnet18, 64)

    file = cache / path.name  # a bit of a weight, which torch reads without a word
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    fails(CheckpointError, "CKPT-CORRUPT", "imagenet", str(file), "sha256", "remove it")
    assert file.read_bytes() == content
    fails(CheckpointError, "CKPT-CORRUPT", str(file), str(file), "rename it")
    file.unlink()
    (server.folder / "models" / path.name).write_bytes(content)
    fails(DataError, "DOWNLOAD", "imagenet", url, path.name.partition("-")[2][:8])
    assert list(cache.iterdir()) == []


@pytest.mark.fault("S4")
def test_no_network(server: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = fails(MachineError, "DOWNLOAD", "imagenet", f"{cache}/resnet18-f37072fd.pth")
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in line
    monkeypatch.setenv("TORCH_HOME", __file__)  # no folder
    fails(MachineError, "NOT-WRITABLE", "imagenet", "TORCH_HOME=FOLDER")


def test_of_torchvisions_own_networks(
    squeezenet: nn.Module, server: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head is a convolution."""
    path = publish(squeezenet, server.folder, "squeezenet1_1")
    weights = SqueezeNet1_1_Weights.IMAGENET1K_V1
    monkeypatch.setattr(weights.value, "url", f"{server.url}/{path.name}")
    found = read("imagenet", torchvision_model, **SQUEEZENET, dropout=0.1)
    model = torchvision_model(name="squeezenet1_1")
    head = {"classifier.1.weight": 1, "classifier.1.bias": 1}
    fit(model, found, head=head, classes=NAMES)
    assert same_logits(model, squeezenet, 64, 0)
    # The same file lying elsewhere, or on a mirror, is known by its name.
    for word in (str(path), f"{server.url}/mirror/../{path.name}?download=true"):
        again = read(word, torchvision_model, **SQUEEZENET)
        assert again.name == "SqueezeNet1_1_Weights.IMAGENET1K_V1"
        assert again.classes == tuple(NAMES)
        assert equal(again.tensors, found.tensors)


def test_addresses(squeezenet: nn.Module, server: Any, cache: Path) -> None:
    path = publish(squeezenet, server.folder, "mine")
    word = f"{server.url}/{path.name}"
    weights = read(word, torchvision_model, **SQUEEZENET)
    assert weights.name == word
    assert (weights.classes, weights.size, weights.mean) == ((), None, None)
    assert equal(weights.tensors, squeezenet.state_dict())
    fails(ConfigError, "CONFIG", "http://example.org/a-01234567.pth", "https://")
    fails(ConfigError, "CONFIG", "file:///tmp/a-01234567.pth", "refused")
    for bad in ("a.pth", "a-0123456.pth", "a-01234567.zip", "a-0123456g.pth", ""):
        fails(ConfigError, "CONFIG", f"https://example.org/{bad}", "sha256", "pretrained=FILE")
    assert [file.name for file in cache.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("target", "arguments", "expected"),
    [
        (ResNet, {"depth": 50}, "ResNet50_Weights.IMAGENET1K_V1"),
        (ResNet, {"depth": 152, "stride_in": "1x1"}, "ResNet152_Weights.IMAGENET1K_V1"),
        (ResNet, {"depth": 34, "shortcut": "A"}, None),
        (ResNet, {"depth": 20}, None),
        (VGG, {"config": "A", "batch_norm": "all"}, "VGG11_BN_Weights.IMAGENET1K_V1"),
        (VGG, {"config": "E", "batch_norm": "none"}, "VGG19_Weights.IMAGENET1K_V1"),
        (VGG, {"config": "D", "batch_norm": "block"}, None),
        (VGG, {"config": "C"}, None),
        (Xception, {"dropout": 0.5}, "timm/legacy_xception"),
        (torchvision_model, {"name": "resnet50"}, "ResNet50_Weights.IMAGENET1K_V2"),
        (timm_model, {"name": "resnet50"}, "timm/resnet50"),
        (nn.Linear, {"in_features": 2}, None),
    ],
)
def test_which_are_a_networks_own(target: Any, arguments: Any, expected: str | None) -> None:
    found = published(target, arguments)
    assert (found and found[0]) == expected
    if expected is None:
        key = next(iter(arguments))
        line = fails(
            *(ConfigError, "CONFIG", "imagenet", target.__name__, f"model.{key}="),
            target=target,
            **arguments,
        )
        assert "type model.pretrained=FILE, or a model that has some: resnet18" in line


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        *((ResNet, {"depth": depth}) for depth in (18, 34, 50, 101, 152)),
        *((VGG, {"config": c, "batch_norm": norm}) for c in "ABDE" for norm in ("none", "all")),
    ],
)
def test_their_names_and_shapes_are_ours(target: Any, arguments: Any) -> None:
    """And the constructor takes the arguments that they want."""
    name, wanted = published(target, arguments)
    network = name.partition("_Weights")[0].lower()
    with torch.device("meta"):
        ours = target(**arguments | wanted)
        theirs = torchvision.models.get_model(network)
    shapes = [{n: t.shape for n, t in m.state_dict().items()} for m in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_versions_that_are_not_there() -> None:
    for word in ("IMAGENET1K_V9", "ResNet50_Weights.IMAGENET1K_V2", "resnet18"):
        fails(ConfigError, "CONFIG", word, "ResNet18_Weights", "type imagenet, IMAGENET1K_V1, or")
    fails(ConfigError, "CONFIG", "imagenet", "resnet18", target=torchvision_model, name="resnet81")


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left(name: str) -> None:
    """And these two want their input as it was normalised at the time."""
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, aux_logits=True, init_weights=False)
        ours = torchvision_model(name=name, num_classes=2, image_size=224)
    ours.to_empty(device="cpu")
    tensors = {n: torch.zeros(t.shape, dtype=t.dtype) for n, t in theirs.state_dict().items()}
    left = [n for n in tensors if n.lower().startswith("aux")]
    lines = fit(ours, Pretrained(name, tensors), head=FC, classes=["a", "b"])
    assert "; head fc (2 rows): new" in lines[0]
    assert f"{len(tensors) - len(left) - 2} tensors loaded" in lines[0]
    assert "left in the file" in lines[1]
    assert all(f"{top} (" in lines[1] for top in {n.partition(".")[0] for n in left})
    assert published(torchvision_model, {"name": name})[1] == {"transform_input": True}
    assert getattr(torchvision_model(name=name, transform_input=True), "transform_input")  # noqa: B009


def test_names_of_old_files(tmp_path: Path) -> None:
    """What torchvision's own loading turns into its networks' names, ours does too."""
    torch.manual_seed(0)
    network = torchvision.models.densenet121(num_classes=2)
    new = {n: t for n, t in network.state_dict().items() if not n.endswith("num_batches_tracked")}
    old = {}
    for name, tensor in new.items():
        layer, _, leaf = name.rpartition(".")
        within = "denselayer" in name and layer[-1] in "12"
        old[f"{layer[:-1]}.{layer[-1]}.{leaf}" if within else name] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    given = SimpleNamespace(get_state_dict=lambda **_: dict(old))
    densenet._load_state_dict(torchvision.models.densenet121(num_classes=2), given, False)
    path = tmp_path / "old.pth"
    torch.save(old, path)
    found = read(str(path), torchvision_model, name="densenet121").tensors
    assert equal(found, new)

    inner = nn.ModuleDict({"mlp": MLPBlock(4, 8, 0.0)})
    block, again = nn.ModuleDict({"layer": inner}), nn.ModuleDict({"layer": inner})
    old = {
        "layer.mlp.linear_1.weight": torch.randn(8, 4),
        "layer.mlp.linear_1.bias": torch.randn(8),
        "layer.mlp.linear_2.weight": torch.randn(4, 8),
        "layer.mlp.linear_2.bias": torch.randn(4),
    }
    torch.save(old, path)
    again.load_state_dict(dict(old))
    found = read(str(path), torchvision_model, name="vit_b_16").tensors
    assert equal(found, block.state_dict())


# timm


@pytest.fixture(scope="module")
def xception() -> nn.Module:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    return randomised(timm.create_model("legacy_xception"), torch.randn(4, 3, 96, 96))


def as_keras(network: nn.Module, *, pools: bool) -> None:
    """timm's network, with the eps (and the pooling) of the one that its weights are of."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
        if pools:
            for name, child in module.named_children():
                if isinstance(child, nn.MaxPool2d):
                    setattr(module, name, SamePool())


def test_xception(xception: nn.Module, cache: Path) -> None:
    """timm reads what lies in torch's cache; the network is timm's but for what is declared."""
    cache.mkdir(parents=True)
    torch.save(xception.state_dict(), cache / "xception-43020ad28.pth")
    weights = read("imagenet", Xception, dropout=0.5)
    assert weights.name == "timm/legacy_xception.tf_in1k"
    assert (weights.size, weights.mean, weights.std) == (299, [0.5] * 3, [0.5] * 3)
    assert weights.classes == tuple(NAMES)
    ours = Xception()
    fit(ours, weights, head=FC, classes=NAMES)
    assert not same_logits(ours, xception, 39)
    as_keras(xception, pools=False)
    assert same_logits(ours, xception, 39)  # every map that is pooled is odd
    assert not same_logits(ours, xception, 48)
    as_keras(xception, pools=True)
    assert same_logits(ours, xception, 48)
    assert same_logits(ours, xception, 299)
    # A file that has our names already is not renamed again.
    assert equal(Xception.from_timm(ours.state_dict()), ours.state_dict())
    theirs = read("tf_in1k", timm_model, name="legacy_xception", drop_rate=0.2)
    assert theirs.name == "timm/legacy_xception.tf_in1k"
    assert equal(theirs.tensors, xception.state_dict())


def test_timms_mistakes(cache: Path) -> None:
    pytest.importorskip("timm")
    timms = partial(fails, target=timm_model, name="legacy_xception")
    timms(ConfigError, "CONFIG", "a1_in1k", "type imagenet, tf_in1k, or a file")
    timms(ConfigError, "CONFIG", "imagenet", "dropuot", dropuot=0.1)
    fails(ConfigError, "CONFIG", "imagenet", "timm has no such", target=timm_model, name="nothing")
    timms(MachineError, "DOWNLOAD", "imagenet", "/v0.1-cadene/xception-43020ad28.pth")
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "xception-43020ad28.pth").write_bytes(b"<html>" * 100)
    timms(CheckpointError, "CKPT-CORRUPT", "imagenet", "legacy_xception.tf_in1k", "timm's cache")


@pytest.mark.parametrize("name", ["timm", "safetensors"])
def test_an_extra_that_is_missing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "a.safetensors").write_bytes(b"")
    more = {"target": Xception, "dropout": 0.5} if name == "timm" else {}
    word = "imagenet" if name == "timm" else str(tmp_path / "a.safetensors")
    fails(ConfigError, "CONFIG", word, f"{name} is not installed; ", f"'cvtrain[{name}]'", **more)


# Files


def tiny(classes: int = 3, width: int = 4) -> nn.Module:
    layers = nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, classes)
    return randomised(nn.Sequential(*layers), torch.randn(8, 4))


HEAD = {"2.weight": 1, "2.bias": 1}
WRAPPED = {
    "plain": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state, "optimizer": {}},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "parallel": lambda state: {"state_dict": {f"module.{n}": t for n, t in state.items()}},
    "compiled": lambda state: {f"_orig_mod.{n}": t for n, t in state.items()},
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_where_a_state_dict_stands(tmp_path: Path, wrapped: str) -> None:
    state = tiny().state_dict()
    torch.save(WRAPPED[wrapped](state), tmp_path / "a.pth")
    weights = read(str(tmp_path / "a.pth"), nn.Sequential)
    assert weights.name == str(tmp_path / "a.pth")
    assert equal(weights.tensors, state)


def test_safetensors(tmp_path: Path) -> None:
    saving = pytest.importorskip("safetensors.torch")
    state, path = tiny().state_dict(), tmp_path / "a.safetensors"
    saving.save_file(dict(state), path)
    assert equal(read(str(path), nn.Sequential).tensors, state)
    whole = path.read_bytes()
    for content in (whole[:-7], b"", b"<html>" * 10, b"\xff" * 100):
        path.write_bytes(content)
        fails(CheckpointError, "CKPT-CORRUPT", str(path), str(path))
    fails(CheckpointError, "CKPT-MISSING", str(tmp_path / "b.safetensors"), "b.safetensors")


class Caller:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["CALLED"],)


@pytest.mark.fault("S1")
def test_pickles_that_call_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLED", str(tmp_path / "called"))
    path = tmp_path / "a.pth"
    torch.save({"model": Caller()}, path)
    fails(CheckpointError, "CKPT-UNSAFE", str(path), "mkdir")
    path.write_bytes(pickle.dumps({"model": Caller()}))
    fails(CheckpointError, "CKPT-UNSAFE", str(path), "mkdir")
    torch.save(tiny(), path)  # a whole network is code
    fails(CheckpointError, "CKPT-UNSAFE", str(path), "torch.nn")
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"weight": torch.ones(2), "epoch": 3}, "epoch is a int"),
        ({"model": {"a": [1.0]}}, "a is a list"),
        ({"a": torch.ones(2).to_sparse()}, "a is a Tensor"),
        ({"a": torch.ones(2, device="meta")}, "a is a Tensor"),
        ({"a": torch.ones(1).expand(1 << 40)}, "a is a Tensor"),
        ({1: torch.ones(2)}, "1 is a Tensor"),
        ({"model": {}}, "holds nothing"),
    ],
)
def test_what_is_no_tensor(tmp_path: Path, state: Any, text: str) -> None:
    torch.save(state, tmp_path / "a.pth")
    fails(CheckpointError, "CKPT-CORRUPT", str(tmp_path / "a.pth"), text)


def test_files_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for word in ("a.pth", str(tmp_path), "outputs/run"):
        fails(CheckpointError, "CKPT-MISSING", word, word)
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "resnet18").mkdir()
    monkeypatch.chdir(tmp_path)
    fails(MachineError, "DOWNLOAD", "imagenet")  # not the folder of that name
    fails(CheckpointError, "CKPT-MISSING", "resnet18")


def run_state(model: nn.Module, **more: Any) -> dict[str, Any]:
    config = "model:\n  stride_in: 3x3\n  stem: small\n  depth: 18\n"
    known = {"ema": None, "position": {"step": 1}, "config": config, "classes": ["ant", "bee"]}
    return {"model": dict(model.state_dict()), **known, **more}


def test_a_run(tmp_path: Path) -> None:
    first, second = tiny(2), tiny(2)
    average = {"n_averaged": torch.tensor(3)}
    average |= {f"module.{name}": tensor for name, tensor in second.state_dict().items()}
    images = {"size": 32, "channels": 1, "mean": [0.5], "std": [0.25]}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(run_state(first), step=1, best=False)
    assert equal(read(str(tmp_path)).tensors, first.state_dict())  # the last
    checkpoints.save(run_state(first, ema=average, input=images), step=2, best=True)
    checkpoints.save(run_state(first), step=3, best=False)
    weights = read(str(tmp_path))  # the best
    assert equal(weights.tensors, second.state_dict())
    assert weights.classes == ("ant", "bee")
    assert (weights.size, weights.channels, weights.mean, weights.std) == (32, 1, [0.5], [0.25])
    assert weights.arguments == {"stride_in": "3x3", "stem": "small"}
    old = read(str(tmp_path / "checkpoints" / "last.pt"), nn.Sequential)
    assert equal(old.tensors, first.state_dict())
    assert (old.size, old.channels, old.mean, old.std, old.arguments) == (*[None] * 4, {})
    path = (tmp_path / "checkpoints" / "best.pt").resolve()
    path.write_bytes(path.read_bytes()[:-1])
    fails(CheckpointError, "CKPT-CORRUPT", str(tmp_path), "sha256")


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": {"a": 1}},
        {"model": 3},
        {"config": "{"},
        {"config": 3},
        {"classes": 5},
        {"input": {"size": "large"}},
        {"input": 3},
        {"ema": [1]},
    ],
)
def test_a_run_that_is_none(tmp_path: Path, wrong: dict[str, Any]) -> None:
    torch.save({**run_state(tiny(2)), **wrong}, tmp_path / "a.pt")
    fails(CheckpointError, "CKPT-CORRUPT", str(tmp_path / "a.pt"), "a.pt")


# Into a network


def test_rows_are_kept_by_name() -> None:
    old, new = tiny(5), tiny(4)
    before = copied(new)
    known = ("crane", "Siberian_husky", "crane", "bee", "tench")
    weights = Pretrained("x", dict(old.state_dict()), known)
    classes = ["n02123", "siberian-husky", "crane", "crane"]
    names = ["Bee (n02123)", "siberian-husky", "crane", "crane"]
    lines = fit(new, weights, head=HEAD, classes=classes, names=names)
    assert lines == ["pretrained x: 7 tensors loaded; head 2 (4 rows): all kept by name"]
    assert torch.equal(new[2].weight, old[2].weight[[3, 1, 0, 2]])
    assert torch.equal(new[2].bias, old[2].bias[[3, 1, 0, 2]])

    new = tiny(4)
    before = copied(new)
    classes = ["ant", "bee", "crane", "hose"]
    lines = fit(new, weights, head=HEAD, classes=classes, names=classes)
    assert lines[0].endswith("head 2 (4 rows): 2 kept by name (bee, crane), 2 new")
    assert torch.equal(new[2].weight[1:3], old[2].weight[[3, 0]])
    for row in (0, 3):
        assert torch.equal(new[2].weight[row], before["2.weight"][row])
        assert torch.equal(new[2].bias[row], before["2.bias"][row])
    assert torch.equal(new[0].weight, old[0].weight)
    assert torch.equal(new[1].running_var, old[1].running_var)


def test_bee_and_ant_of_imagenet(resnet18: nn.Module) -> None:
    weights = Pretrained("x", dict(resnet18.state_dict()), tuple(NAMES))
    torch.manual_seed(1)
    model = ResNet(depth=18, num_classes=3, stem="imagenet")
    new = model.fc.weight[1].clone()
    lines = fit(model, weights, head=FC, classes=["ant", "antimony", "bee"])
    assert lines == [
        "pretrained x: 120 tensors loaded; head fc (3 rows): 2 kept by name (ant, bee), 1 new"
    ]
    rows = [NAMES.index("ant"), NAMES.index("bee")]
    assert torch.equal(model.fc.weight[[0, 2]], resnet18.fc.weight[rows])
    assert torch.equal(model.fc.bias[[0, 2]], resnet18.fc.bias[rows])
    assert torch.equal(model.fc.weight[1], new)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images)[:, [0, 2]], resnet18(images)[:, rows])


def test_long_lists_are_cut() -> None:
    known = tuple(f"class {number}" for number in range(9))
    weights = Pretrained("x", dict(tiny(9).state_dict()), known)
    lines = fit(tiny(9), weights, head=HEAD, classes=[*known[:8], "other"])
    kept = "class 0, class 1, class 2, class 3, class 4, and 3 more"
    assert lines[0].endswith(f"head 2 (9 rows): 8 kept by name ({kept}), 1 new")


def test_classes_that_are_not_known() -> None:
    old, new = tiny(3), tiny(3)
    weights = Pretrained("x", dict(old.state_dict()))
    lines = fit(new, weights, head=HEAD, classes=["a", "b", "c"])
    assert "head 2 (3 rows): kept whole" in lines[0]
    assert equal(new.state_dict(), old.state_dict())
    new = tiny(2)
    before = copied(new)
    lines = fit(new, weights, head=HEAD, classes=["a", "b"])
    assert lines[0].endswith("head 2 (2 rows): new")
    assert all(torch.equal(new.state_dict()[name], before[name]) for name in HEAD)
    # Known ones of which none is ours; and a list that is not of this head.
    for known in (("d", "e", "f"), ("a",)):
        new = tiny(3)
        before = copied(new)
        fit(new, Pretrained("x", weights.tensors, known), head=HEAD, classes=["a", "b", "c"])
        assert all(torch.equal(new.state_dict()[name], before[name]) for name in HEAD)


def test_half_precision_and_what_may_lack() -> None:
    old, new = tiny(3), tiny(2)
    tensors = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in old.state_dict().items()
        if name not in {*HEAD, "1.num_batches_tracked"}
    }
    extra = {"fc.weight": torch.ones(5, 9), "fc.bias": torch.ones(5)}  # a head under another name
    weights = Pretrained("x", {**tensors, **extra}, tuple("abcde"))
    lines = fit(new, weights, head=HEAD, classes=["a", "b"])
    assert lines == [
        "pretrained x: 6 tensors loaded; head 2 (2 rows): new",
        "pretrained x: tensors left in the file: fc (2)",
        "pretrained x: without num_batches_tracked (1), which start at 0",
    ]
    assert new[0].weight.dtype == torch.float32
    assert torch.equal(new[0].weight, old[0].weight.bfloat16().float())


def test_channels_last_stays() -> None:
    old, new = (nn.Sequential(nn.Conv2d(3, 8, 3)) for _ in range(2))
    new.to(memory_format=torch.channels_last)
    fit(new, Pretrained("x", dict(old.state_dict())), head={}, classes=["a"])
    assert torch.equal(new[0].weight, old[0].weight)
    assert new[0].weight.is_contiguous(memory_format=torch.channels_last)


def refused(
    model: nn.Module, weights: Pretrained, name: str, *texts: str, head: dict[str, int]
) -> None:
    before = copied(model)
    with pytest.raises(CheckpointError) as caught:
        fit(model, weights, head=head, classes=["a", "b"])
    assert caught.value.name == name
    line = caught.value.line()
    for text in (*texts, weights.name):
        assert text in line, line
    assert equal(model.state_dict(), before)


@pytest.mark.fault("C3")
@pytest.mark.parametrize("classes", [(), tuple(map(str, range(128))), tuple(map(str, range(512)))])
def test_weights_of_another_network(classes: tuple[str, ...]) -> None:
    """A deeper one's would load in part, and a wider one's not at all."""
    model = ResNet(depth=18, num_classes=2, stem="imagenet")
    for name, texts in {
        "resnet34": ("layer1.2.conv1.weight [64, 64, 3, 3] is not in the network", "79 more)"),
        "resnet50": ("layer1.0.conv1.weight is [64, 64, 1, 1], the network has [64, 64, 3, 3]",),
        "wide_resnet50_2": ("type the model it was trained as",),
    }.items():
        with torch.device("meta"):
            shapes = torchvision.models.get_model(name).state_dict()
        tensors = {n: torch.zeros(t.shape) for n, t in shapes.items()}
        refused(model, Pretrained(name, tensors, classes), "CKPT-MISMATCH", *texts, head=FC)


def test_weights_that_do_not_fit() -> None:
    state = dict(tiny(2).state_dict())
    wider = Pretrained("x", dict(tiny(2, width=5).state_dict()))
    refused(tiny(2), wider, "CKPT-MISMATCH", "0.weight is [5, 4]", "[4, 4]", head=HEAD)
    without = Pretrained("x", {n: t for n, t in state.items() if n != "1.running_mean"})
    refused(tiny(2), without, "CKPT-MISMATCH", "1.running_mean is missing", head=HEAD)
    endless = Pretrained("x", {**state, "0.bias": torch.full((4,), torch.nan)})
    refused(tiny(2), endless, "CKPT-CORRUPT", "0.bias is not finite", head=HEAD)


def test_rows_of_a_detectors_head() -> None:
    """Scores and boxes of a class, the background first; or the classes of one anchor each."""

    def head(classes: int) -> nn.Module:
        names = ("cls_score", "bbox_pred", "cls_logits")
        return nn.ModuleDict(
            {n: nn.Linear(2, k * classes) for n, k in zip(names, (1, 4, 3), strict=True)}
        )

    rows = {"cls_score": 1, "bbox_pred": 4, "cls_logits": 3}
    old, new = head(4), head(3)
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    known = ("__background__", "ant", "bee", "cat")
    weights = Pretrained("x", dict(old.state_dict()), known)
    names = {f"{n}.{kind}": count for n, count in rows.items() for kind in ("weight", "bias")}
    lines = fit(new, weights, head=names, classes=["__background__", "cat", "dog"])
    assert "2 kept by name (__background__, cat), 1 new" in lines[0]
    for layer, count in rows.items():
        theirs, ours = old[layer].weight, new[layer].weight
        for ours_at, theirs_at in ((0, 0), (1, 3)):  # background, cat
            for part in range(count):
                if layer == "cls_logits":
                    assert torch.equal(ours[part * 3 + ours_at], theirs[part * 4 + theirs_at])
                else:
                    at, of = count * ours_at + part, count * theirs_at + part
                    assert torch.equal(ours[at], theirs[of])
        dog = [p * 3 + 2 if layer == "cls_logits" else 2 * count + p for p in range(count)]
        assert torch.equal(ours[dog], before[f"{layer}.weight"][dog])


DETECTORS = {
    "faster_rcnn_resnet50_c4": ("resnet50", "layer4.2.conv3.weight", "body.layer4.2.conv3.weight"),
    "fasterrcnn_resnet50_fpn": (
        *("resnet50", "layer1.0.conv1.weight"),
        "backbone.body.layer1.0.conv1.weight",
    ),
    "torchvision_detector": (
        *("mobilenet_v3_large", "features.0.0.weight"),
        "backbone.body.0.0.weight",
    ),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_a_backbones_weights(name: str, tmp_path: Path) -> None:
    """A classifier's file into the detector that is built on it; the rest stays as it was."""
    network, theirs, ours = DETECTORS[name]
    classifier = torchvision.models.get_model(network, weights=None)
    torch.save(classifier.state_dict(), tmp_path / "w.pth")
    small = "model.name=fasterrcnn_mobilenet_v3_large_fpn"
    more = [small] if name == "torchvision_detector" else []
    args = compose_config([f"model={name}", "data=coco", *more]).config.model.args
    target = resolve(args["_target_"], nn.Module, [])
    origin = origin_of(target, args)
    weights = read_pretrained(
        str(tmp_path / "w.pth"), target=origin.target, arguments=origin.arguments
    )
    model = target(num_classes=3, **{k: v for k, v in args.items() if k != "_target_"})
    head = {n: t.clone() for n, t in model.state_dict().items() if not n.startswith(origin.ours)}
    [line] = fit_body(model, weights, origin)
    assert f"loaded into {origin.ours[:-1]}" in line
    state = model.state_dict()
    assert torch.equal(state[ours], classifier.state_dict()[theirs])
    assert all(torch.equal(state[n], t) for n, t in head.items())


def test_a_detector_without_a_classifiers_layers() -> None:
    args = compose_config(["model=faster_rcnn_tiny", "data=coco"]).config.model.args
    with pytest.raises(ConfigError, match="has no backbone of a classifier's layers"):
        origin_of(resolve(args["_target_"], nn.Module, []), args)


def test_a_published_detector(tmp_path: Path) -> None:
    """As torchvision publishes it: older names, batch norm that stands still, an epsilon of 0."""
    name = "fasterrcnn_resnet50_fpn"
    weights = FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    reference = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    zoo.freeze_norm(reference.backbone)
    overwrite_eps(reference, 0.0)
    for module in reference.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_var.uniform_(1e-6, 1e-4)  # where it matters
            module.weight.fill_(0.01)
    older = {
        re.sub(r"(inner_blocks\.\d|layer_blocks\.\d|rpn\.head\.conv\.0)\.0", r"\1", key): value
        for key, value in reference.state_dict().items()
    }
    older = {key.replace("rpn.head.conv.0.", "rpn.head.conv."): v for key, v in older.items()}
    torch.save(older, tmp_path / "w.pth")
    options = {"name": name}
    found = _of_torchvision(weights, tmp_path / "w.pth", torchvision_detector, options, {})
    assert (found.classes[:2], len(found.classes)) == (("__background__", "person"), 91)
    model = torchvision_detector(name=name, num_classes=3, frozen_norm=True)
    rows = {f"roi_heads.box_predictor.cls_score.{kind}": 1 for kind in ("weight", "bias")}
    rows |= {f"roi_heads.box_predictor.bbox_pred.{kind}": 4 for kind in ("weight", "bias")}
    [line] = fit(model, found, head=rows, classes=["__background__", "dog", "toad"])
    assert "2 kept by name (__background__, dog), 1 new" in line
    predictor = reference.roi_heads.box_predictor
    dog = found.classes.index("dog")
    boxes = model.roi_heads.box_predictor.bbox_pred.weight
    assert torch.equal(boxes[4:8], predictor.bbox_pred.weight[4 * dog : 4 * dog + 4])
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        pairs = zip(
            model.eval().backbone(image).values(),
            reference.eval().backbone(image).values(),
            strict=True,
        )
        for ours, theirs in pairs:
            assert (ours - theirs).norm() < 1e-4 * theirs.norm()


def test_words_of_a_detector() -> None:
    args = {"_target_": "x", "name": "fasterrcnn_resnet50_fpn"}
    with pytest.raises(ConfigError, match=r"type coco, COCO_V1"):
        read_pretrained("imagenet", target=torchvision_detector, arguments=args)
    assert published(torchvision_detector, {"name": "fcos_resnet50_fpn"}) == (
        "FCOS_ResNet50_FPN_Weights.COCO_V1",
        {"frozen_norm": True},
    )
    with pytest.raises(ConfigError, match="no such detector"):
        published(torchvision_detector, {"name": "fasterrcn"})
