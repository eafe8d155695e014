"""A new training: what to begin from, the few settings that matter, all others, what it will need, and the start."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from nicegui import ui

from sdtune.serve.app import Server
from sdtune.serve.errors import ApiError
from sdtune.serve.web.frame import client, facts, frame, say, section, tag
from sdtune.serve.web.train_draft import Draft, free_name
from sdtune.serve.web.train_fields import by_key
from sdtune.serve.web.train_form import Form, settings
from sdtune.serve.web.train_sets import Sets
from sdtune.serve.web.train_words import sentence, style
from sdtune.serve.work import Estimate, PresetView
from sdtune.units import count, duration, megabytes

FEW = {
    "name": "Name", "model.path": "Model", "method.type": "Method", "method.rank": "Rank", "train.steps": "Steps",
    "train.batch_size": "Batch size", "optimizer.lr": "Learning rate", "train.sample_every": "Previews every so many steps",
    "sample.prompts": "Prompts of the previews, one a line",
}  # fmt: skip
"""The settings that nearly everybody changes, and what they are called here. Everything else about them comes from the schema."""
FIRST = "demo-lora"
FAULTS = (404, 409, 422)
"""Answers that say that something is to be mended in the config."""
SHOWN = 5
"""Presets that are seen at once."""
PAUSE = 0.8
"""Seconds without a change before an estimate is asked for."""


def add(server: Server) -> None:
    @ui.page("/train/new")
    async def page(preset: str = "", like: str = "", data: str = "") -> None:
        style()
        with frame("New training", "/train"):
            taken = {view.name for view in await server.work.runs()}
            draft, note = _begin(server, taken, preset, like, data)
            New(server, draft, note, taken)


def _named(config: Mapping[str, Any], taken: Collection[str]) -> dict[str, Any]:
    """The config under a name that no run has."""
    return {**config, "name": free_name(str(config.get("name", "run")), taken)}


def _begin(server: Server, taken: Collection[str], preset: str, like: str, data: str) -> tuple[Draft, str]:
    """What the address asks for: a preset, a run to be like, a dataset; else the first preset that fits. With a note on it."""
    note, draft = "", None
    if like:
        try:
            draft, note = Draft(_named(server.work.posted_config(like), taken)), f"The settings of {like}."
        except ApiError as error:
            note = error.message
    if draft is None:
        presets = {p.name: p for p in server.work.presets()}
        chosen = presets.get(preset) or presets.get(FIRST) or next(iter(presets.values()), None)
        draft = Draft(_named(chosen.config, taken), chosen.name) if chosen else Draft(_named({}, taken))
    if data and any(found.id == data for found in server.work.sets()):
        draft.put("data.path", data)
    return draft, note


class New:
    """The page. Everything below the presets is drawn anew when another is chosen."""

    def __init__(self, server: Server, draft: Draft, note: str, taken: Collection[str]) -> None:
        self.work, self.draft, self.taken = server.work, draft, taken
        self.schema = self.work.schema()
        self.own = {entry.id for entry in server.registry.entries.values() if entry.id != "embedded"}
        self.own |= {found.id for found in self.work.sets() if not found.shipped}
        with section("Begin from", note or "A recipe that comes with sdtune. Everything in it can be changed below."):
            self._presets(self.work.presets())
        self.place = tag("div", classes="new")
        self._draw()

    # ---- presets

    def _presets(self, presets: list[PresetView]) -> None:
        self.cards: dict[str, Any] = {}
        self.presets: dict[str, PresetView] = {}
        fits = sorted((p for p in presets if p.fits), key=lambda p: p.name != FIRST)
        chosen = next((p for p in presets if p.name == self.draft.preset), None)
        first = (
            fits[:SHOWN]
            if chosen is None or chosen in fits[:SHOWN]
            else [chosen, *(p for p in fits if p != chosen)][:SHOWN]
        )
        with tag("div", classes="cards presets"):
            for preset in first:
                self._card(preset)
        self.about = tag("p", "", "note about")
        more = [p for p in fits if p not in first]
        others = [p for p in presets if not p.fits and p not in first]
        self._folded(more, f"{len(more)} more that run here as they are")
        self._folded(others, f"{len(others)} more for models or pictures that this server was not started with")
        self._mark()

    def _folded(self, presets: list[PresetView], title: str) -> None:
        if presets:
            with ui.expansion(title).classes("group"), tag("div", classes="cards"):
                for preset in presets:
                    self._card(preset)

    def _card(self, preset: PresetView) -> None:
        with tag("button", classes="pick").props("type=button") as card:
            tag("strong", preset.name)
            tag("span", sentence(preset.purpose.removeprefix("the demo: ")), "purpose")
        card.on("click", lambda: self._choose(preset))
        self.cards[preset.name] = card
        self.presets[preset.name] = preset

    def _mark(self) -> None:
        for name, card in self.cards.items():
            card.props["aria-pressed"] = "true" if name == self.draft.preset else "false"
        chosen = self.presets.get(self.draft.preset)
        self.about.text = f"Made for: {chosen.hardware} Takes: {chosen.time}" if chosen else ""

    def _choose(self, preset: PresetView) -> None:
        self.draft = Draft(_named(preset.config, self.taken), preset.name)
        self._mark()
        self._draw()

    # ---- the form

    def _draw(self) -> None:
        self.place.clear()
        self.form = Form(self.schema, self.draft, self._heard)
        self._asked, self._due = False, time.monotonic()
        with self.place:
            with tag("div", classes="new-form"), section("What matters most"):
                with tag("div", classes="settings"):
                    self.form.row("name", FEW["name"])
                Sets(self.work, self.draft, lambda: self.form.heard("data.path", anew=True))
                self._few()
            with tag("aside", classes="new-side").props('aria-label="Before it starts"'), tag("div", classes="card"):
                self._side()
            with tag("div", classes="new-all"), section("All settings"):
                self._find = settings(self.form)
            ui.timer(0.3, self._reckon)
        self._heard()

    def _few(self) -> None:
        place = tag("div", classes="settings")

        def draw() -> None:
            place.clear()
            with place:
                for key, label in FEW.items():
                    if key != "name":
                        self.form.row(key, label)

        draw()
        self.form.draws("method", draw)
        self.form.draws("model", draw)
        self.form.draws("optimizer", draw)

    def _heard(self) -> None:
        """Something has changed."""
        self._due = time.monotonic() + PAUSE
        self._asked = False
        self._show_faults()
        mended = not self.form.faults
        self.command.text = self.draft.command() if mended else "Shown when nothing is to be mended."
        self.needs_file.set_visibility(mended and not self.command.text.startswith("sdtune init"))
        own = [str(self.draft.get(key)) for key in ("model.path", "data.path") if self.draft.get(key) in self.own]
        self.needs_places.set_visibility(mended and bool(own))
        self.needs_places.text = f"Elsewhere, write the path in place of {' and '.join(own)}, a name of this server."
        for button in self.exports:
            button.set_enabled(mended)

    # ---- beside it

    def _side(self) -> None:
        tag("h2", "What it will need")
        self.reckoning = tag("p", "", "note reckoning")
        self.estimate = tag("div").props("role=status")
        self.faults = tag("div", classes="faults")
        with tag("div", classes="buttons"):
            self.begin = ui.button("Start training", icon="play_arrow", on_click=self._start).props("no-caps")
        with tag("div", classes="elsewhere"):
            tag("h3", "The same from a shell")
            self.command = tag("pre", "", "command").props('tabindex=0 aria-label="Command" role=region')
            self.needs_file = tag("p", "With the recipe, which you download here.", "note")
            self.needs_places = tag("p", "", "note")
            with tag("div", classes="buttons"):
                self.exports = [
                    ui.button("Copy as command", icon="content_copy", on_click=self._copy),
                    ui.button("Download recipe", icon="download", on_click=self._download),
                ]
                for button in self.exports:
                    button.props("outline no-caps size=sm")

    def _copy(self) -> None:
        ui.clipboard.write(self.draft.command())
        say("The command is copied.")

    def _download(self) -> None:
        ui.download.content(self.draft.recipe(), f"{self.draft.get('name') or 'run'}.toml", "application/toml")

    def _show_faults(self) -> None:
        faults = self.form.faults
        self.begin.set_enabled(not faults)
        self.faults.clear()
        if not faults:
            return
        with self.faults:
            tag("p", "To be mended first:" if len(faults) == 1 else f"{len(faults)} things to be mended first:", "bad")
            with tag("ul"):
                for key, message in faults.items():
                    with tag("li"):
                        if key:
                            ui.button(key, on_click=self._to(key)).props("flat dense no-caps size=sm").classes(
                                "fault-key"
                            )
                        tag("span", message)

    def _to(self, key: str) -> Callable[[], None]:
        return lambda: self._find(key)

    async def _reckon(self) -> None:
        """The estimate, a moment after the last change."""
        if self._asked or time.monotonic() < self._due:
            return
        self._asked = True
        if self.form.faults:
            self.reckoning.text = "Told when nothing is to be mended."
            self.estimate.clear()
            return
        wanted = self._due
        self.reckoning.text = "Reckoning …"
        try:
            found = await self.work.estimate(self.draft.config)
        except ApiError as error:
            self._refused(error)
            return
        if wanted == self._due:
            self.reckoning.text = ""
            self.estimate.clear()
            with self.estimate:
                needs(found)

    def _refused(self, error: ApiError) -> None:
        """The server says what is wrong with the config; or that it could not reckon, which is no fault of the config."""
        self.reckoning.text = "" if error.status in FAULTS else error.message
        self.estimate.clear()
        if error.status not in FAULTS:
            return
        told = by_key(error.message)
        if error.field and list(told) == [""]:
            told = {error.field: told[""]}
        self.form.told(told)
        self._show_faults()

    async def _start(self) -> None:
        self.begin.disable()
        try:
            self.work.read_config(self.draft.config)
            job, _ = self.work.train(self.draft.config, client())
        except ApiError as error:
            self.begin.enable()
            self._refused(error)
            if error.status not in FAULTS:
                say(error.message, bad=True)
            return
        ui.navigate.to(f"/train/run/{job.run}")


def needs(found: Estimate) -> None:
    """An estimate for people."""
    rows = [
        ("Time", f"about {duration(found.seconds)}" if found.seconds is not None else "not known yet"),
        ("Memory", _memory(found)),
        (
            "Disk",
            f"{megabytes(found.disk_mb)} of {megabytes(found.free_mb)} free"
            if found.disk_mb is not None
            else "not known",
        ),
        (
            "Trained",
            f"{count(found.trainable)} of {count(found.total)} weights"
            if found.trainable and found.total
            else "not known",
        ),
        ("Pictures", f"{found.pictures:,}, and {found.validation_pictures:,} held out"),
        ("Each is seen", f"{found.epochs:,.1f} times"),
    ]
    facts(rows)
    if found.seconds is not None and found.like:
        tag("p", f"Time as in the run {found.like}.", "note")
    if found.disk_mb is not None and found.disk_mb > found.free_mb:
        tag("p", "There is not enough room on the disk.", "bad")
    for note in found.notes:
        tag("p", sentence(note), "note")


def _memory(found: Estimate) -> str:
    known = [mb for mb in (found.weights_mb, found.state_mb) if mb is not None]
    return f"from {megabytes(sum(known))}" if known else "not known"
