"""Pages that hold all that they show: small pictures as data URIs, so that nothing is loaded from anywhere. Imports no torch."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from PIL import Image

from sdtune.data.images import MAX_PIXELS, load_image


def page(template: str, **values: object) -> str:
    """A page's text. Strangers' words in `values` are escaped; a value that the template lacks is an error of ours."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(**values)


def data_uri(path: Path, side: int, *, max_pixels: int = MAX_PIXELS) -> str:
    """A picture as a JPEG of at most `side` pixels, without its metadata. Raises DataError."""
    image = load_image(path, max_pixels=max_pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
