"""What is on a model, as something that has a strength and can be taken off."""

from __future__ import annotations

from typing import Protocol

from sdtune.methods import adapters
from sdtune.methods.word_layer import InstalledWords
from sdtune.model import Model


class Change(Protocol):
    def set_strength(self, strength: float) -> None:
        """0: the base, byte for byte; 1: as trained."""

    def close(self) -> None:
        """Take it off."""


class InstalledAdapters:
    """The adapters on a model."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def set_strength(self, strength: float) -> None:
        adapters.set_strength(self._model.parts, strength)

    def close(self) -> None:
        adapters.detach(self._model.parts)


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
