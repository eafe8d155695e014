"""The page Status: what the server works with, what waits, what it has loaded, what went wrong."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Literal

from nicegui import ui

from sdtune.serve import overview
from sdtune.serve.app import Server
from sdtune.serve.overview import Disk, Failure, Open, Worker
from sdtune.serve.web.frame import alarm, empty, facts, frame, say, section, tag
from sdtune.serve.web.live import Block, Rows
from sdtune.serve.web.parts import STYLE
from sdtune.units import duration

TICK, SLOW = 1.0, 30.0
"""Seconds between two looks at the server, and at its disk."""
SIGNS = {"ready": "good", "drawing": "good", "loading": "open", "stopping": "open", "broken": "bad"}


def add(server: Server) -> None:
    @ui.page("/status")
    async def page() -> None:
        ui.add_head_html(STYLE)
        with frame("Status", "/status"):
            await _Status(server).start()


class _Status:
    def __init__(self, server: Server) -> None:
        self._server = server
        self._condition = Block(tag("div"), _told)
        with section("Workers"):
            self._workers = Rows(tag("div", classes="cards"), _worker)
        with section("Queue"):
            self._queued = tag("p", "", "lead").props("aria-live=polite")
            self._queue = Rows(tag("ul", classes="jobs"), self._job)
        self._trainings = Block(tag("div"), self._show_trainings)
        with section("Server"):
            self._facts = Block[list[tuple[str, str]]](tag("div"), facts)
            self._disk = Block(tag("div", classes="below"), _show_disk)
        with section("What failed last"):
            self._failures = Block(tag("div"), _show_failures)
        with section("Addresses", "For programs. Examples run as they are in a shell.") as self._addresses:
            pass
        with section("Versions"):
            facts(list(overview.versions().items()))

    async def start(self) -> None:
        self._tick()
        ui.timer(TICK, self._tick)
        await self._look_at_disk()
        ui.timer(SLOW, self._look_at_disk, immediate=False)
        await ui.context.client.connected()
        base = str(
            await ui.run_javascript("location.origin", timeout=10)
        )  # behind a proxy the server does not know that it is https
        with self._addresses:
            for name, address, example in overview.addresses(
                self._server.paths, base, token=bool(self._server.rules.token)
            ):
                _address(name, address, example)

    def _tick(self) -> None:
        server = self._server
        jobs = overview.open_jobs(server.dispatcher)
        waiting, most = server.queue.count("queued"), server.rules.limits.queue
        self._condition.show(overview.condition(server))
        self._workers.show([(w.name, w) for w in overview.workers(server.dispatcher)])
        self._queued.set_text(
            f"{waiting} wait{'s' if waiting == 1 else ''}; {most} may."
            if jobs
            else f"Nothing is drawn, nothing waits. There is room for {most} jobs."
        )
        self._queue.show([(job.id, job) for job in jobs])
        self._trainings.show(_trainings(server))
        self._failures.show(overview.failures(server.queue))
        counts = server.dispatcher.counts
        minutes = int(overview.uptime(server.began) // 60)
        self._facts.show(
            [
                ("Up for", duration(60 * minutes) if minutes else "less than a minute"),
                ("Jobs done", str(counts["done"])),
                ("Failed", str(counts["failed"])),
                ("Cancelled", str(counts["cancelled"])),
                ("Pictures", str(counts["pictures"])),
                ("Token", "needed" if server.rules.token else "none: only this machine reaches it"),
            ]
        )

    async def _look_at_disk(self) -> None:
        self._disk.show(await asyncio.to_thread(overview.disk, self._server.store.folder))

    def _job(self, job: Open) -> tuple[ui.element, Callable[[Open], object]]:
        with tag("li", classes="card job") as row:
            with tag("div", classes="job-what"):
                place = tag("span", classes="place")
                tag("strong", job.what)
                tag("p", job.prompt, "soft")
            bar = (
                ui.linear_progress(value=0, show_value=False)
                .props('aria-label="Steps of the picture at work"')
                .classes("job-bar")
            )
            button = ui.button("Cancel").props("outline dense no-caps")
            button.on_click(lambda: self._cancel(job.id, button))
            button.props["aria-label"] = f"Cancel: {job.what}"

        def show(now: Open) -> None:
            steps = f", step {now.done} of {now.steps}" if now.steps else ""
            place.set_text(f"Drawn now{steps}" if not now.place else "Next" if now.place == 1 else f"Place {now.place}")
            bar.set_visibility(not now.place)
            bar.set_value(now.done / now.steps if now.steps else 0)

        show(job)
        return row, show

    def _cancel(self, name: str, button: ui.button) -> None:
        button.disable()
        if job := self._server.queue.get(name):
            self._server.dispatcher.cancel(job)
        self._tick()

    def _show_trainings(self, rows: tuple[tuple[str, str, str], ...]) -> None:
        with section("Trainings and comparisons"):
            if not rows:
                empty(
                    "Nothing is trained",
                    "A training that is started from the page Train stands here while it runs.",
                    "/train",
                    "To Train",
                )
            with tag("ul", classes="jobs"):
                for run, what, state in rows:
                    with tag("li", classes="card job"), tag("div", classes="job-what"):
                        tag("span", state, "place")
                        tag("strong", f"{what}: {run}")


def _trainings(server: Server) -> tuple[tuple[str, str, str], ...]:
    """Run, kind and state of what is trained or compared."""
    kinds = {"train": "Training", "evaluate": "Comparison"}
    found = server.work.jobs(states=("running", "queued"), limit=20)
    return tuple((j.run, kinds.get(j.kind, j.kind), "stopping" if j.stopping else j.state) for j in found)


def _told(rows: list[tuple[Literal["bad", "open"], str]]) -> None:
    for tone, text in rows:
        if tone == "bad":
            alarm(text)
        else:
            tag("p", text, "notice").props('role="status"')


def _worker(worker: Worker) -> tuple[ui.element, Callable[[Worker], object]]:
    card = tag("div", classes="card")

    def show(now: Worker) -> None:
        card.clear()
        with card:
            with tag("div", classes="card-head"):
                tag("h3", now.name)
                tag("span", now.state, f"pill {SIGNS[now.state]}")
            if now.why:
                alarm(now.why)
            facts([(name, value) for name, value in _worker_facts(now) if value])
            if (used := now.memory.get("total")) and (free := now.memory.get("free")) is not None:
                _meter("Memory of the device in use", (used - free) / used)
            if now.loaded:
                tag("h4", "Loaded")
                tag("p", ", ".join(now.loaded), "mono")

    show(worker)
    return card, show


def _worker_facts(worker: Worker) -> list[tuple[str, str]]:
    memory = worker.memory
    return [
        ("Device", worker.device or "not known yet"),
        ("Precision", worker.precision),
        ("At once", f"{worker.batch} picture{'' if worker.batch == 1 else 's'}" if worker.batch else ""),
        ("Weights", size(memory.get("weights"))),
        ("Process" if worker.device == "cpu" else "Models and work", size(memory.get("used"))),
        ("Restarted", str(worker.restarts) if worker.restarts else ""),
        ("Free", f"{size(memory.get('free'))} of {size(memory.get('total'))}" if memory.get("total") else ""),
    ]


def _meter(name: str, share: float) -> None:
    bar = ui.linear_progress(value=round(share, 3), show_value=False).classes("meter")
    bar.props["aria-label"] = name
    tag("p", f"{name}: {share:.0%}", "soft")


def _show_disk(disk: Disk) -> None:
    facts(
        [
            ("Pictures", size(disk.pictures)), ("Uploads", size(disk.uploads)), ("Queue and others", size(disk.other)),
            ("Free on this disk", size(disk.free)),
        ]
    )  # fmt: skip


def _show_failures(rows: list[Failure]) -> None:
    if not rows:
        empty("Nothing has failed", "A job that fails stands here with its reason.")
        return
    with tag("ul", classes="jobs"):
        for row in rows:
            with tag("li", classes="card"):
                tag("strong", row.message, "bad")
                tag("p", f"{when(row.finished)} · {row.code} · job {row.job}", "soft mono")


def _address(name: str, address: str, example: str) -> None:
    async def copy() -> None:
        done = await ui.run_javascript(f"sdtuneCopy({json.dumps(example)})", timeout=5)
        say("Copied" if done else "The browser does not let a page copy here; mark the line and copy it.")

    with tag("div", classes="card address"):
        with tag("div", classes="card-head"):
            tag("h3", name)
            button = ui.button("Copy", on_click=copy).props("outline dense no-caps")
            button.props["aria-label"] = f"Copy the example of {name}"
        tag("p", address, "soft mono")
        code = tag("code", example, "example").props('tabindex="0" role="region"')
        code.props["aria-label"] = f"Example of {name}"


def size(value: int | None) -> str:
    """12 kB, 340 MB, 1.2 GB, in powers of ten; "" where it is not known."""
    if value is None:
        return ""
    for power, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= power:
            return f"{value / power:.1f} {unit}" if value < 10 * power else f"{value / power:,.0f} {unit}"
    return f"{value} bytes"


def when(seconds: float) -> str:
    """14:05 of today, else with its date; the server's time."""
    moment = time.localtime(seconds)
    today = moment[:3] == time.localtime()[:3]
    return time.strftime("%H:%M" if today else "%Y-%m-%d %H:%M", moment)
