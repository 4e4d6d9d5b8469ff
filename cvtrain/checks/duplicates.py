"""Images that are there twice: the same bytes, or the same picture encoded or resized anew.

A picture's hash is of 128 bits: whether each cell of 9x9 is darker than the one to its right (8x8),
and than the one below. Two that differ in few bits are then compared as small grey pictures, of
equal brightness and contrast. Where most cells are like their neighbours, as around digits, bits
say little, and the pictures have to agree all the better.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvtrain.checks.look import THUMB

BITS, NEAR = 128, 7  # of a hash; bits that two near ones may differ in
BANDS = 8  # more than NEAR: two near ones agree in at least one
NEIGHBOURS = 64  # with which each is compared in the order of a band
STEP = 1.0  # of 255, below which two cells count as equal: what JPEG changes at will
PLAIN = 2.0  # of 255: a picture of less deviation is like all others of its kind
# A picture is textured from which share of cells unlike their neighbours on; the mean difference
# of near pictures of deviation 1, of textured and of flat ones; the bits between flat ones. Seen:
# JPEG of quality 15: up to 0.02; CIFAR-10's near duplicates: up to 0.2; MNIST's ones: from 0.02.
TEXTURED, ALIKE, ALIKE_FLAT, NEAR_FLAT = 0.85, 0.2, 0.02, 3
MOST = 100_000  # pairs that are kept
PIECE = 8192  # images or pairs at a time
COUNTS = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


Pairs = Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]]


class Near(NamedTuple):
    first: int
    second: int
    distance: int  # bits of 128


def exact(digests: NDArray[np.uint8], good: NDArray[np.bool_]) -> list[list[int]]:
    """Groups of images `[N, 16]` of the same digest, in their order."""
    places = np.flatnonzero(good)
    words = np.ascontiguousarray(digests[places]).view("V16").ravel()
    _, group, counts = np.unique(words, return_inverse=True, return_counts=True)
    order = np.argsort(group, kind="stable")
    groups = np.split(places[order], np.cumsum(counts)[:-1]) if len(places) else []
    return sorted(members.tolist() for members in groups if len(members) > 1)


def hashes(thumbs: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """`[N, 16]` bytes of `[N, THUMB, THUMB]`; and the share of cells unlike their neighbours."""
    cells = thumbs.reshape(-1, THUMB // 2, 2, THUMB // 2, 2).mean((2, 4), dtype=np.float32)
    across = cells[:, :-1, 1:] - cells[:, :-1, :-1]
    down = cells[:, 1:, :-1] - cells[:, :-1, :-1]
    steps = np.concatenate([across.reshape(-1, 64), down.reshape(-1, 64)], 1)
    return np.packbits(steps > STEP, axis=1), (np.abs(steps) > STEP).mean(1)


def near(thumbs: NDArray[np.uint8], among: NDArray[np.int64]) -> list[Near]:
    """Pairs of the images `among`, nearest first; of plain ones, which are all alike, none."""
    pieces = np.array_split(among, 1 + len(among) // PIECE)
    deviation = np.concatenate([thumbs[piece].std((1, 2)) for piece in pieces])
    among = among[deviation > PLAIN]
    pieces = np.array_split(among, 1 + len(among) // PIECE)
    codes, texture = map(np.concatenate, zip(*(hashes(thumbs[p]) for p in pieces), strict=True))
    flat = texture < TEXTURED
    pairs: dict[tuple[int, int], int] = {}
    for band in range(BANDS):
        for first, second, distance in _candidates(codes, flat, band):
            apart = _difference(thumbs, among[first], among[second])
            close = apart <= np.where(flat[first] | flat[second], ALIKE_FLAT, ALIKE)
            ends = np.sort(np.stack([among[first], among[second]], 1)[close], 1).tolist()
            pairs |= {(a, b): bits for (a, b), bits in zip(ends, distance[close], strict=True)}
            if len(pairs) >= MOST:
                break
    found = [Near(a, b, int(bits)) for (a, b), bits in pairs.items()]
    return sorted(found, key=lambda one: (one.distance, one.first, one.second))[:MOST]


def _candidates(codes: NDArray[np.uint8], flat: NDArray[np.bool_], band: int) -> Pairs:
    """Pairs of few different bits that agree in a band: their places and those bits."""
    turned = np.roll(codes, -2 * band, axis=1)
    words = turned.view(">u8")
    order = np.lexsort((words[:, 1], words[:, 0]))
    codes, keys = codes[order], turned[order].view(">u2")[:, 0]
    for apart in range(1, min(NEIGHBOURS, len(order))):
        same = np.flatnonzero(keys[apart:] == keys[:-apart])
        if not len(same):
            return
        for some in np.array_split(same, 1 + len(same) // PIECE):
            first, second = order[some], order[some + apart]
            distance = COUNTS[codes[some] ^ codes[some + apart]].sum(1)
            most = np.where(flat[first] | flat[second], NEAR_FLAT, NEAR)
            close = distance <= most
            yield first[close], second[close], distance[close]


def _difference(
    thumbs: NDArray[np.uint8], first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Mean difference of pairs of pictures, each brought to mean 0 and deviation 1."""
    return np.asarray(np.abs(_standard(thumbs[first]) - _standard(thumbs[second])).mean((1, 2)))


def _standard(thumbs: NDArray[np.uint8]) -> NDArray[np.float32]:
    values = thumbs.astype(np.float32)
    values -= values.mean((1, 2), keepdims=True)
    return values / values.std((1, 2), keepdims=True)
