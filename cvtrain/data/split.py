"""Shares of training, validation and test, drawn of a scan that is not split yet."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cvtrain.data.scan import Scan
from cvtrain.errors import ConfigError
from cvtrain.seeding import seed_for


def split_scan(
    found: Scan,
    groups: Mapping[str, Sequence[int] | NDArray[np.int64]],
    shares: list[float] | None,
    seed: int,
) -> dict[str, Scan]:
    """Each group's samples by their shares, of which there are two or three. Raises ConfigError.

    What a group is split into depends on its name, its size and `seed` alone.
    """
    shares = shares or [0.75, 0.15, 0.10]
    whole = all(0 < share < 1 for share in shares) and abs(sum(shares) - 1) < 1e-6
    if not 2 <= len(shares) <= 3 or not whole:
        raise ConfigError(
            f"data.split={shares} are no shares",
            "",
            "type those of train, val and test, that add up to 1: data.split=[0.75,0.15,0.10]",
        )
    names = ("train", "val", "test")[: len(shares)]
    parts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in names}
    for group, samples in groups.items():
        members = np.random.default_rng(seed_for(seed, "split", group)).permutation(samples)
        # Cut at the rounded sums of the shares, so that no image is lost or used twice.
        cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(int)
        for part, chosen in zip(parts.values(), np.split(members, cuts), strict=True):
            part.append(np.sort(chosen))
    return {name: found.part(np.concatenate(chosen)) for name, chosen in parts.items()}
