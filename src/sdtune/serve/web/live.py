"""Parts of a page that follow what they show: only what has changed is touched, so that nobody loses the focus or a selection."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from nicegui import ui

V = TypeVar("V")
NOTHING = object()


class Block(Generic[V]):
    """A part that is built anew when its value is another one."""

    def __init__(self, parent: ui.element, build: Callable[[V], object]) -> None:
        self._parent, self._build, self._shown = parent, build, NOTHING

    def show(self, value: V) -> None:
        if value != self._shown:
            self._shown = value
            self._parent.clear()
            with self._parent:
                self._build(value)


class Rows(Generic[V]):
    """Parts with a key each. `make` builds one inside `parent`, and gives its element and a function that shows a value in it."""

    def __init__(self, parent: ui.element, make: Callable[[V], tuple[ui.element, Callable[[V], object]]]) -> None:
        self._parent, self._make = parent, make
        self._rows = dict[Hashable, tuple[ui.element, Callable[[V], object], V]]()

    def show(self, items: Sequence[tuple[Hashable, V]]) -> None:
        keys = [key for key, _ in items]
        for key in [key for key in self._rows if key not in keys]:
            self._rows.pop(key)[0].delete()
        for place, (key, value) in enumerate(items):
            if key not in self._rows:
                with self._parent:
                    self._rows[key] = (*self._make(value), value)
            element, update, shown = self._rows[key]
            if value != shown:
                update(value)
                self._rows[key] = element, update, value
            if element.parent_slot and element.parent_slot.children.index(element) != place:
                element.move(target_index=place)
