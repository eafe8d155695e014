"""Drawing with the embedded base on this CPU: samplers, batches, cached texts, compiled, and the memory of a large picture.

    python benchmarks/bench_sampling.py [--rounds 3] [--compile]

All ways draw the same prompts and seeds in one process on one thread, one after the other, then backwards, so that a slow minute hits
all alike. Seconds are CPU seconds of the process, medians with their range; compiling is left out of them and told apart.
Likeness: how far a way's pictures are from those of 100 DDIM steps (mean of |difference| over pixels, 0 to 255), and what the scorer sees.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PROMPTS, SEEDS = ("red apple", "penguin"), (1,)
MEMORY = {"whole": {}, "vae_tiling": {"vae_tiling": True}, "both": {"vae_tiling": True, "attention_slicing": True}}
SIDE = 256


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--compile", action="store_true")
    arguments.add_argument("--memory-of", choices=MEMORY)
    options = arguments.parse_args()
    if options.memory_of:
        one_large(options.memory_of)
        return
    speed(options.rounds, compiled=options.compile)
    for name in MEMORY:
        command = [sys.executable, __file__, "--memory-of", name]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def one_large(name: str) -> None:
    from sdtune import config
    from sdtune.config import SampleConfig
    from sdtune.sample import sample

    model = config.load(None).model.load()
    asked = SampleConfig(prompts=("red apple",), seeds=(1,), steps=1, width=SIDE, height=SIDE, **MEMORY[name])  # type: ignore[arg-type]
    list(sample(model, SampleConfig(prompts=("red apple",), seeds=(1,), steps=1)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    list(sample(model, asked))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{SIDE}x{SIDE}, {name}: peak {(peak - before) / 1024:.0f} MB above a 64x64 picture's, {time.process_time() - started:.1f} s"
    )


def speed(rounds: int, *, compiled: bool) -> None:
    import torch

    from sdtune import config
    from sdtune.config import SampleConfig
    from sdtune.metrics.features import Scorer
    from sdtune.sample import sample
    from sdtune.texts import Texts

    torch.set_num_threads(1)
    model, scorer = config.load(None).model.load(), Scorer.load()
    usual = SampleConfig(prompts=PROMPTS, seeds=SEEDS, batch_size=2)

    def draw(asked: SampleConfig) -> list[Image.Image]:
        return [picture.image for picture in sample(model, asked)]

    def texts(times: int) -> Callable[[], list[Image.Image]]:
        def read() -> list[Image.Image]:
            one = Texts(model)
            for _ in range(times):
                one.encode(PROMPTS, 1)
                if times == 1:
                    one = Texts(model)
            return []

        return read

    ways: dict[str, Callable[[], list[Image.Image]]] = {
        "ddim, 50 steps, batch 2": lambda: draw(replace(usual, scheduler="ddim", steps=50)),
        "dpm++2m, 20 steps, batch 2": lambda: draw(usual),
        "dpm++2m, 20 steps, one by one": lambda: draw(replace(usual, batch_size=1)),
        "unipc, 10 steps, batch 2": lambda: draw(replace(usual, scheduler="unipc", steps=10)),
        "two prompts encoded": texts(1),
    }
    reference = draw(replace(usual, scheduler="ddim", steps=100))
    seconds, drawn = measured(ways, rounds)
    if compiled:
        model.denoiser.compile()
        started = time.perf_counter()
        draw(replace(usual, steps=1))
        print(f"compiling took {time.perf_counter() - started:.0f} s")
        more, pictures = measured({"dpm++2m, 20 steps, batch 2, compiled": ways["dpm++2m, 20 steps, batch 2"]}, rounds)
        seconds, drawn = seconds | more, drawn | pictures
    wanted = scorer.texts([prompt for prompt in PROMPTS for _ in SEEDS])
    for name, found in seconds.items():
        line = f"{name}: {statistics.median(found):.2f} s ({min(found):.2f} to {max(found):.2f})"
        if drawn[name]:
            seen = float((scorer.embeds(drawn[name]) * wanted).sum(1).mean())
            line += f", {distance(drawn[name], reference):.1f} from the reference, scorer {seen:.3f}"
        print(line)
    print(f"reference, ddim, 100 steps: scorer {float((scorer.embeds(reference) * wanted).sum(1).mean()):.3f}")


def measured(
    ways: dict[str, Callable[[], list[Image.Image]]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[Image.Image]]]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    drawn = {}
    for i in range(rounds):
        for name in ways if i % 2 == 0 else reversed(ways):
            started = time.process_time()
            drawn[name] = ways[name]()
            seconds[name].append(time.process_time() - started)
    return seconds, drawn


def distance(pictures: list[Image.Image], reference: list[Image.Image]) -> float:
    ours, theirs = (arrays(some) for some in (pictures, reference))
    return float(abs(ours - theirs).mean())


def arrays(pictures: list[Image.Image]) -> NDArray[np.float64]:
    return np.stack([np.asarray(picture, np.float64) for picture in pictures])


if __name__ == "__main__":
    main()
