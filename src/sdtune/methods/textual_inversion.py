"""Textual inversion, arXiv:2208.01618: nothing but the vectors of a new word is trained. The layers are in word_layer.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from sdtune.errors import ConfigError
from sdtune.model import Teacher
from sdtune.schema import Section

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from torch import Tensor, nn

    from sdtune.methods.word_layer import InstalledWords
    from sdtune.model import Model


@dataclass(frozen=True, kw_only=True)
class Words(Section):
    """What the methods share that can learn new words."""

    tokens: dict[str, str] = field(default_factory=dict)
    """New words whose meaning is learned, and what each begins as: { "<sks>" = "dog" }; "" begins at random. Write them in the captions
    (data.caption_prefix). With adapters this is pivotal tuning; the vectors want a higher rate: optimizer.lr_scale={"*.words.*" = 10}."""
    token_vectors: Annotated[int, Field(gt=0)] = 1
    """Vectors of each new word: 1 to 4 for a subject, more for a style; each takes a place of the prompt's 75."""

    def _learn(self, model: Model, seed: int) -> dict[str, nn.Parameter]:
        """Put the new words on `model`; returns their vectors by name. Raises ConfigError."""
        from sdtune.methods import word_layer

        if not self.tokens:
            return {}
        first = word_layer.starts(model, self.tokens, self.token_vectors, seed)
        return word_layer.attach(model, dict.fromkeys(self.tokens, self.token_vectors), first)

    def _forget(self, model: Model) -> None:
        from sdtune.methods import word_layer

        if self.tokens:
            word_layer.detach(model)

    def _write_words(self, model: Model, weights: Mapping[str, Tensor], folder: Path, about: Mapping[str, Any]) -> None:
        from sdtune.methods.word_file import FOLDER, write_words

        if self.tokens:
            write_words(folder / FOLDER, model, weights, about)


@dataclass(frozen=True, kw_only=True)
class TextualInversion(Words):
    """Learn what a new word means, and change nothing else, arXiv:2208.01618. A few kilobytes that every tool loads."""

    type: Literal["textual-inversion"] = "textual-inversion"

    lighter: ClassVar[str] = "method.token_vectors=1"
    trains_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ConfigError('method.tokens: name the new word and what it begins as, such as { "<sks>" = "dog" }')

    def attach(self, model: Model, *, seed: int) -> dict[str, nn.Parameter]:
        """Teach `model` the words and freeze the rest; returns their vectors by name. Raises ConfigError for words that it knows."""
        for part in model.parts.values():
            part.requires_grad_(False)
        return self._learn(model, seed)

    def apply(self, model: Model, weights: Mapping[str, Tensor], *, seed: int) -> InstalledWords:
        """Put trained vectors on a fresh base. Raises KeyError or RuntimeError, the base as it was, if they do not fit."""
        import torch

        from sdtune.methods.word_layer import InstalledWords

        parameters = self._learn(model, seed)
        try:
            with torch.no_grad():
                for name, p in parameters.items():
                    p.copy_(weights[name])
        except (KeyError, RuntimeError):
            self._forget(model)
            raise
        return InstalledWords(model)

    def teacher(self, model: Model) -> Teacher:
        """Refused: the base does not know the words."""
        raise ConfigError(
            "objective.type: there is no teacher for new words; use the usual loss with textual inversion"
        )

    def detach(self, model: Model) -> None:
        """Forget the words: the model is what it was."""
        self._forget(model)

    def export(
        self, model: Model, weights: Mapping[str, Tensor], folder: Path, name: str, about: Mapping[str, Any]
    ) -> Path:
        """Write `folder/embeddings/<word>.safetensors` for each word."""
        self._write_words(model, weights, folder, about)
        return folder
