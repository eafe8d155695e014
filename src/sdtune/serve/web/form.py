"""The form of Create: what to draw, with which model, how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nicegui import events, ui

from sdtune.errors import DataError
from sdtune.samplers import SAMPLERS
from sdtune.serve.app import Server
from sdtune.serve.errors import ApiError
from sdtune.serve.registry import Entry
from sdtune.serve.web import wishes
from sdtune.serve.web.frame import say, tag
from sdtune.serve.web.pieces import PNG, address, file_button, image, number


class Form:
    """`values` is what it holds, in the words of `wishes`."""

    def __init__(
        self, server: Server, model: str = "", changed: Callable[[], object] = lambda: None, *, single: bool = False
    ) -> None:
        """`single`: it asks for pictures of one kind and one seed each, as a grid's cells are."""
        self.server, self._changed, self._single = server, changed, single
        self.entry: Entry = server.registry.get(model) or server.registry.first
        self.values = wishes.usual(self.entry)
        self._fields: dict[str, Any] = {}
        self._built = False
        self._suited: tuple[Any, ...] = ()
        self._models()
        self._prompts()
        with ui.row().classes("fields"):
            self._field("count", number("Pictures", min=1, max=wishes.MOST, precision=0)).set_visibility(not single)
            self._field("seed", number("Seed", min=0, max=server.rules.limits.seed, precision=0))
            self._field("chance", ui.checkbox("another seed each time"))
        with ui.expansion("Settings", icon="tune").classes("fold"):
            self._settings()
        with ui.expansion("Begin from a picture", icon="image").classes("fold") as self._begin:
            self._start()
        self._built = True
        self._suit()

    # ---- its parts

    def _field(self, key: str, field: Any) -> Any:
        """A field that holds `values[key]`."""

        def take(event: events.ValueChangeEventArguments[Any]) -> None:
            self.values[key] = event.value
            self._suit()
            self._changed()

        self._fields[key] = field
        field.set_value(self.values[key])
        field.on_value_change(take)
        return field

    def _models(self) -> None:
        entries = self.server.registry.entries.values()
        names = {e.id: e.id if e.kind == "original" else f"{e.id} ({e.method or e.kind} on {e.base})" for e in entries}
        for e in entries:
            names |= {name: name.replace("@", " at ") for name in e.checkpoints}
        with ui.row().classes("fields"):
            self._field(
                "model",
                ui.select(names, label="Model", with_input=len(names) > 8).props("outlined dense").classes("grow"),
            )
        self._field("draw", ui.radio(wishes.DRAWS).props('inline dense aria-label="Draw with"'))

    def _prompts(self) -> None:
        limit = self.server.rules.limits.text
        self._field(
            "prompt", ui.textarea("Prompt").props(f"outlined autogrow maxlength={limit} autofocus input-class=prompt")
        )
        self._examples = tag("div", classes="chips").props('role=group aria-label="Example prompts"')
        self._field(
            "negative",
            ui.textarea("Negative prompt: what to steer away from").props(f"outlined dense autogrow maxlength={limit}"),
        )

    def _settings(self) -> None:
        limits = self.server.rules.limits
        with tag("div", classes="two-columns"):
            self._field("steps", number("Steps", min=1, max=limits.steps, precision=0))
            self._field("guidance", number("Guidance", min=0, max=limits.guidance, step=0.5))
            self._field("width", number("Width", min=16, max=limits.side, precision=0))
            self._field("height", number("Height", min=16, max=limits.side, precision=0))
        named = {name: f"{s.title}: {s.good_for}" for name, s in SAMPLERS.items()}
        self._field("scheduler", ui.select(named, label="Sampler").props("outlined dense"))
        self._strength = tag("div", classes="range")
        with self._strength:
            tag("label", "Strength of what was trained").props("id=strength-name")
            self._field("strength", ui.slider(min=0, max=2, step=0.05).props("label aria-labelledby=strength-name"))
        self._field("prompt_weights", ui.checkbox("Read weights in prompts: (word:1.3)"))
        self._adapters = ui.column().classes("stack-fields")

    def _start(self) -> None:
        tag(
            "p",
            "The result begins with this picture instead of noise. With a mask, only what is white in it is painted anew.",
            "note",
        )
        self._shown = ui.row().classes("fields")
        limit = self.server.rules.limits.upload
        with ui.row().classes("fields"):
            file_button("Choose a picture", PNG, limit, self._took("image"), icon="image", drop=".begin-drop")
            self._mask_buttons = ui.row().classes("fields")
            with self._mask_buttons:
                ui.button("Paint a mask", icon="brush", on_click=self._paint).props("outline no-caps")
                file_button("Choose a mask", PNG, limit, self._took("mask"), icon="texture")
        self._far = tag("div", classes="range")
        with self._far:
            tag("label", "How far the result may go from it").props("id=far-name")
            self._field(
                "denoising_strength", ui.slider(min=0.05, max=1, step=0.05).props("label aria-labelledby=far-name")
            )

    def _took(self, key: str) -> Any:
        async def taken(data: bytes, name: str) -> None:
            try:
                kept = await self.server.keep_upload(data)
            except ApiError as error:
                say(error.message, bad=True)
                return
            self.fill({key: kept.id, **({"mask": None} if key == "image" else {})})

        return taken

    def _paint(self) -> None:
        """A canvas over the picture; web.js keeps what is painted, and sends it as a mask."""

        def painted(event: events.GenericEventArguments) -> None:
            dialog.close()
            self.fill({"mask": event.args})

        with ui.dialog().props("maximized") as dialog, ui.card().classes("painter"):
            tag("h2", "Paint over what is to be drawn anew")
            board = tag("div", classes="board")
            board.props["data-picture"] = address(self.values["image"])
            board.on("painted", painted, js_handler="(event) => emit(event.detail)")
            with ui.row().classes("fields"):
                width = tag("input", classes="brush").props(
                    'type=range min=2 max=100 value=30 aria-label="Width of the brush"'
                )
                width.props["data-brush"] = ""
                ui.button("Clear").props("outline no-caps data-clear")
                ui.button("Use this mask").props("no-caps data-use")
                ui.button("Close", on_click=dialog.close).props("flat no-caps")
        dialog.open()
        ui.run_javascript(f"sdtune.paint({board.id})")

    # ---- what fits what was chosen

    def _suit(self) -> None:
        """Show what can be set for the chosen model and picture."""
        if not self._built:
            return
        entry = self.server.registry.get(self.values["model"]) or self.server.registry.first
        if entry != self.entry:
            self.values |= {"width": entry.resolution, "height": entry.resolution, "adapters": {}}
            self.entry = entry
            self.fill({"width": entry.resolution, "height": entry.resolution})
        key = tuple(self.values[k] for k in ("model", "draw", "image", "mask", "chance"))
        if key == self._suited:
            return
        self._suited = key
        tuned = entry.kind != "original"
        self._fields["draw"].set_visibility(tuned and not self._single)
        self._fields["seed"].set_enabled(not self.values["chance"])
        self._strength.set_visibility(tuned and (self._single or self.values["draw"] != "original"))
        for side in ("width", "height"):
            self._fields[side].set_visibility(not self.values["image"])
            self._fields[side].props(f"step={entry.grid}")
        self._show_examples(entry)
        self._show_adapters(entry)
        self._show_start()

    def _show_examples(self, entry: Entry) -> None:
        self._examples.clear()
        with self._examples:
            for prompt in wishes.examples(entry):
                ui.button(prompt, on_click=lambda p=prompt: self.fill({"prompt": p})).props(
                    "flat dense no-caps"
                ).classes("chip")

    def _show_adapters(self, entry: Entry) -> None:
        """Others that can lie on the same original, each with a strength; 0 is off."""
        self._adapters.clear()
        others = [
            e
            for e in self.server.registry.entries.values()
            if e.stackable and e.base == entry.base and e.id != entry.id
        ]
        if not others or self.values["draw"] == "original":
            return
        with self._adapters:
            tag("h3", "Further adapters (0: off)")
            for other in others:
                field = number(other.id, min=-4, max=4, step=0.1, value=self.values["adapters"].get(other.id, 0))
                field.on_value_change(lambda e, name=other.id: self.values["adapters"].update({name: e.value}))

    def _show_start(self) -> None:
        picture, mask = self.values["image"], self.values["mask"]
        self._shown.clear()
        self._mask_buttons.set_visibility(bool(picture))
        self._far.set_visibility(bool(picture))
        with self._shown:
            for name, key in ((picture, "image"), (mask, "mask")):
                if name and self.server.queue.picture(name):
                    with tag("figure", classes="small"):
                        image(address(name, "thumb"), "the picture to begin with" if key == "image" else "the mask")
                        off = {"image": None, "mask": None} if key == "image" else {"mask": None}
                        ui.button("Remove", on_click=lambda off=off: self.fill(off)).props("flat dense no-caps")

    # ---- for others

    def fill(self, changed: Mapping[str, Any]) -> None:
        """Put values in; those of keys that are not named stay."""
        self.values |= changed
        for key, value in changed.items():
            if key in self._fields:
                self._fields[key].set_value(value)
        self._suit()
        if self.values["image"]:
            self._begin.open()
        self._changed()

    def body(self) -> dict[str, Any]:
        return wishes.body(self.values, self.server.registry)

    def restorer(self) -> ui.button:
        """A button, and a place to drop at, that reads the settings of a PNG."""

        async def taken(data: bytes, name: str) -> None:
            try:
                values, notes = wishes.of_file(data, name[:80], self.server.registry)
            except DataError as error:
                say(str(error), bad=True)
                return
            self.fill(values)
            for note in notes[:6]:
                say(note)
            say(f"The settings of {name[:80]} are in the form.")

        button = file_button(
            "Settings from a PNG",
            ".png",
            self.server.rules.limits.upload,
            taken,
            icon="settings_backup_restore",
            drop="body",
        )
        with button:
            ui.tooltip("Or drop a PNG of sdtune or a web UI anywhere on this page")
        return button
