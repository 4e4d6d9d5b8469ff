"""Counted randomness: a random number is a function of what it is for, not of what came before."""

import hashlib


def seed_for(*purpose: int | str) -> int:
    """A 63-bit seed from a purpose such as `(seed, "order", epoch)`; the same on every machine."""
    digest = hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
