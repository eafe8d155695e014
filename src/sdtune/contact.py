"""Many pictures on one sheet: a row per prompt, and a column per seed, step, value of a grid, or model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdtune.files import atomic_write

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdtune.sample import Sample
    from sdtune.timeline import Timeline

SIDE = 256
NARROW = 192
"""Of the cells of sheets with many columns."""
GAP = 8
TITLE = 22
LINE = 18
SIZE = 14
FAINT = "#6b6660"


def write_sheet(samples: Sequence[Sample], path: Path) -> None:
    """Write `samples` to the PNG `path`, each at most 256 pixels wide (small ones enlarged by whole factors), under its prompt."""
    rows: dict[str, list[Image | None]] = {}
    for sample in samples:
        rows.setdefault(sample.prompt, []).append(sample.image)
    _write(list(rows.items()), [], _cell(samples[0].image), path)


def write_grid(samples: Sequence[Sample], path: Path) -> None:
    """Write pictures of a grid (`Sample.cell`) to the PNG `path`: the first axis across, the second down, a block of rows for each
    value of the third, each seed and each prompt."""
    heads = list(dict.fromkeys(sample.cell[0] for sample in samples))
    rows: dict[str, list[Image | None]] = {}
    several = len({(s.ask, s.seed) for s in samples}) > 1
    blocks = sorted(samples, key=lambda s: (s.ask, s.seed))  # stable: within a block in the order of the grid
    for sample in blocks:
        words = [
            *sample.cell[1:],
            *([sample.prompt, f"seed {sample.seed}"] if several or len(sample.cell) == 1 else ()),
        ]
        row = rows.setdefault("   ".join(words), [None] * len(heads))
        row[heads.index(sample.cell[0])] = sample.image
    largest = max((s.image for s in samples), key=lambda image: image.width * image.height)
    _write(list(rows.items()), [(head, "") for head in heads], _cell(largest), path)


def write_timeline(timeline: Timeline, path: Path) -> None:
    """Write the previews to the PNG `path`: a column for each step, under it its validation loss, step 0 being the base."""
    from PIL import Image

    def opened(file: Path | None) -> Image.Image | None:
        if file is None:
            return None
        with Image.open(file, formats=["PNG"]) as image:
            return image.convert("RGB")

    rows = [(f"{row.prompt}   seed {row.seed}", [opened(file) for file in row.cells]) for row in timeline.rows]
    heads = [
        ("base" if step == 0 else f"step {step}", "" if loss is None else f"loss {loss:.4g}")
        for step, loss in zip(timeline.steps, timeline.losses, strict=True)
    ]
    first = next(cell for _, cells in rows for cell in cells if cell)
    _write(rows, heads, _cell(first), path)


def write_columns(
    rows: Sequence[tuple[str, Sequence[Image | None]]], heads: Sequence[tuple[str, str]], path: Path
) -> None:
    """Write titled rows of pictures to the PNG `path`, two lines of words over each column; None is a picture that is missing.

    Cells are at most 192 pixels wide, with the proportions of the last column's pictures; others are fitted into them.
    """
    last = next((image for _, cells in rows for image in reversed(cells) if image), None)
    _write(rows, heads, _cell(last, NARROW, NARROW) if last else (NARROW, NARROW), path)


def _write(
    rows: Sequence[tuple[str, Sequence[Image | None]]],
    heads: Sequence[tuple[str, str]],
    cell: tuple[int, int],
    path: Path,
) -> None:
    """Titled rows of pictures, and over the columns two lines each, if there are any."""
    from PIL import Image, ImageDraw, ImageFont

    width, height = cell
    columns = max(len(cells) for _, cells in rows)
    top = GAP + LINE * sum(any(words) for words in zip(*heads, strict=True))
    size = (GAP + columns * (width + GAP), top + len(rows) * (TITLE + height + GAP))
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(SIZE)
    for column, (head, note) in enumerate(heads):
        x = GAP + column * (width + GAP)
        for line, (text, colour) in enumerate(((head, "black"), (note, FAINT))):
            draw.text((x, GAP + line * LINE), _shortened(text, width, font.getlength), fill=colour, font=font)
    for row, (title, cells) in enumerate(rows):
        y = top + row * (TITLE + height + GAP)
        draw.text((GAP, y), _shortened(title, size[0] - 2 * GAP, font.getlength), fill="black", font=font)
        for column, image in enumerate(cells):
            if image is not None:
                scale = min(width / image.width, height / image.height)
                how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
                shown = image.resize((round(image.width * scale), round(image.height * scale)), how)
                sheet.paste(shown, (GAP + column * (width + GAP), y + TITLE))
    with atomic_write(path) as file:
        sheet.save(file, format="PNG")


def _cell(image: Image, side: int = SIDE, small: int = SIDE // 2) -> tuple[int, int]:
    """Width and height of a cell: at most `side`; of pictures that are smaller a whole multiple, as near to `small` as it goes."""
    width, height = image.size
    if max(width, height) >= side:
        shrink = side / max(width, height)
        return round(width * shrink), round(height * shrink)
    times = max(1, small // max(width, height))
    return width * times, height * times


def _shortened(text: str, width: float, length: object) -> str:
    assert callable(length)
    shown = text
    while len(shown) > 3 and length(shown) > width:
        shown = shown[:-4].rstrip() + "..." if shown.endswith("...") else shown[:-1].rstrip() + "..."
    return shown
