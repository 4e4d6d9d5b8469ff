"""Shares of training, validation and test, drawn of a scan that is not split yet."""

from dataclasses import replace

import numpy as np

from cvtrain.data.scan import Scan
from cvtrain.errors import ConfigError
from cvtrain.seeding import seed_for


def split_scan(
    found: Scan, groups: dict[str, list[int]], shares: list[float] | None, seed: int
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
    parts: dict[str, list[int]] = {name: [] for name in ("train", "val", "test")[: len(shares)]}
    for group, samples in groups.items():
        members = np.random.default_rng(seed_for(seed, "split", group)).permutation(samples)
        # Cut at the rounded sums of the shares, so that no image is lost or used twice.
        cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(int)
        for part, chosen in zip(parts.values(), np.split(members, cuts), strict=True):
            part.extend(sorted(chosen.tolist()))
    return {name: _part(found, chosen) for name, chosen in parts.items()}


def _part(found: Scan, chosen: list[int]) -> Scan:
    return replace(
        found,
        files=[found.files[i] for i in chosen],
        labels=[found.labels[i] for i in chosen],
        headers=[found.headers[i] for i in chosen],
    )
