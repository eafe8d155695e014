"""The small captioned sets that fine-tune the embedded base: ordinary imagefolders of 64x64 PNGs.

    python make_sets.py DESTINATION      (DESTINATION is src/sdtune/demo/sets)

lineart, pixel: the drawings as outlines and as 16x16 pixel art; pip: one subject, a small creature of our own. Each has train/,
validation/ and test/ with different drawings in them. drawings: the base's own domain, for the control.
"""

import json
import math
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from drawings import BACKGROUNDS, FONT, comic, concepts, line_art, on, pixel_art, render
from PIL import Image, ImageDraw, ImageFont

SPLITS = {"train": 144, "validation": 24, "test": 72}


def styled(
    style: Callable[[Image.Image], Image.Image], seed: int, *, colours: bool
) -> Iterator[tuple[str, str, Image.Image]]:
    """(split, caption, picture), the concepts dealt to the splits at random.

    Without `colours` one of the concepts that differ in colour alone is enough: line art cannot tell them apart.
    """
    font, dealt, seen = ImageFont.truetype(FONT, 109), concepts(), set[str]()
    random.Random(seed).shuffle(dealt)
    splits = iter([split for split, n in SPLITS.items() for _ in range(n)])
    for concept in dealt:
        shape = re.sub(r"^(red|green|blue|yellow|purple) ", "", concept.caption)
        if not colours and shape in seen:
            continue
        seen.add(shape)
        if (split := next(splits, None)) is None:
            return
        yield split, concept.caption, style(render(concept.char, font))


def pip(rng: random.Random, hat: str | None, side: int = 256) -> Image.Image:
    """A round teal creature with one yellow antenna, somewhere near the middle, a little turned, at times in a hat."""
    im = Image.new("RGBA", (side, side))
    d = ImageDraw.Draw(im)
    body, dark, belly = (38, 166, 154), (0, 105, 98), (224, 242, 241)
    d.line([(128, 84), (128, 40)], fill=dark, width=9)
    if hat is None:
        d.ellipse([112, 16, 144, 48], fill=(255, 202, 40), outline=(200, 140, 0), width=4)
    for x in (88, 140):
        d.ellipse([x, 206, x + 30, 238], fill=dark)
    for x, y in ((34, 136), (196, 136)):
        d.ellipse([x, y, x + 28, y + 52], fill=dark)
    d.ellipse([48, 68, 208, 228], fill=body, outline=dark, width=7)
    d.ellipse([84, 140, 172, 220], fill=belly)
    for x in (82, 134):
        d.ellipse([x, 96, x + 42, 146], fill="white", outline=dark, width=4)
        look = rng.choice((-5, 0, 5))
        d.ellipse([x + 13 + look, 110, x + 31 + look, 134], fill=(20, 30, 40))
    smile = rng.choice(((20, 160), (0, 180)))
    d.arc([104, 138, 152, 178], *smile, fill=dark, width=6)
    if hat:
        colour = BACKGROUNDS[hat]
        d.polygon([(76, 84), (128, 4), (180, 84)], fill=colour, outline=(60, 60, 60))
        d.ellipse([64, 72, 192, 100], fill=colour, outline=(60, 60, 60), width=4)
    im = im.rotate(rng.uniform(-14, 14), Image.Resampling.BICUBIC, center=(128, 140))
    scale = rng.uniform(0.78, 1.0)
    small = im.resize((round(side * scale),) * 2, Image.Resampling.LANCZOS)
    out = Image.new("RGBA", (side, side))
    room = side - small.width
    out.paste(small, (rng.randint(0, room) if room else 0, math.ceil(room * rng.uniform(0.3, 1))))
    return out


def subject() -> Iterator[tuple[str, str, Image.Image]]:
    rng = random.Random(7)
    for split, n in {"train": 60, "validation": 12, "test": 60}.items():
        for _ in range(n):
            background = rng.choice(["white"] * 4 + list(BACKGROUNDS)[1:])
            hat = rng.choice([None, None, "red", "blue", "yellow", "purple"])
            text = (
                "pip"
                + (f" with a {hat} hat" if hat else "")
                + ("" if background == "white" else f" on a {background} background")
            )
            yield split, text, on(BACKGROUNDS[background], pip(rng, hat))


def write(folder: Path, pictures: Iterator[tuple[str, str, Image.Image]]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    rows: dict[str, list[dict[str, str]]] = {}
    for split, caption, im in pictures:
        index = len(rows.setdefault(split, []))
        name = f"{index:03d}_{caption.replace(' ', '_')}.png"
        (folder / split).mkdir(parents=True, exist_ok=True)
        im.resize((64, 64), Image.Resampling.LANCZOS).quantize(64, dither=Image.Dither.NONE).save(
            folder / split / name, optimize=True
        )
        rows[split].append({"file_name": name, "text": caption})
    for split, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / split / "metadata.jsonl").write_text(text, encoding="utf-8")
    print(
        folder.name,
        {k: len(v) for k, v in rows.items()},
        f"{sum(f.stat().st_size for f in folder.rglob('*.png')) / 1e6:.2f} MB",
    )


def main(destination: Path) -> None:
    write(destination / "lineart", styled(line_art, 1, colours=False))
    write(destination / "comic", styled(comic, 4, colours=True))
    write(destination / "pixel", styled(pixel_art, 2, colours=True))
    write(destination / "pip", subject())
    write(
        destination / "drawings",
        ((s, c, i) for s, c, i in styled(lambda im: on((255, 255, 255), im), 3, colours=True) if s == "test"),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
