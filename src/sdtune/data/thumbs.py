"""Pictures of files as they stand in a page. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from sdtune import pages
from sdtune.data.images import MAX_PIXELS, load_image


def data_uri(path: Path, side: int, *, max_pixels: int = MAX_PIXELS) -> str:
    """A picture of at most `side` pixels, without its metadata. Raises DataError."""
    return pages.data_uri(load_image(path, max_pixels=max_pixels), side)


def small(path: Path, side: int, *, max_pixels: int = MAX_PIXELS) -> tuple[bytes, str]:
    """The same as bytes, and their media type. Raises DataError."""
    return pages.encoded(load_image(path, max_pixels=max_pixels), side)
