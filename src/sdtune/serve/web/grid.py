"""The page Grid: any two settings against each other, a picture for each pair of values."""

from __future__ import annotations

import secrets
from typing import Any

from nicegui import ui

from sdtune.serve.app import Server
from sdtune.serve.errors import ApiError
from sdtune.serve.queue import Job
from sdtune.serve.web import axes, wishes
from sdtune.serve.web.book import Axis, Book, Grid
from sdtune.serve.web.create import ask, views
from sdtune.serve.web.form import Form
from sdtune.serve.web.frame import alarm, empty, frame, section, tag
from sdtune.serve.web.pieces import address, image

TITLES = {key: setting.title for key, setting in axes.SETTINGS.items()}


def add(server: Server, book: Book) -> None:
    @ui.page("/grid")
    def page(model: str = "") -> None:
        with frame("Create", "/"):
            views("/grid")
            _New(server, book, model)
            _earlier(book)

    @ui.page("/grid/{name}")
    def one(name: str) -> None:
        with frame("Grid", "/"):
            views("/grid")
            if grid := book.grid(name):
                _Shown(server, grid)
            else:
                empty("No such grid", "It may have been made by another server.", "/grid", "Make a grid")


class _New:
    """The form, two axes, and the button."""

    def __init__(self, server: Server, book: Book, model: str) -> None:
        self.server, self.book = server, book
        self.sides: list[_Side] = []
        with tag("div", classes="desk"):
            with tag("div", classes="card desk-form"):
                self.form = Form(server, model, changed=self._suit, single=True)
            with tag("div", classes="stage"):
                tag(
                    "p",
                    "One picture for each pair of values; everything else is as the form says, with one seed for all.",
                    "lead",
                )
                self.sides = [_Side(self, "Across", "strength"), _Side(self, "Down", "model")]
                self._fault = tag("div")
                ui.button("Draw the grid", icon="grid_on", on_click=self._draw).props("no-caps").classes("main-button")

    def _suit(self) -> None:
        for side in self.sides:
            side.suit()

    def _draw(self) -> None:
        self._fault.clear()
        try:
            values = dict(self.form.values)
            if values["chance"]:
                values |= {"chance": False, "seed": secrets.randbelow(2**32)}
            x, y = (side.axis() for side in self.sides)
            cells = axes.cells(values, x, y)
            free = self.server.rules.limits.queue - self.server.queue.count("queued")
            if len(cells) > free:
                raise ValueError(f"The queue has room for {max(free, 0)} more jobs, the grid needs {len(cells)}")
            jobs = [ask(self.server, wishes.body(cell, self.server.registry)).id for cell in cells]
        except (ValueError, ApiError) as error:
            with self._fault:
                alarm(f"{getattr(error, 'message', error)}.")
            return
        grid = self.book.add_grid(x, y, jobs, str(values["prompt"]))
        ui.navigate.to(f"/grid/{grid.id}")


class _Side:
    """One axis: a setting, and its values written or chosen."""

    def __init__(self, new: _New, name: str, key: str) -> None:
        self._new, self._key, self._name = new, key, name
        with ui.row().classes("fields side"):
            ui.select(TITLES, label=name, value=key, on_change=lambda e: self._choose(e.value)).props(
                "outlined dense"
            ).classes("grow")
            self._box = ui.row().classes("grow")
        self._choose(key)

    def _choose(self, key: str) -> None:
        self._key = key
        self._box.clear()
        setting = axes.SETTINGS[key]
        with self._box:
            if setting.read:
                self._field: Any = ui.input(
                    f"Values {self._name.lower()}", value="" if key == "prompt" else setting.example
                )
                self._field.props("outlined dense").props["hint"] = setting.example
            else:
                self._field = ui.select([], label=f"Values {self._name.lower()}", multiple=True).props(
                    "outlined dense use-chips"
                )
            self._field.classes("grow")
        self._known: list[str] = []
        self.suit()

    def suit(self) -> None:
        """Offer what the chosen model has."""
        if axes.SETTINGS[self._key].read:
            return
        known = axes.choices(self._key, self._new.server.registry, self._new.form.entry)
        if known != self._known:
            self._known = known
            run = self._new.form.entry.id.partition("@")[0]
            own = [name for name in known if name.partition("@")[0] == run] if self._key == "model" else known[:3]
            self._field.set_options(known, value=own[-6:])

    def axis(self) -> Axis:
        """Raises ValueError."""
        if axes.SETTINGS[self._key].read:
            return axes.read(self._key, str(self._field.value or ""))
        if not self._field.value:
            raise ValueError(f"{self._name}: choose values of {TITLES[self._key]}")
        return Axis(self._key, tuple(v for v in self._known if v in self._field.value))


class _Shown:
    """A grid that fills while it is looked at."""

    def __init__(self, server: Server, grid: Grid) -> None:
        self.server, self.grid = server, grid
        self._cells: dict[str, Any] = {}
        self._open = set(grid.jobs)
        tag("p", grid.prompt, "lead")
        with ui.row().classes("fields"):
            self._told = tag("p", classes="told grow").props("role=status aria-live=polite")
            self._stop = ui.button("Cancel the rest", on_click=self._cancel).props("outline dense no-caps")
        with (
            tag("div", classes="scroll").props('tabindex=0 role=region aria-label="The grid"'),
            tag("table", classes="grid"),
        ):
            self._head()
            self._rows()
        self._timer = ui.timer(0.7, self._look)
        self._look()

    def _head(self) -> None:
        x, y = self.grid.x, self.grid.y
        tag("caption", f"{TITLES[x.key]} across, {TITLES[y.key].lower()} down", "soft")
        with tag("thead"), tag("tr"):
            tag("td")
            for value in x.values:
                tag("th", axes.named(x, value)).props("scope=col")

    def _rows(self) -> None:
        jobs = iter(self.grid.jobs)
        with tag("tbody"):
            for value in self.grid.y.values:
                with tag("tr"):
                    tag("th", axes.named(self.grid.y, value)).props("scope=row")
                    for _ in self.grid.x.values:
                        self._cells[next(jobs)] = tag("td", "waiting")

    def _look(self) -> None:
        for name in sorted(self._open):
            job = self.server.queue.get(name)
            if job is None or job.finished:
                self._open.discard(name)
                self._end(name, job)
            elif job.state == "running" and self._cells[name].text != "drawing":
                self._cells[name].text = "drawing"
        done, count = len(self.grid.jobs) - len(self._open), len(self.grid.jobs)
        self._told.text = f"{done} of {count} pictures" if self._open else f"{count} pictures"
        self._stop.set_visibility(bool(self._open))
        if not self._open:
            self._timer.deactivate()

    def _end(self, name: str, job: Job | None) -> None:
        cell = self._cells[name]
        pictures = self.server.queue.pictures_of(name)
        cell.text = "" if pictures else "deleted" if job is None or job.state == "done" else job.state
        if pictures:
            row, column = divmod(self.grid.jobs.index(name), len(self.grid.x.values))
            where = f"{axes.named(self.grid.x, self.grid.x.values[column])}, {axes.named(self.grid.y, self.grid.y.values[row])}"
            with cell, tag("a").props("target=_blank") as link:
                link.props["href"] = address(pictures[0])
                image(address(pictures[0]), where)

    def _cancel(self) -> None:
        for name in self._open:
            if job := self.server.queue.get(name):
                self.server.dispatcher.cancel(job)


def _earlier(book: Book) -> None:
    with section("Earlier grids"):
        found = book.grids()
        if not found:
            empty(
                "No grids yet",
                "A trainer's favourite: checkpoints down, strengths across. It shows at a glance where a run was best.",
            )
            return
        with tag("ul", classes="plain-list"):
            for grid in found:
                with tag("li"):
                    size = f"{len(grid.x.values)} x {len(grid.y.values)}"
                    ui.link(
                        f"{grid.prompt or 'several prompts'}: {TITLES[grid.x.key].lower()} by {TITLES[grid.y.key].lower()}, {size}",
                        f"/grid/{grid.id}",
                    )
