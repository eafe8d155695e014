"""Do the demo's LoRA and full run move to the style AND keep the content, for three training seeds?

    python benchmarks/demo_seeds.py [--seeds 0 1 2] [--methods lora full] [--out benchmarks/demo_seeds.md] [KEY=VALUE ...]

Runs each recipe with each seed (a run that is there is gone on with), compares it with the base, and writes the verdicts and figures as one
Markdown table, with a contact sheet: a row of the base, then one of each run, the same prompts and seeds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from PIL import Image

import sdtune
from sdtune import config as configs
from sdtune.compare import Comparison
from sdtune.runs import Run

SHOWN = 24


def run_one(method: str, seed: int, overrides: list[str], folder: Path) -> tuple[Comparison, float]:
    name = f"demo-{method}-{seed}"
    config = configs.load(f"recipes/demo_{method}.toml", [f"train.seed={seed}", f"name={name}", *overrides])
    run, began = Run(folder / name), time.time()
    for _ in sdtune.train(config, run):
        pass
    return sdtune.compare(run), time.time() - began


def row(method: str, seed: int, comparison: Comparison, seconds: float) -> str:
    verdicts = [f"{v.answer}" for v in comparison.scores.verdicts]
    return f"| {method} | {seed} | {' | '.join(verdicts)} | {seconds:.0f} s |"


def sheet(comparisons: list[Comparison], file: Path) -> None:
    pairs = comparisons[0].pairs[: 2 * SHOWN : 2]
    rows = [[p.base for p in pairs], *([p.tuned for p in c.pairs[: 2 * SHOWN : 2]] for c in comparisons)]
    im = Image.new("RGB", (68 * len(pairs), 68 * len(rows)), "white")
    for y, paths in enumerate(rows):
        for x, path in enumerate(paths):
            with Image.open(path) as picture:
                im.paste(picture, (68 * x + 2, 68 * y + 2))
    im.save(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=["lora", "full"])
    parser.add_argument("--folder", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/demo_seeds.md"))
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    results = []
    for method in args.methods:
        for seed in args.seeds:
            comparison, seconds = run_one(method, seed, args.overrides, args.folder)
            results.append((method, seed, comparison, seconds))
            print(row(*results[-1]), flush=True)
    first = results[0][2]
    head = ["method", "seed", *(v.question for v in first.scores.verdicts), "time"]
    text = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *(row(*r) for r in results), ""]
    for method, seed, comparison, _ in results:
        text += [
            f"## {method}, seed {seed}",
            "",
            (comparison.run.comparison / "report.md").read_text(encoding="utf-8"),
            "",
        ]
    args.out.write_text("\n".join(text), encoding="utf-8")
    sheet([r[2] for r in results], args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
