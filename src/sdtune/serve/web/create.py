"""The page Create: a form, what becomes of it, and all that was drawn before."""

from __future__ import annotations

import json
from typing import Any

from nicegui import app, ui

from sdtune.serve.app import Server
from sdtune.serve.errors import ApiError
from sdtune.serve.queue import Job
from sdtune.serve.web.form import Form
from sdtune.serve.web.frame import alarm, client, frame, tag
from sdtune.serve.web.gallery import Gallery
from sdtune.serve.web.stage import Stage
from sdtune.serve.wish import read

VIEWS = (("/", "Draw"), ("/grid", "Grid"), ("/vote", "Blind vote"))


def add(server: Server) -> None:
    @ui.page("/")
    def page(model: str = "") -> None:
        with frame("Create", "/"):
            views("/")
            _Create(server, model)


def views(here: str) -> None:
    """What can be done with the models here, as links."""
    with tag("nav", classes="views").props('aria-label="Create"'):
        for target, name in VIEWS:
            link = ui.link(name, target)
            if target == here:
                link.props('aria-current="page"')


class _Create:
    def __init__(self, server: Server, model: str) -> None:
        self.server = server
        self._tab: Any = None  # what the browser's tab keeps, once it is connected
        with tag("div", classes="desk"):
            with tag("div", classes="card desk-form").props("role=form") as box:
                box.props["aria-label"] = "What to draw"
                self.form = Form(server, model, changed=self._keep)
                self._fault = tag("div")
                with ui.row().classes("fields apart"):
                    self._button = (
                        ui.button("Draw", icon="brush", on_click=self.draw).props("no-caps").classes("main-button")
                    )
                    self.form.restorer()
            self.stage = Stage(server, ended=self._ended)
        self.gallery = Gallery(server, self.form.fill, self._begin)
        box.on("keydown.ctrl.enter", self.draw)
        box.on("keydown.meta.enter", self.draw)
        ui.context.client.on_connect(lambda: self._recall(keep_model=bool(model)))

    def draw(self) -> None:
        """Ask for what the form says."""
        self._fault.clear()
        try:
            job = ask(self.server, self.form.body())
        except ApiError as error:
            with self._fault:
                alarm(f"{error.message}.")
            return
        if self._tab is not None:
            self._tab["job"] = job.id
        self.stage.show(job)

    def _begin(self, picture: str) -> None:
        self.form.fill({"image": picture, "mask": None})
        ui.run_javascript("window.scrollTo({top: 0})")

    def _ended(self) -> None:
        self.gallery.look()

    # ---- a reload loses nothing

    def _keep(self) -> None:
        if self._tab is not None:
            self._tab["draw"] = dict(self.form.values)

    def _recall(self, *, keep_model: bool) -> None:
        if self._tab is not None:  # connected again, the page is as it was
            return
        self._tab = app.storage.tab
        kept = {k: v for k, v in dict(self._tab.get("draw", {})).items() if k in self.form.values}
        kept["adapters"] = dict(kept.get("adapters", {}))
        if keep_model or self.server.registry.get(str(kept.get("model"))) is None:
            kept.pop("model", None)
        for key in ("image", "mask"):
            if kept.get(key) and self.server.queue.picture(kept[key]) is None:
                kept[key] = None
        self.form.fill(kept)
        if job := self.server.queue.get(str(self._tab.get("job", ""))):
            self.stage.show(job)


def ask(server: Server, body: dict[str, Any]) -> Job:
    """Queue what a form asks for, checked as what programs send. Raises ApiError."""
    wish = read(json.dumps(body).encode(), server.wish, server.rules.limits)
    job, _ = server.take(wish, client())
    return job
