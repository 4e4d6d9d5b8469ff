"""A picture alone becomes what it is in an evaluation of its data set."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import write_data

from cvtrain.compose import compose_config
from cvtrain.data.source import Source
from cvtrain.errors import DataError
from cvtrain.targets import make
from cvtrain.trained.inputs import Inputs, grey
from cvtrain.trained.network import Network, build

CPU = torch.device("cpu")


def opened(words: list[str]) -> tuple[Network, Source]:
    config = compose_config([*words, "model.pretrained=null"]).config
    source = make(config.data.args, Source, key="data", trust=[])
    return build(config, source, device=CPU), source


def evaluated(network: Network, source: Source, number: int) -> Any:
    """A batch of one sample of the evaluation split, and its picture as the data have it."""
    from cvtrain.build_loaders import make_loader
    from cvtrain.engine.distributed import Ranks

    config = network.config
    config.eval.batch_size = 1
    loader = make_loader(
        config, source.val(network.size), source, network.size, False, CPU, Ranks()
    )
    batches = [batch for (batch,) in loader.epoch(0)]
    transform = source.transform(
        image_size=network.size,
        channels=network.channels,
        device=CPU,
        channels_last=config.trainer.channels_last,
    )
    return transform(batches[number])


@pytest.mark.parametrize("model", ["lenet5", "cnn", "resnet18"])
def test_a_digit_in_a_png(model: str, tmp_path: Path) -> None:
    words = write_data("mnist", tmp_path)
    network, source = opened([f"model={model}", "data=mnist", *words])
    image = source.image_of(3, "val")
    assert image is not None
    Image.fromarray(image[0].numpy()).save(tmp_path / "digit.png")
    inputs = Inputs(network, CPU)
    seen = inputs.batch([inputs.read(tmp_path / "digit.png")])
    assert torch.equal(seen.images, evaluated(network, source, 3).images)


@pytest.mark.parametrize(
    ("model", "data"), [("cnn", "folder"), ("faster_rcnn_tiny", "coco"), ("lenet5", "folder")]
)
def test_a_file_of_the_data(model: str, data: str, tmp_path: Path) -> None:
    network, source = opened([f"model={model}", f"data={data}", *write_data(data, tmp_path)])
    name = source.name_of(1, "val")
    inputs = Inputs(network, CPU)
    file = Path(name) if Path(name).exists() else next(tmp_path.rglob(Path(name).name))
    of_file = inputs.batch([inputs.read(file)]).images[0]
    assert torch.equal(of_file, evaluated(network, source, 1).images[0])


def test_a_frame_is_as_a_lossless_file(tmp_path: Path) -> None:
    network, _ = opened(["model=cnn", "data=folder", *write_data("folder", tmp_path)])
    frame = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(frame).save(tmp_path / "frame (1).png")
    inputs = Inputs(network, CPU)
    file = inputs.read(tmp_path / "frame (1).png", whole=True)
    assert torch.equal(inputs.of(frame).image, file.image)
    assert file.pixels is not None
    assert (file.pixels.numpy() == frame).all()
    assert file.size == (70, 90)


def test_grey_stays_to_the_bit() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    assert torch.equal(grey(values.expand(3, -1, -1)), values)


def test_what_is_no_image(tmp_path: Path) -> None:
    network, _ = opened(["model=cnn", "data=folder", *write_data("folder", tmp_path)])
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.jpg"):
        Inputs(network, CPU).read(tmp_path / "a.jpg")
