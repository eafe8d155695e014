"""Web pages that hold all that they show: nothing is loaded from anywhere. Imports no torch."""

from __future__ import annotations

import base64
import hashlib
import io
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

LOSSLESS = 128
"""Pictures up to so many pixels a side are stored as PNG, larger ones as JPEG."""


STILL = ("captions", "check", "vote")
"""Pages whose pictures do not enlarge: those of a set, full of strangers' words, have no script at all; on the other a click is a vote."""


def page(template: str, /, *, js: str = "", **values: object) -> str:
    """The text of report_assets/<template>.html.j2. Strangers' words in `values` are escaped; one that it lacks is an error of ours.

    Pictures enlarge (zoom.js) but for those of STILL. `policy` in the template lets the browser run this very script and load nothing.
    """
    from jinja2 import Environment, StrictUndefined

    text = asset(f"{template}.html.j2")
    js += asset("zoom.js") if "<img" in text and template not in STILL else ""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(text).render(**values, js=js, policy=_policy(js))


def _policy(js: str) -> str:
    """A Content-Security-Policy: pictures inside the page, its styles, and the script with this hash."""
    digest = base64.b64encode(hashlib.sha256(js.encode()).digest()).decode()
    script = f"; script-src 'sha256-{digest}'" if js else ""
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'{script}"


def asset(name: str) -> str:
    return (resources.files("sdtune") / "report_assets" / name).read_text(encoding="utf-8")


def data_uri(image: Image.Image, most: int | None = None) -> str:
    """The picture as it stands in a page, reduced to at most `most` pixels a side; without its metadata."""
    data, kind = encoded(image, most)
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def encoded(image: Image.Image, most: int | None = None) -> tuple[bytes, str]:
    """The same as bytes, and their media type."""
    from PIL import Image

    if most is not None and max(image.size) > most:
        image = image.copy()
        image.thumbnail((most, most), Image.Resampling.LANCZOS, reducing_gap=3.0)
    large = max(image.size) > LOSSLESS and image.mode == "RGB"
    kind, options = ("jpeg", dict[str, Any](quality=88)) if large else ("png", dict[str, Any]())
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True, **options)
    return buffer.getvalue(), f"image/{kind}"
