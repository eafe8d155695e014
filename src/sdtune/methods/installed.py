"""What is on a model, as something that has a strength and can be taken off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from sdtune.methods import adapters, together
from sdtune.methods.adapters import Adapter
from sdtune.methods.word_layer import InstalledWords
from sdtune.model import Model


class Change(Protocol):
    def set_strength(self, strength: float) -> None:
        """0: the base, byte for byte; 1: as trained."""

    def close(self) -> None:
        """Take it off."""


class InstalledAdapters:
    """Adapters on a model: all that are there, or those of one file."""

    def __init__(self, model: Model, made: Mapping[str, Adapter] | None = None) -> None:
        self._model, self._made = model, dict(adapters.adapters_of(model.parts)) if made is None else made

    def set_strength(self, strength: float) -> None:
        for adapter in self._made.values():
            adapter.strength = strength

    def close(self) -> None:
        together.take_off(self._model.parts, self._made)


class Several:
    """Changes that go together."""

    def __init__(self, *changes: Change) -> None:
        self._changes = changes

    def set_strength(self, strength: float) -> None:
        for change in self._changes:
            change.set_strength(strength)

    def close(self) -> None:
        for change in self._changes:
            change.close()


def installed(model: Model) -> Several:
    """The adapters and the new words on `model`."""
    return Several(InstalledAdapters(model), *([InstalledWords(model)] if model.new_words else []))
