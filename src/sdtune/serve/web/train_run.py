"""A run while it trains and afterwards: where it is, its curves, previews, log and config, and the buttons that steer it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from nicegui import ui

from sdtune.serve.app import Server
from sdtune.serve.errors import ApiError
from sdtune.serve.web.frame import alarm, client, empty, frame, section, tag
from sdtune.serve.web.train_charts import options, words
from sdtune.serve.web.train_timeline import Timeline
from sdtune.serve.web.train_words import AT_WORK, STATES, progress, since, style, tried
from sdtune.serve.work import Curves, RunView

MEASURES = (
    "Compare each curve with itself: the loss is of a few pictures and random times, weighted as the objective says; the validation "
    "loss is of all held-out pictures at fixed times."
)
GOES_ON = ("stopped", "failed", "empty")
FIGURES = ("Loss", "Validation", "Lowest", "Method", "Base", "Begun")
EVERY = 1.0
"""Seconds between looks at a run that is at work."""
QUIET = 5
"""Looks at all of a run that has ended: its last lines come after its state."""


def add(server: Server) -> None:
    @ui.page("/train/run/{run}")
    async def page(run: str) -> None:
        style()
        try:
            view = await server.work.run(run)
        except ApiError:
            with frame("No such run", "/train"):
                empty(
                    "There is no such run here",
                    "It was deleted or renamed, or this server was started without its folder.",
                    "/train",
                    "All runs",
                )
            return
        with frame(view.name, "/train"):
            await RunPage(server, view).start()


class RunPage:
    """What stays on the page; only what has changed is sent again."""

    def __init__(self, server: Server, view: RunView) -> None:
        self.work, self.view = server.work, view
        self._seen, self._quiet = (-1, ""), 0
        self._log_axis, self._raw = False, True
        self._curves: Curves | None = None
        self.head = Head(self)
        self._draw()

    def _draw(self) -> None:
        with section("Loss"):
            self.said = tag("p", "", "note")
            self.charted = tag("div")
        with self.charted:
            with tag("div", classes="tools"):
                ui.switch("Logarithmic", on_change=lambda e: self._axis(log=bool(e.value)))
                ui.switch("Each step, too", value=True, on_change=lambda e: self._axis(raw=bool(e.value)))
            with tag("div", classes="card"):
                chart_box = tag("div").props("role=img")
                with chart_box:
                    self.chart = ui.echart({}, renderer="svg").classes("curves")
                tag("p", MEASURES, "note")
            self.chart_box = chart_box
        with section("Previews", "The same prompts and seeds, as the training goes on. Step 0 is the base model."):
            self.timeline = Timeline()
        with section("Notices") as self.notices:
            self.warnings = tag("ul", classes="warnings")
        with section("Log"):
            self.log = tag("pre", "", "log").props('tabindex=0 aria-label="Log" role=region')
        with section("Config"), ui.expansion("The whole config of this run").classes("group") as config:
            config.on_value_change(lambda e: self._show_config(config) if e.value else None)

    def _show_config(self, place: Any) -> None:
        with place:
            place.clear()
            tag("pre", self.work.config_text(self.view.id), "log").props('tabindex=0 aria-label="Config" role=region')

    def _axis(self, *, log: bool | None = None, raw: bool | None = None) -> None:
        self._log_axis = self._log_axis if log is None else log
        self._raw = self._raw if raw is None else raw
        self._show_curves()

    def _show_curves(self) -> None:
        if self._curves is None:
            return
        self.charted.set_visibility(bool(self._curves.step or self._curves.validation))
        self.chart.options.clear()
        self.chart.options.update(options(self._curves, log=self._log_axis, raw=self._raw))
        self.chart.update()
        self.said.text = words(self._curves)
        self.chart_box.props["aria-label"] = f"Curves. {self.said.text}"

    # ---- as it goes on

    async def start(self) -> None:
        await self.look()
        ui.timer(EVERY, self.look, immediate=False)

    async def look(self) -> None:
        """Once a second: the state; what else has changed, if the run has moved."""
        try:
            self.view = await self.work.run(self.view.id)
        except ApiError:
            return
        self.head.show(self.view)
        seen = (self.view.step, self.view.state)
        self._quiet = 0 if seen != self._seen or self.view.state in AT_WORK else self._quiet + 1
        if self._quiet > QUIET:
            return
        moved, self._seen = seen != self._seen, seen
        with suppress(ApiError):  # it waits, and has no folder yet
            if moved:
                self._curves = await self.work.curves(self.view.id)
                self._show_curves()
            self.timeline.update(await self.work.samples(self.view.id))
        self._show_log()
        self._show_warnings()

    def _show_log(self) -> None:
        text = self.work.log_text(self.view.id, 300) or "Nothing was printed yet, or not by a training of this server."
        if text != self.log.text:
            self.log.text = text
            ui.run_javascript(f"sdtuneLogEnd({self.log.html_id!r})")

    def _show_warnings(self) -> None:
        job = self.work.job(self.view.job) if self.view.job else None
        said = [s.data for s in self.work.log_of(job).said if s.event == "warned"] if job else []
        texts = [f"{w.get('message', '')} (step {w.get('step', 0)})" for w in said]
        self.notices.set_visibility(bool(texts))
        if texts != [getattr(c, "text", "") for c in self.warnings]:
            self.warnings.clear()
            with self.warnings:
                for text in texts:
                    tag("li", text)


@dataclass
class Action:
    """A button and the states in which it is of use."""

    name: str
    icon: str
    states: tuple[str, ...]
    do: Callable[[], object]
    done: str
    main: bool = False


class Head:
    """State, progress, figures and buttons."""

    def __init__(self, page: RunPage) -> None:
        self.page, work = page, page.work
        self.failed = alarm("")
        with tag("div", classes="run-head card"):
            with tag("div", classes="run-line"):
                with tag("span").props("role=status"):
                    self.chip = tag("span", "", "state")
                self.where = tag("span", "", "number run-where")
            self.bar = ui.linear_progress(0, show_value=False, size="8px").props('aria-label="Progress"')
            with tag("dl", classes="facts"):
                self.figures = {name: _named(name) for name in FIGURES}
            with tag("div", classes="buttons"):
                self.buttons = [self._button(a) for a in self._actions(work)]
                self.links = tag("span", classes="buttons")
            self.hint = tag("p", "", "note")
        self._shown: tuple[str, str | None] = ("", None)

    def _actions(self, work: Any) -> list[Action]:
        run = self.page.view.id
        return [
            Action("Go on", "play_arrow", GOES_ON, lambda: work.go_on(run, client()), "It goes on where it was saved.", True),
            Action("Stop", "pause", ("running",), lambda: work.stop_run(run), "It ends its step, saves, and stops.", True),
            Action("Cancel", "close", ("queued",), lambda: work.stop_run(run), "It does not wait any more."),
            Action("Save now", "save", ("running",), lambda: work.save_now(run), "A checkpoint is saved after this step."),
            Action("Sample now", "image", ("running",), lambda: work.sample_now(run), "Previews are drawn after this step."),
        ]  # fmt: skip

    def _button(self, action: Action) -> tuple[Action, ui.button]:
        async def press() -> None:
            button.disable()
            await tried(action.do, action.done)
            await asyncio.sleep(0.3)
            button.enable()
            await self.page.look()

        button = ui.button(action.name, icon=action.icon, on_click=press).props(
            "no-caps" + ("" if action.main else " outline")
        )
        return action, button

    def show(self, view: RunView) -> None:
        word, colour = STATES[view.state]
        if self.chip.text != word:
            self.chip.text = word
            self.chip.classes(replace=f"state {colour}")
        self.where.text = progress(view)
        self.bar.value = view.step / view.steps if view.steps else 0
        self._show_figures(view)
        self.failed.set_visibility(view.state == "failed" and bool(view.message))
        self.failed.text = view.message
        for action, button in self.buttons:
            button.set_visibility(view.state in action.states and not view.plugins)
        self.hint.text = self._hint(view)
        self.hint.set_visibility(bool(self.hint.text))
        shown = (view.state, view.model)  # the model is known a moment after the end
        if self._shown != shown:
            self._shown = shown
            self._show_links(view)

    def _show_figures(self, view: RunView) -> None:
        told = {
            "Loss": _figure(view.loss), "Validation": _figure(view.validation),
            "Lowest": f"{_figure(view.best)} at step {view.best_step}" if view.best is not None else "–",
            "Method": view.method, "Base": view.base, "Begun": since(view.began),
        }  # fmt: skip
        for name, text in told.items():
            self.figures[name].text = text

    def _show_links(self, view: RunView) -> None:
        self.links.clear()
        with self.links:
            if view.state == "finished" and view.model:
                ui.link("Create with it", f"/?model={quote(view.model)}").classes("go")
            if view.state == "finished":
                ui.link("Compare", f"/results?run={quote(view.id)}").classes("go")
            if view.state not in AT_WORK and not view.plugins:
                ui.link("New training like it", f"/train/new?like={quote(view.id)}").classes("go")

    @staticmethod
    def _hint(view: RunView) -> str:
        if view.plugins:
            return "This run has code of its own (plugins), so it is only looked at here; go on with `sdtune train`."
        return {
            "running": "You may close this page, or the server: the training goes on. Stop saves; you can go on at any time.",
            "queued": "It begins when what is before it is done.",
            "stopping": "It ends its step and saves.",
            "empty": "It has taken no step yet.",
            "stopped": "It is saved. It goes on where it was, and gives what it would have given without the pause.",
        }.get(view.state, "")


def _named(name: str) -> Any:
    """A name, and the place of its value."""
    with tag("div"):
        tag("dt", name)
        return tag("dd", "–")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
