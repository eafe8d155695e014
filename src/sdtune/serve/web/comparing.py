"""The comparison of a run with its base, started from its page and followed there."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from sdtune.serve.app import Server
from sdtune.serve.errors import ApiError
from sdtune.serve.shelf import Seen
from sdtune.serve.web.frame import alarm, client, tag

NOT_HERE = "only runs below --runs are compared here, and those that the command line named"
TICK = 1.0
"""Seconds between two looks at the job."""


class Comparing:
    """A button, and what becomes of it."""

    def __init__(self, server: Server, run: Seen) -> None:
        self._work = server.work
        self._run, self._job = run, ""
        self._parent = tag("div", classes="comparing")
        with self._parent:
            name = "Compare again" if run.row.compared else "Compare now"
            self._button = ui.button(name, on_click=self._begin).props(
                "no-caps" + (" outline" if run.row.compared else "")
            )
            self._bar = ui.linear_progress(value=0, show_value=False).props('aria-label="Progress of the comparison"')
            self._text = tag("p", "", "soft").props('aria-live="polite"')
            self._wrong = tag("div")
        self._bar.set_visibility(False)
        self._timer = ui.timer(TICK, self._tick, active=False)
        ui.timer(0, self._take_up, once=True)

    async def _begin(self) -> None:
        self._wrong.clear()
        self._button.disable()
        try:
            if (name := await self._work.id_of(self._run.path)) is None:
                raise ApiError(404, "not_found", NOT_HERE)
            job, _ = self._work.evaluate(name, client())
        except ApiError as error:
            self._button.enable()
            with self._wrong:
                alarm(error.message)
            return
        self._follow(job)

    async def _take_up(self) -> None:
        """A comparison of this run that is under way already."""
        name = await self._work.id_of(self._run.path)
        for job in self._work.jobs(states=("queued", "running")):
            if job.kind == "evaluate" and job.run == name:
                self._follow(job)

    def _follow(self, job: Any) -> None:
        self._job = job.id
        self._button.disable()
        self._bar.set_visibility(True)
        self._timer.activate()
        self._tick()

    def _tick(self) -> None:
        job = self._work.job(self._job)
        if job is None:
            return
        said = [s.data for s in self._work.log_of(job).said if s.event == "busy"]
        told = said[-1] if said else {}
        self._text.set_text(progress(job.state, told))
        self._bar.set_value(share(told))
        if job.state in ("queued", "running"):
            return
        self._timer.deactivate()
        self._button.enable()
        self._bar.set_visibility(False)
        if job.state == "done":
            ui.navigate.reload()
        elif job.error:
            with self._wrong:
                alarm(job.error["message"])


def share(told: dict[str, Any]) -> float:
    """How much of what is at work is done, 0 to 1."""
    return (told.get("done") or 0) / told["total"] if told.get("total") else 0.0


def progress(state: str, told: dict[str, Any]) -> str:
    """Drawing pictures, 12 of 40."""
    if state == "queued":
        return "It waits for its turn."
    if not told:
        return "It begins." if state == "running" else f"It is {state}."
    what = str(told.get("what", ""))
    counted = f", {told.get('done') or 0} of {told['total']}" if told.get("total") else ""
    return f"{what[:1].upper()}{what[1:]}{counted}"
