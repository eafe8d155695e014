"""Our training step and whole run against the plain loop, on this CPU. `make bench`.

    python benchmarks/bench_cpu.py [--steps 60] [--rounds 3] [--out benchmarks/FILE.md]

Same model (the embedded base), pictures (line art), batch, rank, targets, optimiser; each measurement is a process of its own, in the
order A B C D D C B A ..., so that a slow minute of the machine hits all alike. Figures are medians with their range.
The gate: our bf16 runs must follow our fp32 runs (same noise, timesteps, data; medians of three seeds), or their speed does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata, resources
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from torch import Tensor

    from sdtune.config import RunConfig

BATCH, RANK, LR, WARM = 16, 8, 1e-3, 5
VARIANTS = ("plain fp32", "plain bf16 (autocast)", "sdtune fp32", "sdtune bf16")


def plain(bf16: bool) -> Iterator[float]:
    import plain_loop

    demo = Path(str(resources.files("sdtune") / "demo"))
    yield from plain_loop.train(
        demo / "base", demo / "sets" / "lineart" / "train", batch=BATCH, rank=RANK, lr=LR, bf16=bf16
    )


def configured(folder: str, precision: str, steps: int, *more: str) -> RunConfig:
    """What all runs of ours share: nothing but steps is timed."""
    from sdtune import config

    return config.load(None, (
        "data.path=embedded:lineart", f"data.cache={folder}/cache", f"method.rank={RANK}", f"optimizer.lr={LR}",
        "optimizer.schedule=constant", f"train.steps={steps}", f"train.batch_size={BATCH}", f"train.precision={precision}",
        "train.device=cpu", f"train.threads={os.environ['OMP_NUM_THREADS']}", "train.validate_every=0", "train.sample_every=0", *more,
    ))  # fmt: skip


def ours(precision: str, steps: int) -> Iterator[float]:
    from sdtune.events import Step
    from sdtune.runs import Run
    from sdtune.train import train

    with tempfile.TemporaryDirectory() as folder:
        settings = configured(folder, precision, steps, "method.targets=attention", "train.save_every=1000000")
        for event in train(settings, Run(Path(folder) / "run")):
            if isinstance(event, Step):
                yield event.loss


def worker(variant: str, steps: int) -> None:
    """Measure one variant in this process; print one line of JSON."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    kind, precision = variant.split()[:2]
    losses = plain(precision == "bf16") if kind == "plain" else ours(precision, steps)
    marks = [time.time() for _ in islice(losses, steps)]
    started = psutil.Process().create_time()
    print(json.dumps({
        "first_step_s": marks[0] - started,
        "images_per_s": BATCH * (len(marks) - WARM) / (marks[-1] - marks[WARM - 1]),
        "whole_run_s": marks[-1] - started,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }))  # fmt: skip


def gate(steps: int = 100, seeds: Sequence[int] = (0, 1, 2)) -> tuple[list[float], list[float]]:
    """For each seed the mean relative distance of the bf16 losses from the fp32 ones, and the cosine of the two adapters' weight
    changes after half of the steps.

    Several seeds, since the cosine depends on them: AdamW makes steps of full length of the smallest gradients, and rounding
    decides the sign of those (0.989 to 0.996 with torch's own autocast, too).
    """
    distances, cosines = [], []
    for seed in seeds:
        losses_fp32, change_fp32 = _followed("fp32", steps, seed)
        losses_bf16, change_bf16 = _followed("bf16", steps, seed)
        pairs = zip(losses_fp32, losses_bf16, strict=True)
        distances.append(statistics.mean(abs(a - b) / a for a, b in pairs))
        dot = sum(float((change_fp32[n] * change_bf16[n]).sum()) for n in change_fp32)
        lengths = [
            sum(float(x.square().sum()) for x in change.values()) ** 0.5 for change in (change_fp32, change_bf16)
        ]
        cosines.append(dot / lengths[0] / lengths[1])
    return distances, cosines


def _followed(precision: str, steps: int, seed: int) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of a run, and the change B A of each layer after half of its steps."""
    from safetensors.torch import load_file

    from sdtune.events import Step
    from sdtune.runs import Run
    from sdtune.train import train

    with tempfile.TemporaryDirectory() as folder:
        settings = configured(folder, precision, steps, f"train.seed={seed}", f"train.save_every={steps // 2}")
        run = Run(Path(folder) / "run")
        losses = [e.loss for e in train(settings, run) if isinstance(e, Step)]
        weights = load_file(run.checkpoints / f"step-{steps // 2:06d}" / "weights.safetensors")
    layers = [name.removesuffix(".lora_A") for name in weights if name.endswith(".lora_A")]
    return losses, {n: weights[f"{n}.lora_B"].flatten(1) @ weights[f"{n}.lora_A"].flatten(1) for n in layers}


def measure(steps: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    results: dict[str, list[dict[str, float]]] = {v: [] for v in VARIANTS}
    for k in range(rounds):
        for variant in VARIANTS if k % 2 == 0 else reversed(VARIANTS):
            command = [sys.executable, __file__, "--worker", variant, "--steps", str(steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results[variant].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{variant:24s} {results[variant][-1]['images_per_s']:7.1f} img/s", file=sys.stderr, flush=True)
    return results


def spread(values: list[float], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(results: dict[str, list[dict[str, float]]]) -> str:
    base = results[VARIANTS[0]]
    lines = [
        "| | images/s | ratio to plain fp32 | first step, s | whole run, s | peak memory, MB |",
        "|---|---|---|---|---|---|",
    ]
    for variant, rows in results.items():
        ratios = [r["images_per_s"] / b["images_per_s"] for r, b in zip(rows, base, strict=True)]
        columns = [[r[k] for r in rows] for k in ("images_per_s", "first_step_s", "whole_run_s", "peak_mb")]
        cells = [spread(columns[0]), spread(ratios, 2), spread(columns[1]), spread(columns[2]), spread(columns[3], 0)]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    if args.worker:
        return worker(args.worker, args.steps)
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        processor = next(
            (line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.processor()
        )
    results = measure(args.steps, args.rounds)
    distances, cosines = gate()
    passed = statistics.median(distances) < 1e-2 and statistics.median(cosines) >= 0.99
    versions = ", ".join(f"{p} {metadata.version(p)}" for p in ("torch", "diffusers", "peft"))
    text = (
        f"Training the embedded base with LoRA (rank {RANK}, attention), batch {BATCH}, 64x64 pictures, {args.steps} steps, "
        f"{args.rounds} interleaved rounds: median (range).\n{processor}, {os.environ['OMP_NUM_THREADS']} threads; {versions}; "
        f"{time.strftime('%Y-%m-%d')}.\n"
        f"Command: `python benchmarks/bench_cpu.py --steps {args.steps} --rounds {args.rounds}`\n\n{table(results)}\n\n"
        f"Gate, bf16 against fp32 on the same noise, {len(cosines)} seeds: mean relative distance of 100 losses "
        f"{spread(distances, 4)} (limit 0.01), cosine of the weight changes after 50 steps {spread(cosines, 4)} (limit 0.99): "
        f"{'passed' if passed else 'FAILED'}.\n"
    )
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    if not passed:
        sys.exit(1)
    return None


if __name__ == "__main__":
    main()
