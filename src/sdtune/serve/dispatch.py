"""Takes jobs from the queue to the workers, and what the workers say to those who listen."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

from sdtune.serve import keeping
from sdtune.serve.limits import Limits
from sdtune.serve.log import Log
from sdtune.serve.queue import Job, Queue
from sdtune.serve.registry import Entry, Registry
from sdtune.serve.setup import Setup
from sdtune.serve.store import Store
from sdtune.serve.workers import Worker

LOGS = 200
"""Jobs that are over and whose events are still kept."""
GRACE = 5.0
"""Seconds in which the last listener of a job may come back before it is cancelled."""
log = logging.getLogger("sdtune.serve")


class Dispatcher:
    """Everything of it runs in the server's event loop."""

    def __init__(self, queue: Queue, store: Store, registry: Registry, setup: Setup, limits: Limits) -> None:
        self.queue, self.store, self.registry, self.setup, self.limits = queue, store, registry, setup, limits
        self.workers: list[Worker] = []
        self.draining = False
        self.counts = Counter[str]()
        self._logs = OrderedDict[str, Log]()
        self._stopped = set[str]()
        """Jobs of which a worker has left a part."""
        self._new = 0
        """Pictures and ended jobs since the oldest ones last went."""
        self._wake = asyncio.Event()
        self._tasks = set[asyncio.Task[None]]()
        self._mean = 10.0
        """Seconds that a job takes, about."""

    # ---- its life

    def start(self) -> None:
        """Take up what an earlier server left, and start the workers in the background."""
        for line in keeping.settle(self.queue, self.store, self.limits.pictures):
            log.warning("%s", line)
        for name in self.queue.recover():
            self.counts["failed"] += 1
            log.warning("job %s: given up, the server ended with it too often", name)
        for device in self.setup.devices:
            self._hire(device)
        self._go(self._feed())

    def _hire(self, device: str) -> None:
        def setup() -> Setup:  # with the models that are there by then
            return dataclasses.replace(self.setup, device=device, entries=self.registry.dumped())

        worker = Worker(len(self.workers), setup, self._hear, self._lost)
        self.workers.append(worker)
        self._go(worker.live())

    async def stop(self) -> None:
        """End the workers now. What they were drawing waits in the queue for the next start."""
        self._end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(worker.end() for worker in self.workers))
        for worker in self.workers:
            for job in worker.jobs.values():
                self.queue.put_back(job.id, free=True)
                self._adopt(job)
            worker.jobs.clear()

    async def drain(self, seconds: float) -> None:
        """Take nothing new, and let what is being drawn end, for so long; then tell listeners that the server goes."""
        self._end()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.running:
                    await asyncio.sleep(0.05)
        for journal in self._logs.values():
            if not journal.over:
                journal.say("restart", {"message": "the server stops; the job is kept"}, last=True)

    def _end(self) -> None:
        self.draining = True
        for worker in self.workers:
            worker.ending = True

    def _go(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- what is there

    @property
    def running(self) -> set[str]:
        """Jobs that are being drawn; one of several pictures perhaps by several workers."""
        return {name for worker in self.workers for name in worker.jobs}

    @property
    def ready(self) -> bool:
        """Whether one can draw."""
        return any(worker.ready for worker in self.workers)

    @property
    def broken(self) -> str:
        """Why none can draw; "" if one can, or may still."""
        told = [worker.broken for worker in self.workers]
        return told[0] if told and all(told) else ""

    def status(self) -> list[dict[str, Any]]:
        """Of each worker: device, precision, what it draws and since when, memory, models in memory, restarts."""
        return [worker.status() for worker in self.workers]

    # ---- to the workers

    def wake(self) -> None:
        self._wake.set()

    def tell_workers(self, told: dict[str, Any]) -> None:
        """Each that is there; one that starts later is told the registry as it is then."""
        for worker in self.workers:
            worker.tell(told)

    async def _feed(self) -> None:
        while True:
            self._wake.clear()
            try:
                while not self.draining and self._give():
                    pass
            except Exception:  # the disk is full, say: what waits is tried again
                log.exception("queue")
                await asyncio.sleep(1)
                continue
            await self._wake.wait()

    def _give(self) -> bool:
        """Let the worker that has the oldest job's model draw it, with others that agree; whether there were a job and a worker."""
        free = [worker for worker in self.workers if worker.free]
        if not free or not (waiting := self._drawable()):
            return False
        first = waiting[0]
        entry = self.registry.get(first.wish["model"])
        assert entry
        free.sort(key=lambda worker: -worker.likes(entry.id, entry.base))
        jobs = together(waiting, free[0].batch)
        self.queue.start([job.id for job in jobs])
        for job in jobs:
            self.log_of(job).say("state", {"state": "running"})
        if len(jobs) > 1:
            free[0].draw(jobs, [self._order(job, self._missing(job)) for job in jobs])
            return True
        spare = max(1, len(free) - (len(waiting) - 1))  # that no other job waits for
        for worker, part in zip(free, split(self._missing(first), spare), strict=False):
            worker.draw(jobs, [self._order(first, part)])
        return True

    def _drawable(self) -> list[Job]:
        """What waits, the oldest first. A job whose model or picture is gone has failed."""
        found = list[Job]()
        for job in self.queue.waiting():
            if self.registry.get(job.wish["model"]) and self._files(job) is not None and self._stack(job):
                found.append(job)
            else:
                gone = "the model or a picture that it names is not here any more"
                self._over(job.id, "failed", {"code": "gone", "message": gone})
        return found

    def _stack(self, job: Job) -> bool:
        return all(row["id"] in self.registry.entries for row in job.wish["adapters"])

    def _files(self, job: Job) -> dict[str, tuple[str, str]] | None:
        """Id and kind of the pictures that the job begins with; None if one of them is gone."""
        named = {key: self.queue.picture(job.wish[key]) for key in ("image", "mask") if job.wish[key]}
        found = {key: (picture.id, picture.kind) for key, picture in named.items() if picture}
        return found if len(found) == len(named) else None

    def _missing(self, job: Job) -> list[int]:
        """The numbers of its pictures that are still to be drawn."""
        have = {picture.number for picture in self.queue.pictures_of(job.id)}
        return [number for number in range(job.pictures) if number not in have]

    def grow(self, entries: Sequence[Entry]) -> None:
        """Let more models be drawn with."""
        self.registry.add(entries)
        self.tell_workers({"entries": [dataclasses.asdict(entry) for entry in entries]})

    def _order(self, job: Job, numbers: Sequence[int]) -> dict[str, Any]:
        return {"id": job.id, "wish": {**job.wish, "files": self._files(job)}, "numbers": list(numbers)}

    # ---- from the workers

    def _hear(self, worker: Worker, told: dict[str, Any]) -> None:
        match told:
            case {"event": event, "job": name} if name in worker.jobs:
                self._hear_of(worker, worker.jobs[name], str(event), told)
            case {"up": True}:
                worker.about, worker.broken = {k: told[k] for k in ("device", "precision", "batch")}, ""
                self._hire_others(told["others"])
            case {"ready": True, "memory": memory, "models": models}:
                worker.about |= {"memory": memory, "models": models}
                worker.ready = True
                log.info("worker %d: ready on %s", worker.number, worker.about["device"])
            case {"idle": True, "memory": memory, "models": models}:
                worker.about |= {"memory": memory, "models": models}
                worker.busy, worker.drew = False, True
                for job in list(worker.jobs.values()):  # that it has not said the end of
                    self._part_over(worker, job, "failed", INTERNAL)
            case {"warning": str(text)}:
                log.warning("worker %d: %s", worker.number, text)
            case {"broken": str(text)}:
                worker.broken = "the worker cannot work; the server's log says why"
                log.error("worker %d: %s", worker.number, text)
        self._wake.set()

    def _hire_others(self, others: Sequence[str]) -> None:
        """Further workers, once the first has found out where it computes."""
        if len(self.workers) == 1:
            for device in others:
                self._hire(device)

    def _hear_of(self, worker: Worker, job: Job, event: str, told: dict[str, Any]) -> None:
        match event:
            case "picture":
                self._add_picture(job, told)
            case "done" | "cancelled":
                self._part_over(worker, job, event)
            case "failed":
                log.error("job %s: %s", job.id, told.get("log", ""))
                self._part_over(worker, job, "failed", {"code": told["code"], "message": told["message"]})
            case _:
                self.log_of(job).say(event, {k: v for k, v in told.items() if k not in ("event", "job", "log")})

    def _add_picture(self, job: Job, told: dict[str, Any]) -> None:
        self.queue.add_picture(told["id"], job.id, told["number"], told["kind"], told["record"])
        self._say_picture(job, told_picture(told["id"], told["number"], told["kind"], told["record"]))

    def _adopt(self, job: Job) -> None:
        """Take up pictures that a worker has written and could not tell of."""
        for p in keeping.adopt(self.queue, self.store, job):
            self._say_picture(job, told_picture(p.id, p.number, p.kind, p.record))

    def _say_picture(self, job: Job, told: dict[str, Any]) -> None:
        self.counts["pictures"] += 1
        self._new += 1
        self.log_of(job).say("picture", told)

    def _lost(self, worker: Worker, why: str) -> None:
        """A worker has ended by itself: say so of what it was drawing. The others go on."""
        jobs = list(worker.jobs.values())
        for job in jobs:
            if len(jobs) == 1:
                reason = {"code": "worker_died", "message": f"the worker ended while it was drawn ({why})"}
                self._part_over(worker, job, "failed", reason)
            else:  # one of them may be the reason: each by itself
                del worker.jobs[job.id]
                self.queue.put_back(job.id, alone=True)
                self.log_of(job).say("state", {"state": "queued"})
                self._adopt(job)
        self._wake.set()

    def _part_over(self, worker: Worker, job: Job, state: str, error: dict[str, str] | None = None) -> None:
        """A worker has ended what it was to draw of a job. The job is over with the last part, or with the first that failed."""
        worker.jobs.pop(job.id, None)
        if state == "cancelled":
            self._stopped.add(job.id)
        if state == "failed":
            self._adopt(job)
            self._over(job.id, "failed", error)
            self._tell_cancelled(job.id)
        elif job.id not in self.running:
            if state == "done":
                self._mean += 0.3 * ((time.monotonic() - worker.began) - self._mean)
            self._over(job.id, "cancelled" if job.id in self._stopped else "done")
        if job.id not in self.running:
            self._stopped.discard(job.id)

    def _over(self, name: str, state: Any, error: dict[str, str] | None = None) -> None:
        """A job has ended, whether it was being drawn or waited."""
        if not self.queue.end(name, state, error):
            return
        self.counts[state] += 1
        self._new += 1
        job = self.queue.get(name)
        assert job
        journal = self.log_of(job)
        if not journal.over:
            event = {"done": "done", "failed": "error"}.get(state, "cancelled")
            journal.say(event, {"state": state, **({"error": error} if error else {})}, last=True)
        if self._new > self.limits.pictures // 100:
            keeping.prune(self.queue, self.store, self.limits.pictures)
            self._new = 0

    # ---- for the routes

    def cancel(self, job: Job) -> None:
        """A waiting job ends now, a running one at its next step."""
        if job.id in self.running:
            self._tell_cancelled(job.id)
        elif job.state == "queued":
            self._over(job.id, "cancelled")

    def abandon(self, job: Job) -> None:
        """As the server stops: a job that nobody will ask for does not wait for the next start."""
        self._tell_cancelled(job.id)
        for worker in self.workers:
            worker.jobs.pop(job.id, None)
        self._over(job.id, "cancelled")

    def _tell_cancelled(self, name: str) -> None:
        for worker in self.workers:
            if name in worker.jobs:
                worker.tell({"cancel": name})

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
        if job.state != "running":
            return None
        steps = [said for said in self.log_of(job).said if said.event == "step"]
        return steps[-1].data if steps else None

    def retry_after(self) -> int:
        """Seconds until there should be room in the queue."""
        return max(1, min(120, round(self._mean / max(1, len(self.workers)))))


def together(waiting: Sequence[Job], batch: int) -> list[Job]:
    """The first job, and later ones that agree with it in all but prompt and seeds, up to `batch` pictures."""
    if not waiting:
        return []
    first, *others = waiting
    chosen, key = [first], _key(first)
    room = batch - first.pictures
    for job in others:
        if key is not None and not first.alone and _key(job) == key and job.pictures <= room:
            chosen.append(job)
            room -= job.pictures
    return chosen


def split(numbers: Sequence[int], parts: int) -> list[Sequence[int]]:
    """Neighbours stay together: of a comparison on two workers each draws one of the models. At least one part, perhaps empty."""
    parts = max(1, min(parts, len(numbers)))
    ends = [round(i * len(numbers) / parts) for i in range(parts + 1)]
    return [numbers[begin:end] for begin, end in pairwise(ends)]


def _key(job: Job) -> str | None:
    """Jobs of one key are drawn in one batch; None: by itself."""
    if job.alone or job.wish["kind"] not in ("txt2img", "compare"):
        return None
    return json.dumps({k: v for k, v in job.wish.items() if k not in ("prompt", "seeds", "previews")}, sort_keys=True)


INTERNAL = {"code": "internal", "message": "a fault of the server; its log says more"}


def told_picture(name: str, number: int, kind: str, record: dict[str, Any]) -> dict[str, Any]:
    """A picture for clients."""
    return {
        "id": name,
        "number": number,
        "kind": kind,
        "seed": record.get("seed"),
        "href": f"/api/pictures/{name}/file",
    }
