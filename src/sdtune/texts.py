"""Prompts as the model reads them: each encoded once, with weights if they are wanted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar

from sdtune.emphasis import is_plain, parse
from sdtune.errors import ConfigError
from sdtune.model import Cond, Model

K = TypeVar("K")
V = TypeVar("V")
KEPT = 256
"""Prompts of which the states are kept: of SDXL, 0.6 MB each in fp32."""


class Texts:
    """What the text encoders make of prompts, kept for the next picture. It is wrong once the encoders have changed."""

    def __init__(self, model: Model, *, weights: bool = False) -> None:
        """`weights`: whether (word:1.3) and BREAK are read (`emphasis`). Raises ConfigError where the model cannot."""
        if weights and not model.chunkable:
            raise ConfigError(
                f"sample.prompt_weights: {model.family} does not read weights (Stable Diffusion 1, 2 and SDXL do); set it to false"
            )
        self._model, self.weights = model, weights
        self._known = OrderedDict[tuple[str, int], Cond]()
        self._needed = OrderedDict[tuple[str, ...], int]()

    def chunks(self, prompts: Sequence[str]) -> int:
        """So many that nothing of `prompts` is cut."""
        return _kept(self._needed, tuple(prompts), lambda: self._count(prompts))

    def _count(self, prompts: Sequence[str]) -> int:
        if not self.weights:
            return self._model.chunks_for(prompts)
        return max(self._chunks(prompt) for prompt in prompts)

    def _chunks(self, prompt: str) -> int:
        parts = parse(prompt)
        if is_plain(prompt, parts):
            return self._model.chunks_for([prompt])
        return max(self._model.chunks, self._model.weighted_chunks(parts))

    def learn(self, prompts: Sequence[str], negative: str) -> None:
        """Read them now, so that they are known as the model reads them now, whatever it becomes."""
        for prompt in prompts:
            self.encode([prompt, negative], self.chunks([prompt, negative]))

    def encode(self, prompts: Sequence[str], chunks: int) -> Cond:
        """A row for each prompt. Each is encoded alone, so that it does not depend on those beside it."""
        return Cond.cat([self._one(prompt, chunks) for prompt in prompts])

    def _one(self, prompt: str, chunks: int) -> Cond:
        def read() -> Cond:
            parts = parse(prompt) if self.weights else []
            if not self.weights or is_plain(prompt, parts):
                return self._model.encode_prompts([prompt], chunks)
            return self._model.encode_weighted(parts, chunks)

        return _kept(self._known, (prompt, chunks), read)


def _kept(known: OrderedDict[K, V], key: K, make: Callable[[], V]) -> V:
    """What is known under `key`, else made; of the longest unused the oldest goes."""
    if key not in known:
        found = make()
        if len(known) >= KEPT:
            known.popitem(last=False)
        known[key] = found
    known.move_to_end(key)
    return known[key]
