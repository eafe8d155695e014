"""Web pages that hold all that they show: nothing is loaded from anywhere. Imports no torch."""

from __future__ import annotations

import base64
import io
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

LOSSLESS = 128
"""Pictures up to so many pixels a side are stored as PNG, larger ones as JPEG."""


def page(template: str, /, **values: object) -> str:
    """The text of report_assets/<template>.html.j2. Strangers' words in `values` are escaped; one that it lacks is an error of ours."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(asset(f"{template}.html.j2")).render(**values)


def asset(name: str) -> str:
    return (resources.files("sdtune") / "report_assets" / name).read_text(encoding="utf-8")


def data_uri(image: Image.Image, most: int | None = None) -> str:
    """The picture as it stands in a page, reduced to at most `most` pixels a side; without its metadata."""
    from PIL import Image

    if most is not None and max(image.size) > most:
        image = image.copy()
        image.thumbnail((most, most), Image.Resampling.LANCZOS, reducing_gap=3.0)
    large = max(image.size) > LOSSLESS and image.mode == "RGB"
    kind, options = ("jpeg", dict[str, Any](quality=88)) if large else ("png", dict[str, Any]())
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
