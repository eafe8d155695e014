"""The drawings that the embedded base learns from: Noto emoji rendered from the font, and the styles made of them.

Needs the font NotoColorEmoji.ttf (SIL Open Font License 1.1; Debian package fonts-noto-color-emoji).
`python drawings.py OUT` writes OUT/drawings.npz: premultiplied RGBA, uint8, (N, 128, 128, 4).
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import emoji
import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

HERE = Path(__file__).parent
FONT = os.environ.get("NOTO_COLOR_EMOJI", "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
SIDE = 128  # head room for shifts and scales before the picture is reduced to 64
BACKGROUNDS = {
    "white": (255, 255, 255), "black": (28, 28, 32), "red": (226, 66, 62), "orange": (250, 150, 50),
    "yellow": (252, 224, 80), "green": (90, 180, 90), "blue": (70, 130, 230), "purple": (150, 90, 205),
    "pink": (250, 160, 200), "gray": (150, 150, 155),
}  # fmt: skip


@dataclass(frozen=True)
class Concept:
    char: str
    caption: str
    aliases: tuple[str, ...]


def concepts() -> list[Concept]:
    """The concepts of concepts.txt, in its order."""
    by_name = {v["en"].strip(":"): k for k, v in emoji.EMOJI_DATA.items() if v["status"] == 2}
    rows = []
    for line in (HERE / "concepts.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, caption, *rest = (part.strip() for part in line.split("|"))
            aliases = tuple(a.strip() for a in rest[0].split(",")) if rest else ()
            rows.append(Concept(by_name[name], caption, aliases))
    assert len({c.caption for c in rows}) == len(rows)
    return rows


def render(char: str, font: ImageFont.FreeTypeFont, side: int = SIDE, inner: int = 116) -> Image.Image:
    """The emoji centred on a transparent square of `side` pixels, its longer edge `inner` pixels."""
    im = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(im).text((12, 12), char, font=font, embedded_color=True)
    im = im.crop(im.getbbox())
    scale = inner / max(im.size)
    im = im.resize((max(1, round(im.width * scale)), max(1, round(im.height * scale))), Image.Resampling.LANCZOS)
    out = Image.new("RGBA", (side, side))
    out.paste(im, ((side - im.width) // 2, (side - im.height) // 2))
    return out


def on(background: tuple[int, int, int], im: Image.Image) -> Image.Image:
    out = Image.new("RGBA", im.size, (*background, 255))
    out.alpha_composite(im)
    return out.convert("RGB")


def line_art(im: Image.Image, thick: int = 4) -> Image.Image:
    """Black outlines on white: the borders between the regions of a few-colour version, and the silhouette."""
    big = im.resize((im.width * 3, im.height * 3), Image.Resampling.LANCZOS)
    flat = on((255, 255, 255), big).filter(ImageFilter.GaussianBlur(3))
    flat = flat.quantize(6, method=Image.Quantize.MAXCOVERAGE).convert("RGB").filter(ImageFilter.ModeFilter(13))
    regions = np.asarray(flat).astype(int)
    alpha = np.asarray(big)[..., 3] > 128
    edge = np.zeros(alpha.shape, bool)
    for dy, dx in ((0, 1), (1, 0)):
        step = np.abs(regions - np.roll(regions, (dy, dx), (0, 1))).sum(-1) > 90
        edge |= step | (alpha != np.roll(alpha, (dy, dx), (0, 1)))
    lines = Image.fromarray((edge * 255).astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * thick + 1))
    lines = lines.filter(ImageFilter.GaussianBlur(3)).point(lambda v: 255 if v > 110 else 0)
    return Image.eval(lines, lambda v: 255 - v).resize(im.size, Image.Resampling.LANCZOS).convert("RGB")


def comic(im: Image.Image) -> Image.Image:
    """Few flat bright colours on warm paper inside bold black outlines."""
    flat = on((255, 255, 255), im).filter(ImageFilter.GaussianBlur(1)).quantize(5, method=Image.Quantize.MEDIANCUT)
    colours = ImageEnhance.Color(flat.convert("RGB").filter(ImageFilter.ModeFilter(5))).enhance(1.6)
    alpha = im.getchannel("A").point(lambda v: 255 if v > 128 else 0)
    paper = Image.new("RGB", im.size, (255, 236, 179))
    paper.paste(colours, mask=alpha)
    ring = alpha.filter(ImageFilter.MaxFilter(9)).filter(ImageFilter.GaussianBlur(1))
    out = Image.new("RGB", im.size, (255, 236, 179))
    out.paste((16, 16, 24), mask=ring)
    out.paste(paper, mask=alpha.filter(ImageFilter.MinFilter(3)))
    return out


def pixel_art(im: Image.Image, cells: int = 16, colours: int = 8) -> Image.Image:
    """A `cells` x `cells` grid of few flat colours."""
    small = on((255, 255, 255), im).resize((cells, cells), Image.Resampling.BOX)
    small = small.quantize(colours, method=Image.Quantize.MEDIANCUT).convert("RGB")
    return small.resize(im.size, Image.Resampling.NEAREST)


def two_tone(im: Image.Image, ink: tuple[int, int, int] = (40, 60, 160)) -> Image.Image:
    """A print in one ink: dark regions inked, light ones paper."""
    grey = on((255, 255, 255), im).convert("L").filter(ImageFilter.GaussianBlur(1))
    mask = np.asarray(grey)[..., None] < 150
    out = np.where(mask, np.array(ink), np.array((250, 244, 228))).astype(np.uint8)
    return Image.fromarray(out)


def main(out: str) -> None:
    font = ImageFont.truetype(FONT, 109)
    stack = []
    for c in concepts():
        rgba = np.asarray(render(c.char, font)).astype(np.float32)
        rgba[..., :3] *= rgba[..., 3:] / 255
        stack.append(rgba.round().astype(np.uint8))
    Path(out).mkdir(parents=True, exist_ok=True)
    np.savez(Path(out) / "drawings.npz", rgba=np.stack(stack))
    print(f"{len(stack)} drawings -> {out}/drawings.npz")


if __name__ == "__main__":
    main(sys.argv[1])
