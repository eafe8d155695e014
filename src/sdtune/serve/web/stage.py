"""What a job becomes, while it becomes: its place in the queue, its progress with a preview, its pictures, or what went wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from nicegui import background_tasks, ui

from sdtune.serve.app import Server
from sdtune.serve.queue import Job, Picture
from sdtune.serve.web.frame import alarm, empty, tag
from sdtune.serve.web.pieces import address, image, slider


class Stage:
    """Shows one job at a time."""

    def __init__(self, server: Server, ended: Callable[[], object]) -> None:
        self.server, self._ended = server, ended
        self.job: Job | None = None
        self._began = 0.0
        with tag("div", classes="stage"):
            self._told = tag("p", classes="told").props("role=status aria-live=polite")
            with ui.row().classes("fields") as self._under_way:
                self._bar = (
                    ui.linear_progress(0, show_value=False, size="8px").props('aria-label="Progress"').classes("grow")
                )
                ui.button("Cancel", on_click=self._cancel).props("outline dense no-caps")
            self._preview = image("", "what the picture is becoming", "preview")
            self._preview.set_visibility(False)
            self._result = tag("div", classes="result")
        self._under_way.set_visibility(False)
        with self._result:
            empty("What you draw appears here", "Write what is to be seen, or take an example, and press Draw.")

    def show(self, job: Job) -> None:
        """Follow a job to its end, or show the end that it had."""
        self.job, self._began = job, 0.0
        self._result.clear()
        self._preview.set_visibility(False)
        background_tasks.create(self._follow(job), name="follow a job")

    def _cancel(self) -> None:
        if self.job and (now := self.server.queue.get(self.job.id)):
            self.server.dispatcher.cancel(now)

    # ---- what is heard of it

    async def _follow(self, job: Job) -> None:
        self._under_way.set_visibility(not job.finished)
        self._bar.set_value(0)
        async for said in self.server.dispatcher.log_of(job).listen(beat=1.0):
            if self._result.is_deleted or self.job is not job:
                return
            if said is None:
                self._wait()
            else:
                self._hear(said.event, said.data)
        self._under_way.set_visibility(False)
        self._ended()

    def _wait(self) -> None:
        """Nothing new: the place in the queue may be."""
        assert self.job
        now = self.server.queue.get(self.job.id)
        if now and now.state == "queued":
            ahead = self.server.queue.ahead(now)
            why = "the model is being loaded" if not self.server.dispatcher.ready else "the one at work"
            self._told.text = f"Waiting: {ahead} before it in the queue" if ahead else f"Waiting for {why}"

    def _hear(self, event: str, data: dict[str, Any]) -> None:
        match event:
            case "state":
                self._told.text = "Waiting" if data["state"] == "queued" else "Drawing"
                self._wait()
            case "step":
                self._step(data)
            case "preview":
                self._preview.props["src"] = f"data:image/jpeg;base64,{data['jpeg']}"
                self._preview.update()
                self._preview.set_visibility(True)
            case "picture":
                self._draw()
            case "done":
                self._told.text = self._took()
                self._draw()
            case "error":
                self._told.text = ""
                with self._result:
                    alarm(f"{data['error']['message']}.")
            case "cancelled" | "restart":
                self._told.text = (
                    "Cancelled; what was drawn before stays."
                    if event == "cancelled"
                    else "The server stops; this job waits for its next start."
                )
                self._preview.set_visibility(False)

    def _step(self, data: dict[str, Any]) -> None:
        self._began = self._began or time.monotonic()
        done = (data["picture"] + data["step"] / data["steps"]) / data["pictures"]
        spent = time.monotonic() - self._began
        left = spent * (1 - done) / done if spent > 1 and done > 0.02 else None
        which = f"Picture {data['picture'] + 1} of {data['pictures']}, step" if data["pictures"] > 1 else "Step"
        self._told.text = f"{which} {data['step']} of {data['steps']}" + (f", about {left:.0f} s left" if left else "")
        self._bar.set_value(round(done, 3))

    def _took(self) -> str:
        assert self.job
        now = self.server.queue.get(self.job.id)
        taken = f" in {now.finished - now.started:.1f} s" if now and now.finished and now.started else ""
        return f"Done{taken}"

    # ---- pictures

    def _draw(self) -> None:
        """All pictures so far, and a place for each that is still to come."""
        assert self.job
        self._preview.set_visibility(False)
        pictures = self.server.queue.pictures_of(self.job.id)
        self._result.clear()
        with self._result:
            show_pictures(self.job, pictures)


def show_pictures(job: Job, pictures: list[Picture]) -> None:
    """Those of a job: pairs of original and tuned under sliders or side by side, others by themselves."""
    pairs = [
        (a, b) for a in pictures for b in pictures if (a.kind, b.kind) == ("original", "tuned") and _seed(a) == _seed(b)
    ]
    paired = {p.id for pair in pairs for p in pair}
    name = str(job.wish["prompt"])
    if pairs:
        with tag("div", classes="as-sliders") as box:
            ui.radio({"as-sliders": "Slider", "as-sides": "Side by side"}, value="as-sliders").props(
                "inline dense"
            ).on_value_change(lambda e: box.classes(replace=e.value))
            with tag("div", classes="pairs"):
                for a, b in pairs:
                    _pair(a, b, name)
    alone = [p for p in pictures if p.id not in paired]
    if alone:
        with tag("div", classes="pictures"):
            for p in alone:
                _one(p, name)


def _seed(picture: Picture) -> Any:
    return picture.record.get("seed")


def _pair(a: Picture, b: Picture, name: str) -> None:
    with tag("figure", classes="pair"):
        slider(address(a), address(b), name)
        with tag("div", classes="sides"):
            for p, who in ((a, "original"), (b, "tuned")):
                with tag("div"):
                    image(address(p), f"{who}: {name}")
                    tag("small", who)
        _caption(a, b)


def _one(picture: Picture, name: str) -> None:
    with tag("figure"):
        image(address(picture), name)
        _caption(picture)


def _caption(*pictures: Picture) -> None:
    """The seed of one picture, or of a pair; what is wrong with one; the files."""
    with tag("figcaption"):
        tag("span", f"seed {_seed(pictures[0])}" + (", original" if [p.kind for p in pictures] == ["original"] else ""))
        for picture in pictures:
            link = tag("a", f"Download {picture.kind}" if len(pictures) > 1 else "Download")
            link.props["download"], link.props["href"] = f"sdtune-{picture.id[:12]}.png", address(picture)
            if flaw := picture.record.get("flaw"):
                tag("span", str(flaw), "bad")
