"""What is exported: a network as a function from tensors to tensors, all of them with names."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# Sizes that may differ from call to call, by input and dimension.
Varying = dict[str, dict[int, str]]
BATCH = {0: "batch"}
SIZES = {2: "height", 3: "width"}
DETECTORS: Varying = {"image": {1: "height", 2: "width"}, "proposals": {0: "proposals"}}


@dataclass(frozen=True)
class Subject:
    """`module(*inputs)` gives a tuple of tensors, named `outputs`; `detects`: of a detector."""

    network: nn.Module  # as it is trained
    wrap: Callable[[nn.Module], nn.Module]
    inputs: dict[str, Tensor]  # an example
    varying: Varying
    outputs: tuple[str, ...]
    detects: bool
    about: dict[str, str]  # for a format that has room for it
    fresh: Callable[[], nn.Module]  # the same network with random weights

    @property
    def module(self) -> nn.Module:
        return self.wrap(self.network).eval()

    @property
    def counts_boxes(self) -> bool:
        """In Python, as torchvision's detectors do: torch.export does not know how many are left,
        only a trace passes over that question.
        """
        return self.detects and type(self.network).__module__.startswith("torchvision.")

    @property
    def example(self) -> tuple[Tensor, ...]:
        return tuple(self.inputs.values())

    @property
    def shapes(self) -> dict[str, str]:
        """Of each input, as a reader wants them: `batch x 3 x height x width`."""
        return {
            name: " x ".join(self.varying[name].get(d, str(n)) for d, n in enumerate(tensor.shape))
            for name, tensor in self.inputs.items()
        }


class Classifier(nn.Module):
    """Images [N, C, H, W] to the logits of each head; `box`: the last four numbers apart."""

    def __init__(self, network: nn.Module, *, box: bool) -> None:
        super().__init__()
        self.network, self.box = network, box

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        given = self.network(images)
        if isinstance(given, dict):
            return tuple(given.values())
        return (given[:, :-4], given[:, -4:]) if self.box else (given,)


class Detector(nn.Module):
    """One image [3, H, W], and proposals [P, 4] where it takes some, to what is found in it.

    Labels count from 0, as the names do: the background is never among them.
    """

    def __init__(self, network: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.outputs = network, outputs

    def forward(self, image: Tensor, proposals: Tensor | None = None) -> tuple[Tensor, ...]:
        outside = () if proposals is None else ([proposals],)
        [found] = self.network([image], None, *outside)
        real = found["labels"] > 0  # RetinaNet and FCOS have an output for the background
        given = {**found, "labels": found["labels"] - 1}
        return tuple(given[name][real] for name in self.outputs)


@torch.no_grad()
def classifier(
    network: nn.Module, images: Tensor, *, box: bool, any_size: bool, **more: Any
) -> Subject:
    """Of a network that takes one tensor of images, of which these are the example: two or more."""
    given = network(images)
    outputs = ("logits", "box") if box else tuple(given) if isinstance(given, dict) else ("logits",)
    varying = {"images": BATCH | SIZES if any_size else BATCH}
    wrap = partial(Classifier, box=box)
    return Subject(network, wrap, {"images": images}, varying, outputs, False, **more)


@torch.no_grad()
def detector(network: nn.Module, inputs: tuple[Tensor, ...], **more: Any) -> Subject:
    """Of a network that takes a list of images; one of them, and its proposals, is the example."""
    image, *proposals = inputs
    [found] = network([image], None, *([given] for given in proposals))
    outputs = ("boxes", "labels", "scores", *(("masks",) if "masks" in found else ()))
    named = dict(zip(DETECTORS, inputs, strict=False))
    varying = {name: DETECTORS[name] for name in named}
    wrap = partial(Detector, outputs=outputs)
    return Subject(network, wrap, named, varying, outputs, True, **more)
