"""ImageNet (ILSVRC 2012): `train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`, names beside wnids."""

import hashlib
from pathlib import Path

from torchvision.models import ResNet50_Weights

from cvtrain.data.image_folder import ImageFolder

# Of the thousand wnids in order, a line each: torchvision's names are in the same order.
WNIDS_SHA256 = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
MAPPING = "LOC_synset_mapping.txt"  # of the Kaggle copy: "n01440764 tench, Tinca tinca"


class ImageNet(ImageFolder):
    """An image folder whose classes are wnids. It cannot be downloaded without an account."""

    def class_names(self, classes: list[str]) -> tuple[str, ...]:
        if hashlib.sha256("\n".join(classes).encode()).hexdigest() == WNIDS_SHA256:
            names = dict(zip(classes, ResNet50_Weights.DEFAULT.meta["categories"], strict=True))
        else:  # a part of ImageNet, or another year's: by its own list if there is one
            names = read_mapping(self.root / MAPPING)
        return tuple(f"{names[wnid]} ({wnid})" if wnid in names else wnid for wnid in classes)


def read_mapping(path: Path) -> dict[str, str]:
    """The first name of each wnid; nothing without the file."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    pairs = (line.partition(" ") for line in lines)
    return {wnid: names.split(",")[0].strip() for wnid, _, names in pairs}
