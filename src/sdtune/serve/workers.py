"""One process that draws, as the server sees it: started anew when it ends, and what it is drawing."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from sdtune.serve.queue import Job
from sdtune.serve.setup import Setup

LINE = 2**24
"""Bytes of a line from the worker, at most."""
SLOWEST = 30.0
"""Seconds between two starts of a worker that keeps dying, at most."""
log = logging.getLogger("sdtune.serve")


class Worker:
    """Everything of it runs in the server's event loop."""

    def __init__(
        self,
        number: int,
        setup: Callable[[], Setup],
        hear: Callable[[Worker, dict[str, Any]], None],
        lost: Callable[[Worker, str], None],
    ) -> None:
        """`setup` is asked at each start; `hear` gets what the worker says, and `lost` why it ended while it was not asked to."""
        self.number, self._setup, self._hear, self._lost = number, setup, hear, lost
        self.about: dict[str, Any] = {}
        """What it has said of itself: device, precision, batch, memory, models."""
        self.jobs = dict[str, Job]()
        """What it is drawing."""
        self.ready, self.busy, self.ending = False, False, False
        """busy: until it says that it is idle, which is after the last of its jobs is over."""
        self.broken, self.restarts, self.began = "", 0, 0.0
        self.drew = False
        self._process: asyncio.subprocess.Process | None = None

    @property
    def free(self) -> bool:
        return self.ready and not self.busy

    @property
    def batch(self) -> int:
        return int(self.about["batch"])

    def likes(self, model: str, base: str) -> int:
        """How little it has to load for a model on its base: 3 nothing at all, 2 what lies on the base, 1 all, 0 all in another's place."""
        held: Sequence[str] = self.about.get("models", ())
        if base not in held:
            return 0 if held else 1
        return 3 if model in held or model == base else 2

    # ---- its life

    async def live(self) -> None:
        """Processes, one after the other."""
        wait = 0.5
        while not self.ending:
            began = time.monotonic()
            try:
                await self._one()
            except Exception:  # no process, or no room on the disk: told, and tried again
                self.broken = "the worker cannot work; the server's log says why"
                log.exception("worker %d", self.number)
            wait = 0.5 if time.monotonic() - began > 60 or self.drew else min(2 * wait, SLOWEST)
            self.ready, self.busy, self.drew, self.about = False, False, False, {}
            self.restarts += 1
            await asyncio.sleep(wait)

    async def _one(self) -> None:
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sdtune.serve.worker", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE,
        )  # fmt: skip
        self.tell(dataclasses.asdict(self._setup()))
        assert process.stdout
        try:
            async for line in process.stdout:
                self._hear(self, json.loads(line))
        except Exception:
            await self._over(process)
            raise
        await self._over(process)

    async def _over(self, process: asyncio.subprocess.Process) -> None:
        await self.end()
        code = process.returncode or 0
        why = f"signal {-code}" if code < 0 else f"exit code {code}"
        log.error("worker %d: ended (%s) while drawing %s", self.number, why, ", ".join(self.jobs) or "nothing")
        self._lost(self, why)

    async def end(self) -> None:
        """Kill the process that is there."""
        if self._process and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    # ---- to the process

    def draw(self, jobs: Sequence[Job], orders: Sequence[dict[str, Any]]) -> None:
        self.jobs, self.busy, self.began = {job.id: job for job in jobs}, True, time.monotonic()
        self.tell({"draw": list(orders)})

    def tell(self, told: dict[str, Any]) -> None:
        if self._process and self._process.stdin and self._process.returncode is None:
            self._process.stdin.write(json.dumps(told).encode() + b"\n")

    # ---- for people

    def status(self) -> dict[str, Any]:
        told = {key: self.about.get(key) for key in ("device", "precision", "batch", "memory", "models")}
        since = time.monotonic() - self.began if self.busy else None
        return {
            "worker": self.number, **told, "ready": self.ready, "broken": self.broken, "drawing": list(self.jobs), "seconds": since,
            "restarts": self.restarts,
        }  # fmt: skip
