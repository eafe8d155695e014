"""How the server is, in plain values: what its page of state shows. Imports no torch."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdtune.experiments.measure import size_of
from sdtune.serve.dispatch import Dispatcher
from sdtune.serve.queue import Job, Queue

if TYPE_CHECKING:
    from sdtune.serve.app import Server

WorkerState = Literal["loading", "ready", "drawing", "broken", "stopping"]
PACKAGES = ("sdtune", "torch", "diffusers", "transformers", "safetensors", "pillow", "fastapi", "nicegui")
FAILURES = 8
"""Of the newest failed jobs so many are shown."""
WAITING = 50
PROMPT = 70
"""Characters of a prompt."""
EXAMPLES = {
    "/api/jobs": (
        "sdtune's own",
        """-H 'content-type: application/json' -d '{"prompt": "a red apple", "seeds": [1]}'""",
    ),
    "/v1/images/generations": (
        "OpenAI's images",
        """-H 'content-type: application/json' -d '{"prompt": "a red apple", "n": 1}'""",
    ),
    "/sdapi/v1/txt2img": (
        "AUTOMATIC1111's",
        """-H 'content-type: application/json' -d '{"prompt": "a red apple", "steps": 20}'""",
    ),
}
"""APIs by an address of theirs, with an example."""


@dataclass(frozen=True)
class Worker:
    """A process that draws, on a device."""

    name: str
    state: WorkerState
    device: str
    """"" while it is not known; as precision."""
    precision: str
    batch: int
    memory: Mapping[str, int]
    """Bytes: weights, used, free, total; without those that are not known."""
    loaded: tuple[str, ...]
    """Ids of the models in memory."""
    restarts: int
    why: str = ""
    """What is wrong with it."""


def workers(dispatcher: Dispatcher) -> tuple[Worker, ...]:
    """Every worker of the server."""
    told = dispatcher.status()
    return tuple(_worker(row, len(told) > 1, draining=dispatcher.draining) for row in told)


def _worker(row: Mapping[str, Any], numbered: bool, *, draining: bool) -> Worker:
    state: WorkerState = (
        "broken" if row["broken"] else "drawing" if row["drawing"] else "stopping" if draining else "ready" if row["ready"]
        else "loading"
    )  # fmt: skip
    return Worker(
        f"Worker {row['worker']}" if numbered else "Worker", state, str(row["device"] or ""), str(row["precision"] or ""),
        int(row["batch"] or 0), dict(row["memory"] or {}), tuple(row["models"] or ()), int(row["restarts"]), str(row["broken"]),
    )  # fmt: skip


@dataclass(frozen=True)
class Open:
    """A job that is being drawn or waits."""

    id: str
    place: int
    """0 while it is drawn; else its place in the queue, from 1."""
    what: str
    prompt: str
    created: float
    done: int = 0
    """Steps of the picture at work, of `steps`; 0 of 0 where it has not begun."""
    steps: int = 0


def open_jobs(dispatcher: Dispatcher) -> list[Open]:
    """What is drawn, then what waits, in its order; the first WAITING of it."""
    queue = dispatcher.queue
    running = [_open(job, 0, dispatcher.progress(job)) for job in queue.jobs(("running",), limit=WAITING)]
    return running + [_open(job, i, None) for i, job in enumerate(queue.waiting()[:WAITING], 1)]


def _open(job: Job, place: int, progress: Mapping[str, Any] | None) -> Open:
    told, wish = progress or {}, job.wish
    n = len(wish.get("seeds") or ()) * (2 if wish["kind"] == "compare" else 1)
    what = f"{n} picture{'' if n == 1 else 's'} with {wish['model']}"
    return Open(
        job.id, place, what, shortened(wish.get("prompt", "")), job.created, int(told.get("step", 0)), int(told.get("steps", 0))
    )  # fmt: skip


def shortened(text: str, most: int = PROMPT) -> str:
    """On one line, with an ellipsis where something was left out."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


@dataclass(frozen=True)
class Failure:
    job: str
    finished: float
    code: str
    message: str


def failures(queue: Queue) -> list[Failure]:
    """Of the newest jobs that failed."""
    return [
        Failure(
            job.id, job.finished or job.created, (job.error or {}).get("code", ""), (job.error or {}).get("message", "")
        )
        for job in queue.jobs(("failed",), limit=FAILURES)
    ]


def condition(server: Server) -> list[tuple[Literal["bad", "open"], str]]:
    """What somebody should know before anything else: what is wrong, and what one waits for. Nothing where all is well."""
    dispatcher, limits = server.dispatcher, server.rules.limits
    told = list[tuple[Literal["bad", "open"], str]]()
    if dispatcher.draining:
        told.append(
            ("open", "The server is stopping: what is being drawn may end, the queue is kept, nothing new is taken.")
        )
    for worker in workers(dispatcher):
        if worker.state == "broken":
            told.append(("bad", f"{worker.name}: {worker.why}. It is tried again; jobs wait meanwhile."))
        elif worker.state == "loading":
            told.append(("open", f"{worker.name}: the model is being loaded; jobs wait meanwhile."))
    if (waiting := dispatcher.queue.count("queued")) >= limits.queue:
        told.append(("bad", f"The queue is full: {waiting} wait, and no more may (--queue). New jobs are refused."))
    if shutil.disk_usage(server.store.folder).free < limits.room:
        told.append(
            ("bad", "The disk is nearly full: new jobs are refused. Delete pictures, or name another --folder.")
        )
    return told


def versions() -> dict[str, str]:
    """Of Python and of packages, without importing them."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@dataclass(frozen=True)
class Disk:
    """Bytes."""

    pictures: int
    uploads: int
    other: int
    free: int


def disk(folder: Path) -> Disk:
    """Of the served folder. Takes as long as it has files."""
    pictures, uploads = size_of(folder / "pictures"), size_of(folder / "uploads")
    return Disk(pictures, uploads, size_of(folder) - pictures - uploads, shutil.disk_usage(folder).free)


def addresses(paths: Sequence[str], base: str, *, token: bool) -> list[tuple[str, str, str]]:
    """Of each API that the server has: its name, its address, and an example for a shell."""
    secret = """-H "Authorization: Bearer $SDTUNE_TOKEN" """ if token else ""
    found = [
        (name, base + path, f"curl -s {base}{path} {secret}{rest}")
        for path, (name, rest) in EXAMPLES.items()
        if path in paths
    ]
    return [*found, ("What there is, described", f"{base}/openapi.json", f"curl -s {secret}{base}/openapi.json")]


def uptime(began: float) -> float:
    """Seconds."""
    return max(0.0, time.time() - began)
