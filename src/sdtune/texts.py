"""Prompts as the model reads them: each encoded once, with weights if they are wanted."""

from __future__ import annotations

from collections.abc import Sequence

from sdtune.emphasis import is_plain, parse
from sdtune.errors import ConfigError
from sdtune.model import Cond, Model


class Texts:
    """What the text encoders make of prompts, kept for the next picture. It is wrong once the encoders have changed."""

    def __init__(self, model: Model, *, weights: bool = False) -> None:
        """`weights`: whether (word:1.3) and BREAK are read (`emphasis`). Raises ConfigError where the model cannot."""
        if weights and not model.chunkable:
            raise ConfigError(
                f"sample.prompt_weights: {model.family} does not read weights (Stable Diffusion 1, 2 and SDXL do); set it to false"
            )
        self._model, self.weights = model, weights
        self._known: dict[tuple[str, int], Cond] = {}

    def chunks(self, prompts: Sequence[str]) -> int:
        """So many that nothing of `prompts` is cut."""
        if not self.weights:
            return self._model.chunks_for(prompts)
        return max(self._chunks(prompt) for prompt in prompts)

    def _chunks(self, prompt: str) -> int:
        parts = parse(prompt)
        if is_plain(prompt, parts):
            return self._model.chunks_for([prompt])
        return max(self._model.chunks, self._model.weighted_chunks(parts))

    def encode(self, prompts: Sequence[str], chunks: int) -> Cond:
        """A row for each prompt. Each is encoded alone, so that it does not depend on those beside it."""
        return Cond.cat([self._one(prompt, chunks) for prompt in prompts])

    def _one(self, prompt: str, chunks: int) -> Cond:
        if (prompt, chunks) not in self._known:
            parts = parse(prompt) if self.weights else []
            plain = not self.weights or is_plain(prompt, parts)
            self._known[prompt, chunks] = (
                self._model.encode_prompts([prompt], chunks) if plain else self._model.encode_weighted(parts, chunks)
            )
        return self._known[prompt, chunks]
