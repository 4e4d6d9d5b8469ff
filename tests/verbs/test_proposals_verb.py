"""`cvtrain proposals` against networks that are put together, and images that are read, here."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from tiny import command, write_data
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from cvtrain import cli
from cvtrain.config import config_dir
from cvtrain.data.batch import DetectionBatch
from cvtrain.errors import CheckpointError, ConfigError, CvtrainError, DataError, MachineError
from cvtrain.models.detection.faster_rcnn import FasterRCNN
from cvtrain.models.zoo import torchvision_detector
from cvtrain.verbs.proposals import proposed

TWICE = 2  # the images, 48 pixels of a short side, are seen in twice the size
COUNTS = (40, 20)  # proposals of an image of training, of validation
SIZE = f"data.image_size={48 * TWICE}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Wide images and tall ones, as COCO."""
    return ["data=coco", *write_data("coco", tmp_path_factory.mktemp("data")), SIZE]


def train(folder: Path, *typed: str) -> Path:
    """A run of two steps, in this process."""
    assert cli.run([*typed, "debug=smoke", "recipe=none", f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def run(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train(folder, "model=faster_rcnn_tiny", *data, f"model.rpn.post_nms={[*COUNTS]}")


@pytest.fixture(scope="module")
def dumped(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run after the command, image by image."""
    copy = shutil.copytree(run, tmp_path_factory.mktemp("dumped") / "run", symlinks=True)
    done = command("proposals", "run=run", "eval.batch_size=1", cwd=copy.parent, fresh=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split(" boxes an image, recall ") for line in done.stdout.splitlines()]
    files = [f"run/proposals/{split}.npz: {n:.1f}" for split, n in zip(SPLITS, COUNTS, strict=True)]
    assert [first for first, _ in lines] == files
    return copy


SPLITS = ("train", "val")


def read(file: Path) -> dict[str, Tensor]:
    """Of each image, by its name."""
    with np.load(file) as arrays:
        names, ends = arrays["names"].tolist(), arrays["offsets"][1:-1]
        parts = np.split(torch.from_numpy(arrays["boxes"]), ends)
        return dict(zip(names, parts, strict=True))


def state_of(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "best.pt", weights_only=True)["model"]


def seen(file: Path) -> Tensor:
    """As the network gets it."""
    pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)
    pixels = F.resize(pixels, [TWICE * side for side in pixels.shape[1:]], antialias=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels / 255 - mean[:, None, None]) / std[:, None, None]


def network_of(run: Path) -> FasterRCNN:
    arguments = dict(OmegaConf.load(config_dir() / "model" / "faster_rcnn_tiny.yaml"))
    arguments = {k: v for k, v in arguments.items() if k not in ("_target_", "task", "input")}
    arguments["rpn"]["post_nms"] = list(COUNTS)
    model = FasterRCNN(num_classes=3, **arguments)
    model.load_state_dict(state_of(run))
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("split", SPLITS)
def test_boxes_are_those_of_the_rpn(split: str, dumped: Path, run: Path, data: list[str]) -> None:
    model = network_of(run)
    model.rpn.train(split == "train")  # which gives so many
    root = Path(data[1].partition("=")[2]) / "coco"
    found = read(dumped / "proposals" / f"{split}.npz")
    assert list(found) == [f"{split}/{split}{number:03}.jpg" for number in range(1, 13)]
    shapes = set()
    for name, boxes in found.items():
        image = seen(root / name)
        [expected], losses = model.rpn(model.body(image[None]), [image.shape[1:]])
        assert losses == {}
        assert len(boxes) == COUNTS[SPLITS.index(split)]
        torch.testing.assert_close(boxes, expected / TWICE, rtol=0, atol=1e-3)
        shapes.add((image.shape[2], image.shape[1]))
    assert shapes == {(128, 96), (96, 128)}
    with np.load(dumped / "proposals" / f"{split}.npz") as arrays:
        sizes = [Image.open(root / name).size[::-1] for name in found]
        assert arrays["sizes"].tolist() == [list(size) for size in sizes]


def test_the_counts_are_typed(run: Path, tmp_path: Path) -> None:
    typed = ("model.rpn.post_nms=[6,3]", "data.limit=4")  # of which the files know nothing
    assert cli.run(["proposals", f"run={run}", *typed, f"out={tmp_path / 'a' / 'b'}"]) == 0
    for split, count in zip(SPLITS, (6, 3), strict=True):
        found = read(tmp_path / "a" / "b" / f"{split}.npz")
        assert [len(boxes) for boxes in found.values()] == [count] * 12


def test_fast_rcnn_reads_them(
    dumped: Path, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ("model=fast_rcnn_tiny", *data, f"data.proposals={dumped}")
    fast = train(tmp_path / "fast", *typed)
    said = capsys.readouterr().err
    for split, count in zip(SPLITS, COUNTS, strict=True):
        assert f"{split}: {dumped} proposes {count} boxes an image, which meet" in said
    error = refusal(f"run={fast}")
    assert "FastRCNN has no RPN" in error.line()
    assert "type the run of one that has: model=faster_rcnn" in error.line()
    assert error.code == 2
    assert not (fast / "proposals").exists()


def test_a_run_without_them(
    run: Path, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before anything is trained; so it is where those of validation alone are missing."""
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(run, "a run", symlinks=True)
    for split in SPLITS:
        with pytest.raises(DataError) as caught:
            train(Path(split), "model=fast_rcnn_tiny", *data, "data.proposals='a run'")
        assert f"is a run without proposals/{split}.npz" in caught.value.line()
        assert caught.value.line().endswith("type cvtrain proposals run=a run")
        write_any(Path(folder) / "proposals" / f"{split}.npz", data)
    assert not [f for split in SPLITS for f in (tmp_path / split).glob("checkpoints/*.pt")]


def write_any(file: Path, data: list[str]) -> None:
    root = Path(data[1].partition("=")[2]) / "coco"
    names = sorted(str(f.relative_to(root)) for f in (root / file.stem).iterdir())
    sizes = np.array([Image.open(root / name).size[::-1] for name in names])
    boxes = np.tile([0, 0, 9, 9], (len(names), 1)).astype(np.int16)
    file.parent.mkdir(exist_ok=True)
    offsets = np.arange(len(names) + 1)
    np.savez(file, names=names, sizes=sizes, offsets=offsets, boxes=boxes)


def tree(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_a_run_that_is_only_read(
    run: Path, dumped: Path, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy, from another directory, its data moved."""
    copy = shutil.copytree(run, tmp_path / "copy", symlinks=True)
    root = shutil.copytree(Path(data[1].partition("=")[2]) / "coco", tmp_path / "photos")
    before = tree(copy)
    for path in (copy, *copy.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    typed = ("eval.batch_size=1", f"data.root={root}", "out=out")
    assert cli.run(["proposals", "run=../copy", *typed]) == 0
    assert tree(copy) == before
    assert sorted(os.listdir("out")) == ["train.npz", "val.npz"]
    for split in SPLITS:
        ours, theirs = read(Path("out") / f"{split}.npz"), read(dumped / f"proposals/{split}.npz")
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@torch.no_grad()
def test_torchvisions() -> None:
    """Against what leaves its RPN when the whole network is called; padded together, too."""
    torch.manual_seed(0)
    counts = {"rpn_post_nms_top_n_train": 30, "rpn_post_nms_top_n_test": 10}
    model = torchvision_detector(name="fasterrcnn_mobilenet_v3_large_320_fpn", **counts).eval()
    images = [torch.randn(3, 96, 128), torch.randn(3, 128, 96)]
    target = {"boxes": torch.tensor([[4.0, 4, 60, 60]]), "labels": torch.tensor([1])}
    batch = DetectionBatch(images, [target, target], [], None, torch.arange(2))
    given: list[Tensor] = []
    model.rpn.register_forward_hook(lambda _m, _i, out: given.extend(out[0]))
    model(images)
    boxes = proposed(model, batch)
    assert [len(each) for each in boxes] == [10, 10]
    torch.testing.assert_close(boxes, given[:2])
    model.rpn.train()
    more = proposed(model, batch)
    assert [len(each) for each in more] == [30, 30]
    torch.testing.assert_close([each[:10] for each in more], boxes)


# Mistakes


def refusal(*typed: str) -> CvtrainError:
    with pytest.raises(CvtrainError) as caught:
        cli.run(["proposals", *typed])
    assert "\n" not in caught.value.line()
    return caught.value


def test_what_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = refusal()
    assert isinstance(error, ConfigError)
    assert error.line().endswith("no run is named; type run=DIR of a detector with an RPN")
    assert isinstance(refusal("run=nowhere"), CheckpointError)
    assert "model=cnn" in refusal(f"run={run}", "model=cnn").line()
    assert isinstance(refusal(f"run={run}", "data.root=nowhere"), DataError)
    shutil.copy(run / "checkpoints" / "last.pt", "alone.pt")
    error = refusal("run=alone.pt")
    assert error.line().endswith(
        "alone.pt is in no run directory; type out=FOLDER for the proposals"
    )
    error = refusal(f"run={run}", "out=alone.pt/a")
    assert isinstance(error, MachineError)
    assert error.line().endswith("alone.pt/a; type out=FOLDER for one that is writable")
    assert os.listdir() == ["alone.pt"]


def test_a_checkpoint_in_a_run(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run", symlinks=True)
    assert cli.run(["proposals", f"run={copy}/checkpoints/last.pt"]) == 0
    assert sorted(os.listdir(copy / "proposals")) == ["train.npz", "val.npz"]
