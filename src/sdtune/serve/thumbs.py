"""Small pictures for galleries, kept in memory. Imports no torch."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

from PIL import Image

SIDE = 256
"""Pixels of the longer side, at most."""


@lru_cache(maxsize=1000)
def thumb(path: Path) -> bytes:
    """A JPEG of the picture at `path`, which is ours. A picture's file never changes."""
    with Image.open(path, formats=("PNG",)) as found:
        small = found.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=88)
    return file.getvalue()
