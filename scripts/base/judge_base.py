"""How well the embedded base draws what is asked: the nearest-concept test and the contact sheets.

    python judge_base.py OUT [--model FOLDER] [--guidance 3 5 7] [--concepts 200] [--sheet DIR]

Nearest concept: each of the first 200 concepts (shuffled once, seed 0) is drawn from its plain caption; the drawing counts as right if
its latents lie nearest to those of the asked drawing among ALL concepts (mean of the white versions; Euclidean).
--sheet writes sheet.png (the fixed 50 prompts in a shuffled order, without words, for a reader), sheet_answers.txt and
all.png (every concept, in order).
"""

import argparse
import random
import time
from pathlib import Path

import torch
from captions import caption  # noqa: F401  (keeps the scripts importable together)
from common import CONCEPTS
from PIL import Image
from train_unet import encode_variants

from sdtune.config import SampleConfig
from sdtune.devices import cpu_is_fast_at_bf16
from sdtune.families.sd1 import Sd1
from sdtune.model import Model
from sdtune.sample import denoise, sample

FIFTY = (
    "red apple", "banana", "grapes", "strawberry", "watermelon", "carrot", "mushroom", "hamburger", "pizza", "french fries", "doughnut",
    "birthday cake", "cup of coffee", "dog face", "cat face", "fox face", "panda face", "lion face", "pig face", "frog face", "penguin",
    "owl", "bee", "butterfly", "crab", "fish", "whale", "turtle", "elephant", "cactus", "sunflower", "sun", "rainbow", "snowman", "house",
    "red car", "bus", "bicycle", "airplane", "rocket", "soccer ball", "guitar", "light bulb", "key", "scissors", "umbrella", "crown",
    "red heart", "ghost", "robot face",
)  # fmt: skip


def draw(model: Model, prompts: list[str], guidance: float, seed: int) -> torch.Tensor:
    """Latents of one picture a prompt, each with a seed of its own."""
    config, out = SampleConfig(guidance=guidance), []
    shape = (model.latent_channels, model.resolution // model.downscale, model.resolution // model.downscale)
    for i in range(0, len(prompts), 32):
        part = prompts[i : i + 32]
        seeds = [seed + i + k for k in range(len(part))]
        out.append(denoise(model, config, model.encode_prompts(part), model.encode_prompts([""]), seeds, shape))
    return torch.cat(out)


def nearest(model: Model, out: Path, guidance: float, number: int) -> list[tuple[str, str]]:
    """(asked, found) of each wrong drawing."""
    latents, _ = encode_variants(out)
    centres = latents[:, :32].mean(1).flatten(1)
    who = list(range(len(CONCEPTS)))
    random.Random(0).shuffle(who)
    who = who[:number]
    drawn = draw(model, [CONCEPTS[i].caption for i in who], guidance, 10_000).flatten(1)
    found = torch.cdist(drawn, centres).argmin(1).tolist()
    return [(CONCEPTS[a].caption, CONCEPTS[b].caption) for a, b in zip(who, found, strict=True) if a != b]


def sheet(pictures: list[Image.Image], columns: int, file: Path, zoom: int = 2) -> None:
    cell = 64 + 4
    im = Image.new("RGB", (columns * cell, -(-len(pictures) // columns) * cell), "white")
    for k, picture in enumerate(pictures):
        im.paste(picture, (k % columns * cell + 2, k // columns * cell + 2))
    im.resize((im.width * zoom, im.height * zoom), Image.Resampling.LANCZOS).save(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--guidance", type=float, nargs="+", default=[5.0])
    parser.add_argument("--concepts", type=int, default=200)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    model = Sd1(path=args.model).load(dtype=torch.bfloat16 if cpu_is_fast_at_bf16() else torch.float32)
    for guidance in args.guidance:
        start = time.time()
        wrong = nearest(model, args.out, guidance, args.concepts)
        share = 1 - len(wrong) / args.concepts
        print(
            f"guidance {guidance:g}: nearest concept right {share:.1%} of {args.concepts} ({time.time() - start:.0f} s)",
            flush=True,
        )
        print("   wrong:", ", ".join(f"{a} -> {b}" for a, b in wrong[:12]))
    if args.sheet:
        args.sheet.mkdir(parents=True, exist_ok=True)
        config, order = SampleConfig(guidance=args.guidance[0], batch_size=32), list(FIFTY)
        random.Random(1).shuffle(order)
        pictures = [s.image for s in sample(model, config, prompts=order, seeds=[0])]
        sheet(pictures, 10, args.sheet / "sheet.png")
        (args.sheet / "sheet_answers.txt").write_text("".join(f"{i + 1} {p}\n" for i, p in enumerate(order)))
        every = [s.image for s in sample(model, config, prompts=[c.caption for c in CONCEPTS], seeds=[0])]
        sheet(every, 24, args.sheet / "all.png", zoom=1)


if __name__ == "__main__":
    main()
