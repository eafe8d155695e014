"""Small pictures for galleries, kept in memory. Imports no torch."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from sdtune.data import thumbs

SIDE = 256
"""Pixels of the longer side, at most."""


@lru_cache(maxsize=1000)
def thumb(path: Path) -> tuple[bytes, str]:
    """The picture at `path`, which is ours, and the media type. A picture's file never changes. Raises DataError."""
    return thumbs.small(path, SIDE)
