"""The fields of a config on a page: each with its help, its range, a check at once, a mark where it was changed and a way back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.validation_element import ValidationElement
from nicegui.elements.mixins.value_element import ValueElement

from sdtune import config as configs
from sdtune.serve.web.frame import tag
from sdtune.serve.web.train_draft import Draft
from sdtune.serve.web.train_fields import UNSET, Field, Group, faults, groups, number, search

FOUND = 30
"""Settings that a search shows at most."""
TYPE = ".type"


class Form:
    """A draft and its rows. One key may have several rows: among the few that matter, in its section, and where it was searched for."""

    def __init__(self, schema: Mapping[str, Any], draft: Draft, heard: Callable[[], None]) -> None:
        self.schema, self.draft, self._heard = schema, draft, heard
        self.groups = groups(schema, draft.config)
        self.faults = dict[str, str]()
        self._unread = dict[str, str]()
        self._rows: dict[str, list[Row]] = defaultdict(list)
        self._parts: dict[str, list[Callable[[], None]]] = defaultdict(list)
        self.check()

    def field(self, key: str) -> Field | None:
        """None for a key that the chosen kinds of sections do not have."""
        return next((f for g in self.groups for f in g.fields if f.key == key), None)

    def group(self, key: str) -> Group | None:
        return next((g for g in self.groups if g.key == key), None)

    def row(self, key: str, label: str = "") -> None:
        """A row for this key here; nothing if there is no such key now."""
        if key.endswith(TYPE):
            if group := self.group(key.removesuffix(TYPE)):
                Turn(self, group, label)
        elif field := self.field(key):
            row = Row(self, field, label)
            self._rows[key].append(row)
            row.show()

    def rows_of(self, key: str) -> Callable[[], None]:
        """All fields of a section here; what is called then draws them anew."""
        place = tag("div", classes="settings")

        def draw() -> None:
            place.clear()
            with place:
                group = self.group(key)
                if group and group.kinds:
                    Turn(self, group, "")
                for field in group.fields if group else ():
                    self.row(field.key)

        draw()
        self._parts[key].append(draw)
        return draw

    def draws(self, group: str, draw: Callable[[], None]) -> None:
        """Something else to be drawn anew when the kind of a section turns."""
        self._parts[group].append(draw)

    # ---- what the rows tell

    def put(self, field: Field, value: Any) -> None:
        """A value from a widget: text that is to be read, or a choice."""
        self._unread.pop(field.key, None)
        try:
            self.draft.put(
                field.key,
                field.read(value) if isinstance(value, str) and field.kind != "choice" else value,
                field.usual,
            )
        except ValueError as error:
            self._unread[field.key] = str(error)
        self.heard(field.key)

    def reset(self, field: Field) -> None:
        self._unread.pop(field.key, None)
        self.draft.reset(field.key)
        self.heard(field.key, anew=True)

    def turn(self, group: str, kind: str) -> None:
        """Another kind of a section: other fields."""
        self.draft.turn(group, kind)
        self.groups = groups(self.schema, self.draft.config)
        self._unread = {k: v for k, v in self._unread.items() if not k.startswith(f"{group}.")}
        self._rows = defaultdict(list, {k: v for k, v in self._rows.items() if self.field(k)})
        for draw in self._parts[group]:
            draw()
        self.heard()

    def heard(self, key: str = "", *, anew: bool = False) -> None:
        self.check()
        if anew:
            for row in self._rows[key]:
                row.fill()
        self.show()
        self._heard()

    def check(self) -> None:
        self.faults = {**faults(self.draft.config), **self._unread}

    def show(self) -> None:
        for rows in self._rows.values():
            for row in rows:
                row.show()

    def told(self, told: Mapping[str, str]) -> None:
        """What the server said is wrong, besides what is seen here."""
        self.faults.update(told)
        self.show()

    def changes(self, group: str) -> int:
        found = self.group(group)
        if found is None:
            return 0
        turned = bool(found.kinds) and self.draft.changed(group + TYPE, configs.usual_type(group))
        return turned + sum(self.draft.changed(f.key, f.usual) for f in found.fields)


class Row:
    """A field's widget, help and marks."""

    def __init__(self, form: Form, field: Field, label: str) -> None:
        self.form, self.field = form, field
        self._filling = False
        with tag("div", classes="field") as self.place:
            self.widget = self._widget(label or field.name.capitalize())
            with tag("div", classes="field-foot"):
                tag("code", field.key)
                if hint := self._hint():
                    tag("span", hint)
                with tag("span", classes="changed") as self.mark:
                    tag("span", "changed")
                    back = ui.button("Undo", on_click=lambda: form.reset(field)).props("flat dense no-caps size=sm")
                    back.props["aria-label"] = f"Undo the change of {field.key}"
            self.fault = tag("p", "", "bad note")
            if field.help:
                tag("p", field.help, "note")
        if isinstance(self.widget, ValidationElement):
            self.widget.without_auto_validation()

    def _hint(self) -> str:
        usual = UNSET if self.field.usual is None else self.field.shown(self.field.usual)
        usual = "none" if self.field.usual in ({}, []) else usual
        words = [self.field.bounds, f"usually {usual}" if self.field.kind != "flag" and usual else ""]
        return " · ".join(word for word in words if word)

    def _widget(self, label: str) -> ValueElement[Any]:
        field, value = self.field, self.form.draft.get(self.field.key, self.field.usual)
        if field.kind == "flag":
            return ui.switch(label, value=bool(value), on_change=lambda e: self._heard(e.value))
        if field.kind == "choice":
            options = {choice: _word(choice) for choice in field.choices} | ({None: UNSET} if field.unset else {})
            value = value if value in options else None
            made = ui.select(options, label=label, value=value, on_change=lambda e: self._heard(e.value))
            return made.props("outlined dense options-dense")
        text = field.shown(value)
        if field.kind == "lines":
            area = ui.textarea(label, value=text, on_change=lambda e: self._heard(e.value or ""))
            return area.props("outlined dense autogrow debounce=250")
        line = ui.input(label, value=text, on_change=lambda e: self._heard(e.value or "")).props(
            "outlined dense debounce=250"
        )
        if field.kind in ("whole", "number"):
            line.props(f"inputmode={'numeric' if field.kind == 'whole' else 'decimal'}")
        return line

    def _heard(self, value: Any) -> None:
        if self._filling:
            return
        self.form.put(self.field, value)
        for row in self.form._rows[self.field.key]:
            if row is not self:
                row.fill()

    def fill(self) -> None:
        """Show the draft's value in the widget."""
        value = self.form.draft.get(self.field.key, self.field.usual)
        self._filling = True
        self.widget.value = value if self.field.kind in ("flag", "choice") else self.field.shown(value)
        self._filling = False

    def show(self) -> None:
        """Marks as they are now."""
        self.mark.set_visibility(self.form.draft.changed(self.field.key, self.field.usual))
        fault = self.form.faults.get(self.field.key)
        if isinstance(self.widget, ValidationElement):
            self.widget.error = fault
        self.fault.text = fault or ""
        self.fault.set_visibility(bool(fault) and not isinstance(self.widget, ValidationElement))


class Turn:
    """The kind of a section."""

    def __init__(self, form: Form, group: Group, label: str) -> None:
        options = {kind: kind or "none" for kind in group.kinds}
        with tag("div", classes="field"):
            select = ui.select(options, label=label or f"Type of {group.title.lower()}", value=group.kind)
            select.props("outlined dense options-dense")
            with tag("div", classes="field-foot"):
                tag("code", group.key + TYPE)
            note = tag("p", self._help(group, group.kind), "note")

        def turned(kind: str) -> None:
            note.text = self._help(group, kind)
            form.turn(group.key, kind)

        select.on_value_change(lambda e: turned(str(e.value)))

    @staticmethod
    def _help(group: Group, kind: str) -> str:
        return dict(zip(group.kinds, group.helps, strict=False)).get(kind, "") or group.help


def settings(form: Form) -> Callable[[str], None]:
    """All sections to open, and a field to find a setting by its words; what is returned searches for words."""
    box = ui.input("Find a setting", placeholder="rank, learning rate, snr", on_change=lambda e: look(e.value or ""))
    box.props("outlined dense clearable debounce=200 type=search").classes("find")
    said = tag("p", "", "note").props("role=status")
    found = tag("div", classes="settings")
    with tag("div", classes="groups") as all_of_them:
        marks = {group.key: _section(form, group) for group in form.groups}

    def look(words: str) -> None:
        hits = search(form.groups, words)
        found.clear()
        all_of_them.set_visibility(not words.strip())
        said.text = "" if not words.strip() else _how_many(len(hits), words)
        with found:
            for field in hits[:FOUND]:
                form.row(field.key)

    def ask(words: str) -> None:
        box.value = words

    def count() -> None:
        for key, mark in marks.items():
            number_of = form.changes(key)
            mark.text = f"{number_of} changed" if number_of else ""

    ui.timer(1.0, count)
    return ask


def _how_many(count: int, words: str) -> str:
    if not count:
        return f"No setting has “{words.strip()}” in its name or help."
    return (
        f"{count} settings" + (f", of which {FOUND} are shown" if count > FOUND else "") if count > 1 else "1 setting"
    )


def _section(form: Form, group: Group) -> Any:
    """A section that draws its fields when it is opened first."""
    inside = "." in group.key
    title = f"{group.key.rpartition('.')[0].capitalize()}: {group.title.lower()}" if inside else group.title
    with ui.expansion().classes("group") as opened:
        opened.props["toggle-aria-label"] = title
        with opened.add_slot("header"), tag("div", classes="group-head"):
            tag("strong", title)
            tag("span", group.help, "note")
            mark = tag("span", "", "changed-count")
        drawn = list[bool]()

        def draw(is_open: bool) -> None:
            if is_open and not drawn:
                drawn.append(True)
                with opened:
                    form.rows_of(group.key)

        opened.on_value_change(lambda e: draw(bool(e.value)))
    return mark


def _word(choice: Any) -> str:
    if isinstance(choice, bool):
        return "on" if choice else "off"
    return number(choice) if isinstance(choice, int | float) else str(choice)
