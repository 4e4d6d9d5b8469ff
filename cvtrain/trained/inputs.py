"""From any image to what a network takes: as the evaluation split of its data does it."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import rgb_to_grayscale

from cvtrain.data.arrays import ArraySource
from cvtrain.data.batch import ClassificationBatch, DetectionBatch, Normalise, to_device
from cvtrain.data.box_transforms import Fit
from cvtrain.data.crops import CenterCrop
from cvtrain.data.detection import NormaliseEach
from cvtrain.data.images import (
    BadImage,
    Box,
    Header,
    probe,
    read_box,
    read_image,
    resized,
    shown,
)
from cvtrain.data.proposals import windows
from cvtrain.data.selective_search import load_opencv, searched
from cvtrain.data.source import Source
from cvtrain.errors import ConfigError, DataError
from cvtrain.targets import resolve
from cvtrain.trained.network import Network

MAX_PIXELS = 100_000_000  # of one image, where the config's data set no limit
FRAMED = 1.25  # array data that are smaller than the network's images by less get a frame


class Seen(NamedTuple):
    """An image on its way into a network."""

    image: Tensor  # uint8 [C, h, w], as the network gets it but for the normalisation
    size: tuple[int, int]  # of the original: height and width in pixels
    pixels: Tensor | None = None  # uint8 [H, W, 3], the original
    proposals: Tensor | None = None  # float32 [P, 4] in pixels of `image`
    place: Box = (0, 0, 0, 0)  # what of the original is seen, in its pixels


class Inputs:
    """`read` or `of` one image, then `batch` of several for `task.predict`."""

    def __init__(self, network: Network, device: torch.device) -> None:
        self.network, self.device = network, device
        config, self.size = network.config, network.size
        arguments, info = config.data.args, network.source.info
        kind = resolve(arguments.get("_target_"), Source, config.trust)
        self.max_pixels = arguments.get("max_pixels", MAX_PIXELS)
        self.detects = config.model.task == "detection"
        self.side, self.frame = self.size, 0
        if issubclass(kind, ArraySource):  # as these are stored: a whole picture, small
            if info.image_size < self.size <= FRAMED * info.image_size:
                self.frame = self.size - info.image_size
            self.side = info.image_size
        self.crop = CenterCrop(fraction=arguments.get("crop_fraction", 1.0))
        self.fit = Fit(self.size, arguments.get("long_side"), arguments.get("square"))
        self.grey = info.channels == 1
        self.transform: Any
        if self.detects:
            self.transform = NormaliseEach(
                mean=network.source.mean, std=network.source.std, device=device
            )
        else:
            self.transform = Normalise(
                mean=network.source.mean,
                std=network.source.std,
                image_size=self.size,
                channels=network.channels,
                device=device,
                channels_last=config.trainer.channels_last,
            )
        self.propose = proposing(network)

    def read(self, path: Path, *, whole: bool = False) -> Seen:
        """A file, with `whole` its own pixels too. Raises DataError (BAD-IMAGE, ...)."""
        try:
            header = probe(path, max_pixels=self.max_pixels)
        except BadImage as error:
            fix = "type source= for another one"
            raise DataError(str(error), shown(path), fix, name=error.name) from error
        size = header.height, header.width
        original = read_image(path, header, *size) if whole else None
        if self.detects:
            image = read_image(path, header, *self.fit(*size))
            return self._proposed(Seen(image.permute(2, 0, 1), size, original, None, _all(header)))
        box = self.crop.box([], header.width, header.height)
        return Seen(self._framed(read_box(path, header, box, self.side)), size, original, None, box)

    def of(self, pixels: Tensor | np.ndarray) -> Seen:
        """A frame, uint8 `[H, W, 3]` in RGB."""
        pixels = torch.as_tensor(pixels)
        size = pixels.shape[0], pixels.shape[1]
        header = Header(size[1], size[0], plain=False)
        if self.detects:
            image = resized(pixels, _all(header), header, *self.fit(*size))
            return self._proposed(Seen(image.permute(2, 0, 1), size, pixels, None, _all(header)))
        box = self.crop.box([], header.width, header.height)
        image = resized(pixels, box, header, self.side, self.side)
        return Seen(self._framed(image), size, pixels, None, box)

    def batch(self, seen: list[Seen]) -> Any:
        """Normalised, on the device; what only training and evaluation need is left empty."""
        ids = torch.arange(len(seen))
        if self.detects:
            proposals = [one.proposals for one in seen if one.proposals is not None]
            images = [one.image for one in seen]
            batch: Any = DetectionBatch(images, [], [], proposals or None, ids)
        else:  # of every task that has one tensor of images
            batch = ClassificationBatch(torch.stack([s.image for s in seen]), ids * 0 - 1, ids)
        return self.transform(to_device(batch, self.device))

    def settings(self) -> dict[str, Any]:
        """All of the above as plain values, for whoever has to do the same without this code."""
        source, channels = self.network.source, self.network.channels
        common = {
            "channels": channels,
            "grey": self.grey,
            "mean": list(source.mean),
            "std": list(source.std),
            "resize": "bilinear, antialiased",
        }
        if self.detects:
            fit = self.fit
            sizes = {"short_side": fit.size, "long_side": fit.long_side, "square": fit.square}
            return {**common, **sizes}
        crop = {"size": self.size, "center_crop": self.crop.fraction}
        return {**common, **crop, "side": self.side, "frame": self.frame}

    def _framed(self, image: Tensor) -> Tensor:
        """`[side, side, 3]` as the data have their images: grey if they are, in their frame."""
        image = grey(image.permute(2, 0, 1)) if self.grey else image.permute(2, 0, 1)
        spare = self.frame
        return F.pad(image, (spare // 2, spare - spare // 2) * 2) if spare else image

    def _proposed(self, seen: Seen) -> Seen:
        if self.propose is None:
            return seen
        height, width = seen.image.shape[-2:]
        boxes = torch.as_tensor(self.propose(seen), dtype=torch.float32)
        scale = torch.tensor([width / seen.size[1], height / seen.size[0]] * 2)
        return seen._replace(proposals=boxes * scale)


def grey(image: Tensor) -> Tensor:
    """uint8 `[3, H, W]` as `[1, H, W]`; what is grey already to the bit, which rounding is not."""
    if bool((image == image[:1]).all()):
        return image[:1]
    return rgb_to_grayscale(image)


def proposing(network: Network) -> Any:
    """From a Seen to its proposals `[P, 4]` in pixels of the original; None where none are needed.

    Raises ConfigError where they would come from a file, which says nothing of other images.
    """
    if not getattr(network.model, "needs_proposals", False):
        return None
    arguments = network.config.data.args
    count, smallest = arguments.get("proposals_count", 2000), arguments.get("proposals_min", 20)
    method = arguments.get("proposals")
    if method == "grid":
        return lambda seen: windows(*seen.size, count)
    if method != "selective_search":
        what = f"the network takes proposals, and data.proposals={method} has none of these images"
        fix = "type data.proposals=grid or data.proposals=selective_search"
        raise ConfigError(what, "data.proposals", fix)
    cv2 = load_opencv()

    def search(seen: Seen) -> Any:
        pixels = seen.image.permute(1, 2, 0) if seen.pixels is None else seen.pixels
        return searched(cv2, pixels, seen.size, count=count, smallest=smallest)

    return search


def _all(header: Header) -> Box:
    return 0, 0, header.width, header.height
