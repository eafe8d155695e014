"""Takes jobs from the queue to the worker, and what the worker says to those who listen. The worker is started anew if it dies."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sdtune.serve.limits import Limits
from sdtune.serve.log import Log
from sdtune.serve.queue import Job, Queue
from sdtune.serve.registry import Registry
from sdtune.serve.setup import Setup
from sdtune.serve.store import Store

LOGS = 200
"""Jobs that are over and whose events are still kept."""
LINE = 2**24
"""Bytes of a line from the worker, at most."""
GRACE = 5.0
"""Seconds in which the last listener of a job may come back before it is cancelled."""
SLOWEST = 30.0
"""Seconds between two starts of a worker that keeps dying, at most."""
log = logging.getLogger("sdtune.serve")


class Dispatcher:
    """Everything of it runs in the server's event loop."""

    def __init__(self, queue: Queue, store: Store, registry: Registry, setup: Setup, limits: Limits) -> None:
        self.queue, self.store, self.registry, self.setup, self.limits = queue, store, registry, setup, limits
        self.worker: asyncio.subprocess.Process | None = None
        self.about: dict[str, Any] = {}
        """Of the worker: device, precision, batch, memory."""
        self.ready, self.draining, self.broken = False, False, ""
        self.counts = Counter[str]()
        self._logs = OrderedDict[str, Log]()
        self._running = dict[str, Job]()
        self._busy = False
        """Until the worker says that it is idle, which is after the last of its jobs is over."""
        self._wake = asyncio.Event()
        self._tasks = set[asyncio.Task[None]]()
        self._began = 0.0
        self._mean = 10.0
        """Seconds that a job takes, about."""

    # ---- its life

    def start(self) -> None:
        """Take up what an earlier server left, and start the worker in the background."""
        self.store.tidy()
        for name in self.queue.recover():
            self.counts["failed"] += 1
            log.warning("job %s: given up, the server ended with it too often", name)
        self._go(self._serve())

    async def stop(self) -> None:
        """End the worker now. What it was drawing waits in the queue for the next start."""
        self.draining = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._end_worker()
        for name in list(self._running):
            self.queue.put_back(name, free=True)
        self._running.clear()

    async def drain(self, seconds: float) -> None:
        """Take nothing new, and let what is being drawn end, for so long; then tell listeners that the server goes."""
        self.draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._running:
                    await asyncio.sleep(0.05)
        for journal in self._logs.values():
            if not journal.over:
                journal.say("restart", {"message": "the server stops; the job is kept"}, last=True)

    def _go(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self) -> None:
        """Workers, one after the other."""
        wait = 0.5
        while not self.draining:
            began = time.monotonic()
            try:
                await self._one_worker()
            except Exception:  # no worker, or no room on the disk: told, and tried again
                self.broken = "the worker cannot work; the server's log says why"
                log.exception("worker")
            wait = 0.5 if time.monotonic() - began > 60 or self.about.get("drew") else min(2 * wait, SLOWEST)
            self.ready, self._busy, self.about = False, False, {}
            self.counts["restarts"] += 1
            await asyncio.sleep(wait)

    async def _one_worker(self) -> None:
        self.worker = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "sdtune.serve.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE,
        )
        self._tell(dataclasses.asdict(self.setup))
        assert self.worker.stdout
        feeding = asyncio.create_task(self._feed())
        try:
            async for line in self.worker.stdout:
                self._hear(json.loads(line))
        finally:
            feeding.cancel()
            if not self.draining or self.worker.returncode is not None:
                await self._end_worker()
                self._lost(self.worker.returncode or 0)

    async def _end_worker(self) -> None:
        if self.worker and self.worker.returncode is None:
            with suppress(ProcessLookupError):
                self.worker.kill()
            await self.worker.wait()

    def _lost(self, code: int) -> None:
        """The worker has ended by itself: say so of what it was drawing."""
        why = f"signal {-code}" if code < 0 else f"exit code {code}"
        log.error("worker: ended (%s) while drawing %s", why, ", ".join(self._running) or "nothing")
        together = len(self._running) > 1
        for name, job in list(self._running.items()):
            if together:  # one of them may be the reason: each by itself
                self.queue.put_back(name, alone=True)
                self.log_of(job).say("state", {"state": "queued"})
                del self._running[name]
            else:
                self._over(
                    name, "failed", {"code": "worker_died", "message": f"the worker ended while it was drawn ({why})"}
                )

    # ---- to the worker

    def wake(self) -> None:
        self._wake.set()

    async def _feed(self) -> None:
        while True:
            while not self.ready or self._busy or self.draining or not (jobs := self._next()):
                self._wake.clear()
                await self._wake.wait()
            self.queue.start([job.id for job in jobs])
            self._running = {job.id: job for job in jobs}
            self._busy, self._began = True, time.monotonic()
            for job in jobs:
                self.log_of(job).say("state", {"state": "running"})
            self._tell({"draw": [self._order(job) for job in jobs]})

    def _next(self) -> list[Job]:
        """The oldest job that can be drawn, and those that agree with it, as many as are drawn at once."""
        waiting = self.queue.waiting()
        for job in waiting:
            if self.registry.get(job.wish["model"]) is None or self._files(job) is None or not self._stack(job):
                self._over(
                    job.id,
                    "failed",
                    {"code": "gone", "message": "the model or a picture that it names is not here any more"},
                )
        return together(
            [job for job in waiting if (now := self.queue.get(job.id)) and now.state == "queued"],
            int(self.about["batch"]),
        )

    def _stack(self, job: Job) -> bool:
        return all(row["id"] in self.registry.entries for row in job.wish["adapters"])

    def _files(self, job: Job) -> dict[str, tuple[str, str]] | None:
        """Id and kind of the pictures that the job begins with; None if one of them is gone."""
        named = {key: self.queue.picture(job.wish[key]) for key in ("image", "mask") if job.wish[key]}
        found = {key: (picture.id, picture.kind) for key, picture in named.items() if picture}
        return found if len(found) == len(named) else None

    def _order(self, job: Job) -> dict[str, Any]:
        have = [picture.number for picture in self.queue.pictures_of(job.id)]
        return {"id": job.id, "wish": {**job.wish, "files": self._files(job)}, "have": have}

    def _tell(self, told: dict[str, Any]) -> None:
        if self.worker and self.worker.stdin and self.worker.returncode is None:
            self.worker.stdin.write(json.dumps(told).encode() + b"\n")

    # ---- from the worker

    def _hear(self, told: dict[str, Any]) -> None:
        match told:
            case {"event": event, "job": name} if name in self._running:
                self._hear_of(self._running[name], str(event), told)
            case {"up": True}:
                self.about, self.broken = {k: told[k] for k in ("device", "precision", "batch")}, ""
            case {"ready": True, "memory": memory}:
                self.about["memory"], self.ready = memory, True
                log.info("worker: ready on %s", self.about["device"])
            case {"idle": True, "memory": memory}:
                self.about |= {"memory": memory, "drew": True}
                self._busy = False
                for name in list(self._running):  # that the worker has not said the end of
                    self._over(
                        name, "failed", {"code": "internal", "message": "a fault of the server; its log says more"}
                    )
            case {"warning": str(text)}:
                log.warning("worker: %s", text)
            case {"broken": str(text)}:
                self.broken = "the worker cannot work; the server's log says why"
                log.error("worker: %s", text)
        self._wake.set()

    def _hear_of(self, job: Job, event: str, told: dict[str, Any]) -> None:
        journal = self.log_of(job)
        data = {key: value for key, value in told.items() if key not in ("event", "job", "log")}
        match event:
            case "picture":
                self.queue.add_picture(told["id"], job.id, told["number"], told["kind"], told["record"])
                self.counts["pictures"] += 1
                journal.say("picture", told_picture(told["id"], told["number"], told["kind"], told["record"]))
            case "done":
                self._mean += 0.3 * ((time.monotonic() - self._began) - self._mean)
                self._over(job.id, "done")
            case "cancelled":
                self._over(job.id, "cancelled")
            case "failed":
                log.error("job %s: %s", job.id, told.get("log", ""))
                self._over(job.id, "failed", {"code": told["code"], "message": told["message"]})
            case _:
                journal.say(event, data)

    def _over(self, name: str, state: Any, error: dict[str, str] | None = None) -> None:
        """A job has ended, whether it was being drawn or waited."""
        self._running.pop(name, None)
        if not self.queue.end(name, state, error):
            return
        self.counts[state] += 1
        job = self.queue.get(name)
        assert job
        journal = self.log_of(job)
        if not journal.over:
            event = {"done": "done", "failed": "error"}.get(state, "cancelled")
            journal.say(event, {"state": state, **({"error": error} if error else {})}, last=True)

    # ---- for the routes

    def cancel(self, job: Job) -> None:
        """A waiting job ends now, a running one at its next step."""
        if job.id in self._running:
            self._tell({"cancel": job.id})
        elif job.state == "queued":
            self._over(job.id, "cancelled")

    def abandon(self, job: Job) -> None:
        """As the server stops: a job that nobody will ask for does not wait for the next start."""
        self._over(job.id, "cancelled")

    def log_of(self, job: Job) -> Log:
        """The events of a job; of one from before this server's start what is known of it."""
        if job.id not in self._logs:
            self._logs[job.id] = journal = Log()
            journal.say("state", {"state": "queued"})
            for p in self.queue.pictures_of(job.id):
                journal.say("picture", told_picture(p.id, p.number, p.kind, p.record))
            if job.finished:
                event = {"done": "done", "failed": "error"}.get(job.state, "cancelled")
                journal.say(event, {"state": job.state, **({"error": job.error} if job.error else {})}, last=True)
            self._forget()
        return self._logs[job.id]

    def _forget(self) -> None:
        for name in [name for name, journal in self._logs.items() if journal.over and not journal.watched][:-LOGS]:
            del self._logs[name]

    def watched(self, job: Job) -> Log:
        """The events of a job for somebody to whom it belongs: see `left`."""
        journal = self.log_of(job)
        journal.watched += 1
        return journal

    def left(self, job: Job, grace: float = GRACE) -> None:
        """Such a listener has gone. If it was the last, and none comes within `grace` seconds, the job is cancelled."""
        journal = self.log_of(job)
        journal.watched -= 1
        if not journal.watched and not journal.over and not self.draining:
            self._go(self._cancel_alone(job, journal, grace))

    async def _cancel_alone(self, job: Job, journal: Log, grace: float) -> None:
        await asyncio.sleep(grace)
        now = self.queue.get(job.id)
        if not journal.watched and now:
            self.cancel(now)

    def progress(self, job: Job) -> dict[str, Any] | None:
        """The last that was heard of a running job."""
        steps = [said for said in self.log_of(job).said if said.event == "step"]
        return steps[-1].data if steps and job.state == "running" else None

    def retry_after(self) -> int:
        """Seconds until there should be room in the queue."""
        return max(1, min(120, round(self._mean)))


def together(waiting: Sequence[Job], batch: int) -> list[Job]:
    """The first job, and later ones that agree with it in all but prompt and seeds, up to `batch` pictures."""
    if not waiting:
        return []
    first, *others = waiting
    chosen, key = [first], _key(first)
    room = batch - len(first.wish["seeds"])
    for job in others:
        if key is not None and not first.alone and _key(job) == key and len(job.wish["seeds"]) <= room:
            chosen.append(job)
            room -= len(job.wish["seeds"])
    return chosen


def _key(job: Job) -> str | None:
    """Jobs of one key are drawn in one batch; None: by itself."""
    if job.alone or job.wish["kind"] != "txt2img":
        return None
    return json.dumps({k: v for k, v in job.wish.items() if k not in ("prompt", "seeds", "previews")}, sort_keys=True)


def told_picture(name: str, number: int, kind: str, record: dict[str, Any]) -> dict[str, Any]:
    """A picture for clients."""
    return {
        "id": name,
        "number": number,
        "kind": kind,
        "seed": record.get("seed"),
        "href": f"/api/pictures/{name}/file",
    }
