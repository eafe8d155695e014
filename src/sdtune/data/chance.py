"""Chance that is a function of a text: the same on every machine, in every run. Imports no torch."""

import hashlib


def uniform(key: str) -> float:
    """A number in [0, 1) drawn by a hash of `key`."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6]) / 2**48
