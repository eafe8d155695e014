"""Many pictures on one sheet: a row per prompt, a column per seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdtune.files import atomic_write

if TYPE_CHECKING:
    from sdtune.sample import Sample

SIDE = 256
GAP = 8
TITLE = 22


def write_sheet(samples: Sequence[Sample], path: Path) -> None:
    """Write `samples` to the PNG `path`, each at most 256 pixels wide (small ones enlarged by whole factors), under its prompt."""
    from PIL import Image, ImageDraw, ImageFont

    rows: dict[str, list[Sample]] = {}
    for sample in samples:
        rows.setdefault(sample.prompt, []).append(sample)
    width, height = _cell(samples[0])
    columns = max(map(len, rows.values()))
    size = (GAP + columns * (width + GAP), GAP + len(rows) * (TITLE + height + GAP))
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, (prompt, cells) in enumerate(rows.items()):
        y = GAP + row * (TITLE + height + GAP)
        draw.text((GAP, y), _shortened(prompt, size[0] - 2 * GAP, font.getlength), fill="black", font=font)
        for column, cell in enumerate(cells):
            sheet.paste(
                cell.image.resize((width, height), Image.Resampling.NEAREST), (GAP + column * (width + GAP), y + TITLE)
            )
    with atomic_write(path) as file:
        sheet.save(file, format="PNG")


def _cell(sample: Sample) -> tuple[int, int]:
    width, height = sample.image.size
    if max(width, height) >= SIDE:
        shrink = SIDE / max(width, height)
        return round(width * shrink), round(height * shrink)
    times = max(1, SIDE // 2 // max(width, height))
    return width * times, height * times


def _shortened(text: str, width: float, length: object) -> str:
    assert callable(length)
    shown = text
    while len(shown) > 3 and length(shown) > width:
        shown = shown[:-4].rstrip() + "..." if shown.endswith("...") else shown[:-1].rstrip() + "..."
    return shown
