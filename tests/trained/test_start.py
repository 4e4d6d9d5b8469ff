"""Which weights a network starts from, where several are named."""

from pathlib import Path

import pytest
import torch

from cvtrain.compose import compose_config
from cvtrain.errors import ConfigError
from cvtrain.trained.start import Start

DETECTOR = ["model=fasterrcnn_resnet50_fpn", "data=coco"]  # whose recipe names a backbone's


def test_what_is_typed_stands_for_the_recipes(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "own.pt")
    words = [*DETECTOR, f"init.weights={tmp_path / 'own.pt'}"]
    assert compose_config(words).config.model.pretrained_backbone
    start = Start.read(compose_config(words), words)
    assert start.weights is not None
    assert torch.equal(start.weights["weight"], torch.ones(2))
    assert start.pretrained is None
    assert start.composed.config.model.pretrained_backbone is None
    assert "pretrained_backbone: null" in start.composed.text


def test_two_that_are_typed() -> None:
    words = [*DETECTOR, "model.pretrained=coco", "model.pretrained_backbone=imagenet"]
    with pytest.raises(ConfigError, match="weights of two kinds"):
        Start.read(compose_config(words), words)
