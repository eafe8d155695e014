"""What was drawn, the newest first: it is the server's, and there after a reload."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui

from sdtune.serve.app import Server
from sdtune.serve.errors import ApiError
from sdtune.serve.queue import Job, Picture
from sdtune.serve.web import wishes
from sdtune.serve.web.frame import empty, facts, icon_button, say, section, tag
from sdtune.serve.web.pieces import address, image
from sdtune.serve.web.stage import show_pictures

PAGE = 36
"""Pictures that are shown at first, and more of them at a time."""
SHOWN = {
    "model": "Model", "tuned": "Tuned", "strength": "Strength", "seed": "Seed", "steps": "Steps", "guidance": "Guidance",
    "scheduler": "Sampler", "negative": "Negative prompt", "denoising_strength": "Denoising strength", "precision": "Precision",
}  # fmt: skip


class Gallery:
    """`reuse` takes the form's values that draw a picture again, `begin` the id of one to begin with."""

    def __init__(
        self, server: Server, reuse: Callable[[Mapping[str, Any]], object], begin: Callable[[str], object]
    ) -> None:
        self.server, self._reuse, self._begin = server, reuse, begin
        self._most = PAGE
        self._ids: list[str] = []
        with section("Gallery"):
            self._box = tag("div", classes="gallery")
            self._more = ui.button("Show more", on_click=self._show_more).props("outline no-caps")
        self.look()
        ui.timer(5.0, self.look)

    def _show_more(self) -> None:
        self._most += PAGE
        self.look()

    def look(self) -> None:
        """Show what is new; nothing is rebuilt while nothing is."""
        found = self.server.queue.pictures(limit=self._most + 1)
        self._more.set_visibility(len(found) > self._most)
        found = found[: self._most]
        ids = [p.id for p in found]
        if ids == self._ids and ids:
            return
        self._ids = ids
        self._box.clear()
        with self._box:
            for picture in found:
                self._thumb(picture)
            if not found:
                empty("No pictures yet", "All that is drawn here, by you or a program, is kept and listed.")

    def _thumb(self, picture: Picture) -> None:
        who = "original" if picture.kind == "original" else "tuned" if picture.record.get("tuned") else ""
        prompt = str(picture.record.get("prompt", ""))
        with tag("button", classes="thumb").props("type=button").on("click", lambda: self._open(picture.id)) as button:
            button.props["aria-label"] = f"{prompt}, seed {picture.record.get('seed')}, {who}: open"
            image(address(picture, "thumb"), "")
            if who:
                tag("span", who, "badge").props("aria-hidden=true")

    # ---- one picture, large

    def _open(self, name: str) -> None:
        picture = self.server.queue.picture(name)
        if picture is None:
            self.look()
            return
        with ui.dialog().props("aria-label=Picture") as dialog, ui.card().classes("large"):
            self._fill(dialog, picture)
        dialog.on("hide", dialog.delete)
        dialog.open()

    def _fill(self, dialog: ui.dialog, picture: Picture) -> None:
        job = self.server.queue.get(picture.job) if picture.job else None
        with ui.row().classes("fields apart"):
            tag("h2", str(picture.record.get("prompt", "")))
            icon_button("close", "Close", dialog.close)
        if job:
            same = [
                p for p in self.server.queue.pictures_of(job.id) if p.record.get("seed") == picture.record.get("seed")
            ]
            show_pictures(job, same)
        else:
            image(address(picture), str(picture.record.get("prompt", "")))
        record = picture.record
        facts([(name, str(record[key])) for key, name in SHOWN.items() if record.get(key) not in (None, "")])
        with ui.row().classes("fields"):
            if job:
                ui.button("Reuse settings", icon="replay", on_click=lambda: self._take(dialog, job, picture)).props(
                    "no-caps"
                )
            ui.button("Begin from it", icon="image", on_click=lambda: self._start(dialog, picture)).props(
                "outline no-caps"
            )
            ui.button("Delete", icon="delete", on_click=lambda: self._delete(dialog, picture)).props(
                "flat no-caps color=negative"
            )

    def _take(self, dialog: ui.dialog, job: Job, picture: Picture) -> None:
        self._reuse(wishes.of_job(job.wish, picture.record.get("seed"), self.server.registry))
        dialog.close()
        say("The settings are in the form.")

    def _start(self, dialog: ui.dialog, picture: Picture) -> None:
        self._begin(picture.id)
        dialog.close()

    def _delete(self, dialog: ui.dialog, picture: Picture) -> None:
        try:
            self.server.delete(picture)
        except ApiError as error:
            say(error.message, bad=True)
            return
        dialog.close()
        self.look()
