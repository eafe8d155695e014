"""What a large set costs: start, memory, and reading, with 1,000 to 1,000,000 pictures in the cache.

    python benchmarks/bench_cache.py FOLDER [--sizes 1000 10000 100000 1000000] [--files 1000000] [--out benchmarks/NAME]

The cache is filled with random rows of the embedded base's own shapes (fp16), one picture and one caption each, under the keys that a
plan of so many pictures asks for; each start is a process of its own, at a warm page cache, in the order small to large and back. What
is timed is what a training does with it: load the index, make batches, step. FOLDER needs 13 GB for a million, and as many files for
the listing; it is left as it is, and used again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

BATCH = 16


def config_of(folder: Path) -> Any:
    from sdtune.config import RunConfig, load

    config: RunConfig = load(
        None,
        [
            f"data.cache={folder / 'cache'}", "data.cache_dtype=fp16", "method.type=lora", "train.device=cpu", "train.precision=fp32",
            f"train.batch_size={BATCH}",
        ],
    )  # fmt: skip
    return config


def fill(folder: Path, count: int) -> float:
    """Rows for `count` pictures, and their index; returns the seconds of planning and finding."""
    import torch

    from sdtune.data.cache import Cache
    from sdtune.data.dataset import Example
    from sdtune.data.filling import SHARD_ENTRIES
    from sdtune.data.plan import key_of

    os.fsync = lambda _: None  # 8,000 files of noise need not survive a power cut
    config = config_of(folder)
    model = config.model.load(device="cpu", dtype=None)
    path = folder / f"{count}.safetensors"
    if path.exists():
        return float((folder / f"{count}.seconds").read_text())
    examples = [
        Example(Path(f"/pictures/{i:07d}.jpg"), (f"picture number {i}",), (640, 640), digest=hashlib.sha256(str(i).encode()).hexdigest())
        for i in range(count)
    ]  # fmt: skip
    cache = Cache.open(examples, model, config.data)
    filling = cache._filling
    cond = model.encode_prompts([""]).tensors()
    side, rng = model.resolution // model.downscale, torch.Generator().manual_seed(0)
    frame = cache._plan.frames[0]  # type: ignore[union-attr]
    kinds = {
        f"pictures {frame}": ([v.key for v in cache._plan.views], {"mean": (4, side, side), "logvar": (4, side, side)}),  # type: ignore[union-attr]
        "captions": (
            [key_of("caption", t) for t in cache._plan.texts],
            {n: tuple(t.shape[1:]) for n, t in cond.items()},
        ),  # type: ignore[union-attr]
    }
    for table, (keys, shapes) in kinds.items():
        shards = filling.shards[table]
        missing = [key for key, place in zip(keys, shards.locate(keys)[0], strict=True) if place < 0]
        for at in range(0, len(missing), SHARD_ENTRIES):
            some = missing[at : at + SHARD_ENTRIES]
            stacked = {n: torch.randn((len(some), *shape), generator=rng).half() for n, shape in shapes.items()}
            shards._write(some, stacked)
            if at // SHARD_ENTRIES % 100 == 0:
                print(f"{table}: {at + len(some)} of {len(missing)}", flush=True)
    began = time.perf_counter()
    cache = Cache.open(examples, model, config.data)
    for _ in cache.fill():
        pass
    seconds = time.perf_counter() - began
    cache.save(path)
    (folder / f"{count}.seconds").write_text(str(seconds))
    return seconds


def memory() -> dict[str, float]:
    """MB of this process: its own, and mapped files that happen to be in memory."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(lines[key].split()[0]) / 1024 for name, key in (("own", "RssAnon"), ("files", "RssFile"))}


def measure(folder: Path, count: int) -> dict[str, float]:
    """One start and some steps, in this process."""
    import torch

    from sdtune.data.batch import ahead, batches
    from sdtune.data.cache import Cache
    from sdtune.devices import set_up_cpu
    from sdtune.state import State
    from sdtune.train import train_step

    set_up_cpu(None)
    config = config_of(folder)
    model = config.model.load(device="cpu", dtype=torch.float32)
    before, began = memory(), time.perf_counter()
    cache = Cache.load(folder / f"{count}.safetensors", model, config.data)
    assert cache and len(cache) == count
    stream = batches(cache, config.data, batch_size=BATCH, seed=0, start=0)
    next(stream)
    start, after = time.perf_counter() - began, memory()
    found = {"start_s": start, **{f"{name}_mb": after[name] - before[name] for name in after}}
    at = torch.randint(0, count, (500,), generator=torch.Generator().manual_seed(1))
    for key in ("first_ms", "read_ms"):
        reads = []
        for item in at.split(1):
            began = time.perf_counter()
            cache.latents(item, torch.zeros(1, dtype=torch.long))
            cache.cond(cache.caption_rows(item, torch.zeros(1)))
            reads.append(time.perf_counter() - began)
        found[key] = 1000 * statistics.median(reads)
    parameters = config.method.attach(model, seed=0)
    state = State(model, config.optimizer.build(parameters, seed=0), None)
    objective = config.objective.build(model, None)
    steps, waits = [], []
    fed = ahead(batches(cache, config.data, batch_size=BATCH, seed=0, start=1), 2)
    for _ in range(25):
        began = time.perf_counter()
        parts = list(islice(fed, 1))
        waits.append(time.perf_counter() - began)
        train_step(state, parts, objective, lr=1e-4, max_grad_norm=1.0, seed=0)
        steps.append(time.perf_counter() - began)
    fed.close()
    after = memory()
    found |= {"step_ms": 1000 * statistics.median(steps[5:]), "waited_ms": 1000 * statistics.mean(waits[5:])}
    return found | {"own_after_mb": after["own"] - before["own"]}


def relist(folder: Path, count: int) -> tuple[float, float]:
    """Seconds to list `count` files by name, size and time, twice."""
    from sdtune.data.listing import listing

    root = folder / "files"
    for i in range(0, count, 1000):
        part = root / f"{i // 1000:04d}"
        if not part.exists():
            part.mkdir(parents=True)
            for j in range(1000):
                (part / f"{j:03d}.jpg").touch()
    times = []
    for _ in range(2):
        began = time.perf_counter()
        found = listing([root])
        times.append(time.perf_counter() - began)
        assert found.files >= count
    return times[0], times[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--fill", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    if asked.fill:
        fill(asked.folder, asked.fill)
        return
    if asked.measure:
        print(json.dumps(measure(asked.folder, asked.measure)))
        return
    again = [sys.executable, __file__, str(asked.folder)]
    for size in asked.sizes:
        subprocess.run([*again, "--fill", str(size)], check=True)
    found: dict[int, list[dict[str, float]]] = {size: [] for size in asked.sizes}
    for round_ in range(asked.rounds):
        for size in asked.sizes if round_ % 2 == 0 else reversed(asked.sizes):
            out = subprocess.run([*again, "--measure", str(size)], check=True, capture_output=True, text=True).stdout
            found[size].append(json.loads(out.splitlines()[-1]))
            print(size, found[size][-1], flush=True)
    planned = {size: float((asked.folder / f"{size}.seconds").read_text()) for size in asked.sizes}
    listed = relist(asked.folder, asked.files) if asked.files else (0.0, 0.0)
    print(text := table(found, planned, listed, asked.files))
    if asked.out:
        asked.out.with_suffix(".md").write_text(text)
        plot(found, asked.out.with_suffix(".png"))


ROWS = {
    "start_s": ("start to the first batch", "s"),
    "own_mb": ("memory of its own after it", "MB"),
    "own_after_mb": ("and after 25 steps", "MB"),
    "first_ms": ("a sample read, the first time", "ms"),
    "read_ms": ("a sample read, again", "ms"),
    "waited_ms": ("a step waits for its batch", "ms"),
    "step_ms": ("a step", "ms"),
}


def table(
    found: dict[int, list[dict[str, float]]], planned: dict[int, float], listed: tuple[float, float], files: int
) -> str:
    from importlib import metadata

    import psutil

    sizes, cores = list(found), psutil.cpu_count(logical=False)
    machine = (
        f"{platform.machine()}, {cores} cores; Python {platform.python_version()}, torch {metadata.version('torch')}"
    )
    lines = [
        "# A large set: what it costs", "", f"{machine}; `benchmarks/bench_cache.py`. Medians with ranges.", "",
        "| pictures | " + " | ".join(f"{size:,}" for size in sizes) + " |", "|---|" + "---|" * len(sizes),
    ]  # fmt: skip
    for key, (what, unit) in ROWS.items():
        cells = []
        for size in sizes:
            values = [run[key] for run in found[size]]
            cells.append(f"{statistics.median(values):.3g} {unit} ({min(values):.3g} to {max(values):.3g})")
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    lines.append(
        "| first plan and search, all encoded | " + " | ".join(f"{planned[size]:.3g} s" for size in sizes) + " |"
    )
    if files:
        lines += ["", f"Listing {files:,} files by name, size and time: {listed[0]:.1f} s, again {listed[1]:.1f} s."]
    return "\n".join(lines) + "\n"


def plot(found: dict[int, list[dict[str, float]]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 4, figsize=(15, 6), sharex=True, layout="constrained")
    for axis, (key, (what, unit)) in zip(axes.flat, ROWS.items(), strict=False):
        sizes = list(found)
        middle = [statistics.median(run[key] for run in found[size]) for size in sizes]
        for size in sizes:
            axis.plot([size] * len(found[size]), [run[key] for run in found[size]], ".", color="#9ab")
        axis.plot(sizes, middle, "-", color="#136")
        axis.set(xscale="log", title=what, ylabel=unit, ylim=(0, None))
    axes.flat[-1].remove()
    for axis in axes[1]:
        axis.set_xlabel("pictures in the cache")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
