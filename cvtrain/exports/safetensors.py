"""safetensors: the weights alone, by the network's own names, with classes and config beside them.

ResNets have torchvision's names; `model.pretrained=FILE` and `init.weights=FILE` read it back.
"""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from cvtrain.exports.subject import Subject

NOTE = ""
SUFFIX, EXTRA, NEEDS = ".safetensors", "safetensors", ("safetensors",)


def packed(subject: Subject) -> bytes:
    from safetensors.torch import save

    state = subject.network.state_dict()
    return save(
        {name: tensor.contiguous().clone() for name, tensor in state.items()}, subject.about
    )


def opened(path: Path, subject: Subject) -> Callable[..., tuple[Tensor, ...]]:
    """In a network that is made anew."""
    from safetensors.torch import load_file

    network = subject.fresh()
    network.load_state_dict(load_file(path))
    return subject.wrap(network).eval()
