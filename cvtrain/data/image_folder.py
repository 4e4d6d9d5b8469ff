"""File data: an image folder `split/<class>/<image>`, read one image at a time by the workers."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import v2

from cvtrain.data.batch import ClassificationBatch
from cvtrain.errors import DataError

SUFFIXES = {".jpg", ".jpeg", ".png"}


class ImageFolder(Dataset):
    """Images uint8 `[3, size, size]` with the number of their class folder, in sorted order."""

    def __init__(self, root: Path, *, size: int, augment: list[Any] | None = None) -> None:
        self.classes = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
        self.files = [
            (file, label)
            for label, name in enumerate(self.classes)
            for file in sorted((root / name).iterdir())
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        ]
        self.size = size
        self.augment = v2.Compose(augment) if augment else None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        file, label = self.files[index]
        try:
            with Image.open(file) as opened:
                image = opened.convert("RGB")
        except OSError as error:
            raise DataError(f"cannot be read: {error}", str(file), name="BAD-IMAGE") from error
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return (self.augment(pixels) if self.augment else pixels), label, index

    @staticmethod
    def collate(samples: list[tuple[Tensor, int, int]]) -> ClassificationBatch:
        return ClassificationBatch(*default_collate(samples))

    def fingerprint(self) -> str:
        """Of every file's place and size."""
        digest = hashlib.sha256()
        for file, label in self.files:
            digest.update(f"{label}/{file.name}/{file.stat().st_size}\n".encode())
        return digest.hexdigest()[:16]
