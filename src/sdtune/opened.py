"""A model that pictures are drawn with, with what was put on it: a run's result, further adapters, their strengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sdtune import tuned
from sdtune.config import SampleConfig
from sdtune.methods.installed import Change
from sdtune.model import Model
from sdtune.texts import Texts
from sdtune.tuned import Named, Tuned


class Opened:
    """`suit` makes the model what a config asks for, and changes no more than it must."""

    def __init__(
        self, model: Model, own: Tuned | None = None, say: Callable[[str], object] = lambda line: None
    ) -> None:
        """`own`: the run or adapter that was named first, whose strength is `sample.strength`. `say` gets lines worth telling."""
        self.model, self._own, self._say = model, own, say
        self._strength: float | None = None
        self._named: tuple[str, ...] = ()
        self._added: list[Change] = []
        self._texts: dict[bool, Texts] = {}
        self._compiled = False
        self.records: list[dict[str, Any]] = []
        """Of the further adapters, for pictures."""

    def suit(self, config: SampleConfig) -> Texts:
        """Set strengths and adapters; returns what the prompts have become so far. Raises ConfigError and ModelError."""
        if (config.strength, config.adapters) != (self._strength, self._named):
            self._texts.clear()
            self._change(config)
        if config.unload and self.model.device.type != "cpu":
            self.model.unload(())
        if config.compile and not self._compiled:
            self.model.denoiser.compile()
            self._compiled = True
        if config.prompt_weights not in self._texts:
            self._texts[config.prompt_weights] = Texts(self.model, weights=config.prompt_weights)
        return self._texts[config.prompt_weights]

    def close(self) -> None:
        """Take off what was put on; the model is the base's again."""
        self._take_off_added()
        if self._own:
            self._own.close()

    def _take_off_added(self) -> None:
        while self._added:  # the last first: each put on what was there
            self._added.pop().close()

    def _change(self, config: SampleConfig) -> None:
        adapters = [Named.read(text) for text in config.adapters]
        records = [named.record for named in adapters]
        self._strength = None  # until all is as asked: what fails halfway is no state to go back to
        self._take_off_added()
        if self._own:
            self._own.set_strength(config.strength)
        for named in adapters:
            self._added.append(tuned.add(self.model, named))
            base = tuned.base_of(named)
            if base and base != self.model.label:
                self._say(
                    f"note: {named.path}: was trained on {base}, this is {self.model.label}; it fits, and may do less"
                )
        self._strength, self._named, self.records = config.strength, config.adapters, records
