"""`sdtune serve` on this CPU against the plain diffusers pipeline in a loop: what the API costs, "both" against one, batches, memory.

    python benchmarks/bench_serving.py [--rounds 7] [--requests 32] [--of overhead,both,throughput,memory] [--out benchmarks/serving_cpu]

The embedded base in fp32, 64x64 pictures, 20 steps, guidance 5, one thread for each process that draws; a LoRA and a full fine-tune of two
steps each, since what they have learnt costs nothing. All requests are real HTTP to a server that is a process of its own. What is
compared is drawn in turns, forwards and backwards, so that a slow minute hits all alike; figures are medians with their range,
ratios those of one round. CPU seconds are of all processes together, for machines where others work, too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from importlib import metadata, resources
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import httpx
import psutil

STEPS, PROMPT = 20, "a red apple"
PARTS = ("overhead", "both", "throughput", "memory")
AT = (100, 400, 700, 1000)
"""Requests after which memory is looked at."""
Times = dict[str, list[tuple[float, float]]]
"""By way: (wall, CPU) seconds of each round."""


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--requests", type=int, default=32)
    arguments.add_argument("--of", default=",".join(PARTS))
    arguments.add_argument("--out", type=Path, default=Path(__file__).parent / "serving_cpu")
    options = arguments.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        runs = trained(Path(folder))
        for part in options.of.split(","):
            found[part] = {
                "overhead": lambda: overhead(runs, options.rounds),
                "both": lambda: both(runs, options.rounds),
                "throughput": lambda: throughput(runs, max(1, options.rounds // 2), options.requests),
                "memory": lambda: memory(runs),
            }[part]()
            print(json.dumps({part: found[part]}), flush=True)
    about = {
        "machine": f"{os.cpu_count()} cores, {_processor()}", "date": f"{datetime.now():%Y-%m-%d}", "rounds": options.rounds,
        "requests": options.requests, **{name: metadata.version(name) for name in ("torch", "diffusers", "sdtune")},
    }  # fmt: skip
    options.out.with_suffix(".json").write_text(json.dumps({"about": about, **found}, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(page(about, found))


# ---- what is measured


def overhead(runs: Path, rounds: int) -> dict[str, Any]:
    """From POST to `done`, one picture after the other, against the pipeline; and how much of it is our sampler's."""
    pipeline, sampler = plain_pipeline(), own_sampler()
    with serving(runs) as server:
        ways = {
            "diffusers' pipeline": pipeline,
            "our sampler in a loop": sampler,
            "server": lambda: server.draw(model="base"),
            "server, previews": lambda: server.draw(model="base", previews=True),
        }
        times = measured(ways, rounds * 3, server)
    return summary(times, "diffusers' pipeline")


def both(runs: Path, rounds: int) -> dict[str, Any]:
    """`compare` against one picture of the tuned model, one seed."""
    found: dict[str, Any] = {}
    for name, options in {"1 worker": (), "2 workers": ("--workers", "2"), "--batch 8": ("--batch", "8")}.items():
        with serving(runs, *options) as server:
            for model in ("lora", "full"):
                ways = {
                    "one": lambda model=model: server.draw(model=model),
                    "both": lambda model=model: server.draw(model=model, kind="compare"),
                }
                found[f"{name}, {model}"] = summary(measured(ways, rounds, server), "one")
    return found


def throughput(runs: Path, rounds: int, requests: int) -> dict[str, Any]:
    """So many requests one after the other, and the same at once."""
    found: dict[str, Any] = {}
    for name, options in {"--batch 8": ("--batch", "8"), "2 workers": ("--workers", "2")}.items():
        with serving(runs, "--queue", "300", *options) as server, ThreadPoolExecutor(requests) as many:

            def ask(seed: int) -> None:
                server.draw(model="base", seeds=[seed])

            ways = {
                "one by one": lambda: [ask(seed) for seed in range(requests)],
                "at once": lambda: list(many.map(ask, range(requests))),
            }
            found[name] = summary(measured(ways, rounds, server), "one by one")
    return found


def memory(runs: Path) -> dict[str, Any]:
    """Resident MB of server and worker while adapters are switched, with previews, uploads and ever new prompts."""
    found: dict[str, Any] = {"server": {}, "worker": {}}
    with serving(runs, "--keep-pictures", "300") as server:
        for number in range(1, AT[-1] + 1):
            wish: dict[str, Any] = {
                "model": ("lora", "full", "base")[number % 3],
                "prompt": f"a red apple, number {number}",
            }
            if number % 10 == 0:
                wish |= {"kind": "img2img", "image": server.upload(number)}
            server.draw(**wish, steps=2, previews=True)
            if number in AT:
                for name, process in zip(found, (server.process, *server.workers), strict=True):
                    found[name][number] = round(process.memory_info().rss / 2**20, 1)
                print(number, found, file=sys.stderr, flush=True)
    return found


# ---- how


def trained(folder: Path) -> Path:
    import sdtune

    usual = (
        "data.path=embedded:comic", f"data.cache={folder}/cache", "train.steps=2", "train.batch_size=2", "train.precision=fp32",
        "train.device=cpu", "train.sample_every=0", "train.validate_every=0",
    )  # fmt: skip
    for name, method in {"lora": ("method.rank=8",), "full": ("method.type=full",)}.items():
        for _ in sdtune.train(sdtune.load_config(None, *usual, f"name={name}", *method), folder / "runs" / name):
            pass
    return folder / "runs"


def plain_pipeline() -> Callable[[], object]:
    import torch
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    torch.set_num_threads(1)
    base = str(resources.files("sdtune") / "demo" / "base")
    pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None, torch_dtype=torch.float32)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    rng = torch.Generator()
    return lambda: pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=5.0, generator=rng.manual_seed(1)).images


def own_sampler() -> Callable[[], object]:
    from sdtune import config
    from sdtune.config import SampleConfig
    from sdtune.sample import sample

    model = config.load(None).model.load()
    asked = SampleConfig(prompts=(PROMPT,), seeds=(1,), steps=STEPS, guidance=5.0, batch_size=1)
    return lambda: list(sample(model, asked))


class Serving:
    """`sdtune serve` as a process of its own."""

    def __init__(self, runs: Path, folder: Path, *arguments: str) -> None:
        sources = [str(runs)] if runs.is_dir() else []
        command = [
            sys.executable,
            "-m",
            "sdtune",
            "serve",
            *sources,
            "embedded",
            "--port",
            "0",
            "--folder",
            str(folder),
        ]
        log = folder.with_suffix(".log")
        with log.open("w") as out:
            more = ("--threads", "1", "--device", "cpu", "--precision", "fp32", *arguments)
            self._popen = subprocess.Popen([*command, *more], stderr=out, stdout=out)
        while not (said := re.search(r"listening on (http://\S+);", log.read_text())):
            if self._popen.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.1)
        address = said[1]
        self.http = httpx.Client(base_url=address, timeout=600, limits=httpx.Limits(max_connections=None))
        self.process = psutil.Process(self._popen.pid)
        workers = int(arguments[arguments.index("--workers") + 1]) if "--workers" in arguments else 1
        while self.http.get("/metrics").text.count("sdtune_worker_ready{") < workers or not self._all_ready():
            time.sleep(0.1)
        self.workers = self.process.children()

    def _all_ready(self) -> bool:
        lines = [
            line for line in self.http.get("/metrics").text.splitlines() if line.startswith("sdtune_worker_ready{")
        ]
        return all(line.endswith(" 1") for line in lines)

    def draw(self, **wish: Any) -> None:
        """From POST to `done`."""
        if wish.get("model") == "base":
            wish["model"] = "embedded"
        body = {"prompt": PROMPT, "seeds": [1], "steps": STEPS, "guidance": 5.0, "previews": False, **wish}
        answer = self.http.post("/api/jobs", json=body)
        assert answer.status_code == 202, answer.text
        with self.http.stream("GET", answer.json()["events"]) as events:
            said = [line for line in events.iter_lines() if line.startswith("event: ")]
        assert said[-1] == "event: done", said

    def upload(self, number: int) -> str:
        import io

        from PIL import Image

        file = io.BytesIO()
        Image.new("RGB", (64, 64), (number % 256, 0, 0)).save(file, "PNG")
        answer = self.http.post("/api/uploads", content=file.getvalue(), headers={"content-type": "image/png"})
        return str(answer.json()["id"])

    def cpu(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in (self.process, *self.workers))

    def close(self) -> None:
        self._popen.terminate()
        self._popen.wait(60)
        self.http.close()


@contextlib.contextmanager
def serving(runs: Path, *arguments: str) -> Iterator[Serving]:
    with tempfile.TemporaryDirectory() as folder:
        server = Serving(runs, Path(folder) / "served", *arguments)
        try:
            yield server
        finally:
            server.close()


def measured(ways: dict[str, Callable[[], object]], rounds: int, server: Serving) -> Times:
    for way in ways.values():  # models load, memory is taken
        way()
    times: Times = {name: [] for name in ways}
    for i in range(rounds):
        for name in list(ways) if i % 2 == 0 else reversed(ways):
            cpu, began = time.process_time() + server.cpu(), time.perf_counter()
            ways[name]()
            times[name].append((time.perf_counter() - began, time.process_time() + server.cpu() - cpu))
    return times


def summary(times: Times, base: str) -> dict[str, Any]:
    """Of each way: seconds, CPU seconds, and their ratios to `base`; median, least, most."""
    told: dict[str, Any] = {}
    for name, rows in times.items():
        against = list(zip(rows, times[base], strict=True))
        told[name] = {
            "seconds": middle([row[0] for row in rows]), "cpu": middle([row[1] for row in rows]),
            "ratio": middle([a[0] / b[0] for a, b in against]), "cpu_ratio": middle([a[1] / b[1] for a, b in against]),
        }  # fmt: skip
    return told


def middle(values: list[float]) -> list[float]:
    return [round(v, 3) for v in (statistics.median(values), min(values), max(values))]


# ---- the page


def page(about: dict[str, Any], found: dict[str, Any]) -> str:
    how = (
        f"The embedded base, fp32, 64x64, {STEPS} steps, one thread for each worker; {about['machine']}; torch {about['torch']}, "
        f"diffusers {about['diffusers']}; {about['date']}. `python benchmarks/bench_serving.py --rounds {about['rounds']}`. Medians with "
        "their range; ratios are of one round, CPU seconds of all processes together."
    )
    lines = ["# `sdtune serve` on a CPU", "", how, ""]
    tables = [("One picture, from POST to `done`", found["overhead"])] if "overhead" in found else []
    tables += [(f'"both" against one: {name}', rows) for name, rows in found.get("both", {}).items()]
    count = about["requests"]
    tables += [(f"{count} requests: {name}", rows) for name, rows in found.get("throughput", {}).items()]
    for title, rows in tables:
        lines += [
            f"## {title}",
            "",
            "| | seconds | CPU seconds | ratio | ratio of CPU seconds |",
            "|---|---|---|---|---|",
        ]
        keys = ("seconds", "cpu", "ratio", "cpu_ratio")
        lines += [f"| {name} | {' | '.join(shown(row[key]) for key in keys)} |" for name, row in rows.items()]
        lines += [""]
    if "memory" in found:
        lines += [
            "## Memory, MB, after so many requests",
            "",
            f"| | {' | '.join(map(str, AT))} |",
            f"|---|{'---|' * len(AT)}",
        ]
        lines += [f"| {name} | {' | '.join(str(mb) for mb in row.values())} |" for name, row in found["memory"].items()]
        lines += ["", "Adapters switched at each request, previews, every tenth from an upload, each prompt new.", ""]
    return "\n".join(lines)


def shown(values: list[float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*values)


def _processor() -> str:
    with contextlib.suppress(OSError):
        if found := re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()):
            return found[1]
    return platform.processor()


if __name__ == "__main__":
    main()
