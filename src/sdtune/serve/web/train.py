"""The page Train: the runs, those at work first, and the way to a new one."""

from __future__ import annotations

from contextlib import suppress

from nicegui import ui

from sdtune.serve.app import Server
from sdtune.serve.errors import ApiError
from sdtune.serve.web import train_data, train_new, train_run
from sdtune.serve.web.frame import client, frame, say, section, tag
from sdtune.serve.web.train_words import AT_WORK, STATES, progress, since, style
from sdtune.serve.work import PresetView, Preview, RunView, SetView

EVERY = 2.0
"""Seconds between looks at the runs."""
FIRST = "demo-lora"
"""What somebody new is offered."""
WELCOME = (
    "A training changes a model a little, step by step, until it draws like your pictures. Nothing is here yet; begin with what "
    "comes along: a small model, a set of pictures in comic style, and settings that work."
)
MANY = 40
"""Runs of the list that have their previews beside them."""
SHOWN = 3
"""Previews beside a run in the list."""


def add(server: Server) -> None:
    @ui.page("/train")
    async def page() -> None:
        style()
        with frame("Train", "/train"):
            runs = await server.work.runs()
            if not runs:
                _welcome(server)
            await Runs(server).start(runs)
            with (
                section("Datasets", "Folders that this server was started with, and sets that come with sdtune."),
                tag("ul", classes="sets"),
            ):
                for found in server.work.sets():
                    _set(found)

    train_new.add(server)
    train_run.add(server)
    train_data.add(server)


def _set(found: SetView) -> None:
    with tag("li"):
        ui.link(found.title, f"/train/data/{found.id}")
        tag("span", "comes with sdtune" if found.shipped else "yours", "note")


def _welcome(server: Server) -> None:
    """From nothing to a running training in one click."""
    preset = next((p for p in server.work.presets() if p.name == FIRST and p.fits), None)
    with tag("div", classes="welcome card"):
        tag("h2", "Teach a model something")
        tag("p", WELCOME, "lead")
        with tag("div", classes="buttons"):
            if preset:
                _demo_button(server, preset)
            ui.link("Choose for yourself", "/train/new").classes("go")
        if preset:
            tag("p", f"{preset.purpose} Takes {preset.time}", "note")


def _demo_button(server: Server, preset: PresetView) -> None:
    async def begin() -> None:
        button.disable()
        try:
            job, _ = server.work.train(preset.config, client())
        except ApiError as error:
            say(error.message, bad=True)
            button.enable()
            return
        ui.navigate.to(f"/train/run/{job.run}")

    button = ui.button("Train the demo now", icon="play_arrow", on_click=begin).props("no-caps size=lg")


class Runs:
    """The list. Rows stay; their words change."""

    def __init__(self, server: Server) -> None:
        self.work = server.work
        self._rows: dict[str, Row] = {}
        with tag("section") as self.place:
            with tag("div", classes="list-head"):
                tag("h2", "Runs")
                ui.button("New training", icon="add", on_click=lambda: ui.navigate.to("/train/new")).props("no-caps")
            self.list = tag("ul", classes="runs")

    async def start(self, runs: list[RunView]) -> None:
        self.show(runs)
        await self._show_previews(runs)
        ui.timer(EVERY, self.look, immediate=False)

    async def look(self) -> None:
        runs = await self.work.runs()
        self.show(runs)
        await self._show_previews(runs)

    async def _show_previews(self, runs: list[RunView]) -> None:
        for view in runs[:MANY]:
            row = self._rows.get(view.id)
            if row and row.stale(view):
                with suppress(ApiError):  # it waits, and has no folder yet
                    row.show_previews((await self.work.samples(view.id))[-SHOWN:])

    def show(self, runs: list[RunView]) -> None:
        runs = sorted(runs, key=lambda view: view.state not in AT_WORK)  # else as they came: the newest first
        self.place.set_visibility(bool(runs))
        if [view.id for view in runs] != list(self._rows):
            self.list.clear()
            with self.list:
                self._rows = {view.id: Row(view) for view in runs}
        for view in runs:
            self._rows[view.id].show(view)


class Row:
    """One run of the list."""

    def __init__(self, view: RunView) -> None:
        self._step, self._hrefs = -1, list[str]()
        with tag("li", classes="run card") as place, tag("div", classes="run-body"):
            with tag("div", classes="run-line"):
                ui.link(view.name, f"/train/run/{view.id}").classes("run-name")
                self.chip = tag("span", "", "state")
                self.about = tag("span", "", "note")
            self.bar = ui.linear_progress(0, show_value=False, size="6px")
            self.bar.props["aria-label"] = f"Progress of {view.name}"
            with tag("div", classes="run-line"):
                self.where = tag("span", "", "number")
                self.figures = tag("span", "", "number note")
        with place:
            self.previews = tag("div", classes="run-previews").props("aria-hidden=true")

    def stale(self, view: RunView) -> bool:
        """Whether there may be other previews than those shown; asked once for each step."""
        moved, self._step = self._step != view.step, view.step
        return moved

    def show_previews(self, previews: list[Preview]) -> None:
        hrefs = [preview.href for preview in previews]
        if hrefs != self._hrefs:
            self._hrefs = hrefs
            self.previews.clear()
            with self.previews:
                for href in hrefs:
                    ui.element("img").props('alt="" loading=lazy').props["src"] = href

    def show(self, view: RunView) -> None:
        word, colour = STATES[view.state]
        if self.chip.text != word:
            self.chip.text = word
            self.chip.classes(replace=f"state {colour}")
        self.about.text = " · ".join(
            part for part in (view.method, f"on {view.base}" if view.base else "", since(view.began)) if part
        )
        self.bar.set_visibility(view.state in AT_WORK)
        self.bar.value = view.step / view.steps if view.steps else 0
        self.where.text = view.message if view.state == "failed" and view.message else progress(view)
        self.figures.text = _figures(view)


def _figures(view: RunView) -> str:
    told = [f"loss {view.loss:.4f}"] if view.loss is not None and view.state in AT_WORK else []
    told += [f"lowest validation loss {view.best:.4f}"] if view.best is not None else []
    told += [f"{question}: {answer}" for question, answer in view.verdicts.items()]
    return " · ".join(told)
