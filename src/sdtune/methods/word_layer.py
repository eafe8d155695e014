"""Textual inversion, arXiv:2208.01618: vectors for new words in text encoders, on a model and off again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdtune.errors import ConfigError
from sdtune.model import Model
from sdtune.words import NewWords


class WordEmbedding(nn.Module):
    """A frozen token embedding and the rows of new words, which alone are trained.

    The text encoder never sees the new ids: CLIP takes its prompt's vector from the place of the largest id, which has to stay
    the end mark. They are noted before it runs, and an ordinary id stands in their place.
    """

    def __init__(self, base: nn.Module, first: int, vectors_ND: Tensor) -> None:
        super().__init__()
        self.base, self.first = base, first
        self.vectors = nn.Parameter(vectors_ND.clone())
        self._rows_BL: Tensor | None = None
        self._hook: Any = None

    @property
    def weight(self) -> Tensor:
        """Of the words that were known before."""
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        return weight

    def watch(self, encoder: nn.Module) -> None:
        """Note the ids that `encoder` is asked for."""
        self._hook = encoder.register_forward_pre_hook(self._note, with_kwargs=True)

    def leave(self) -> None:
        self._hook.remove()

    def _note(self, encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ids_BL, *rest = args
        self._rows_BL = ids_BL - self.first
        return (ids_BL.masked_fill(self._new(), 0), *rest), kwargs

    def _new(self) -> Tensor:
        assert self._rows_BL is not None
        return (self._rows_BL >= 0) & (self._rows_BL < len(self.vectors))

    def forward(self, ids_BL: Tensor) -> Tensor:
        new_BL = self._new()
        assert self._rows_BL is not None
        own_BLD = self.vectors[self._rows_BL.clamp(0, len(self.vectors) - 1)]
        return torch.where(new_BL[..., None], own_BLD, self.base(ids_BL))


def attach(model: Model, words: Mapping[str, int], starts: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Teach `model` the `words` (tokens of each); `starts`: by part, the first vectors of all tokens, (tokens, width).

    Returns the vectors by name. Raises ConfigError for a word that it knows.
    """
    if model.new_words is not None or any(embeddings_of(model)):
        raise ValueError("there are new words on this model already; detach them first")
    model.new_words = NewWords(model.tokenizers, words)
    names = {}
    for part, first in zip(model.word_parts, model.new_words.firsts, strict=False):
        encoder: Any = model.parts[part]
        base = encoder.get_input_embeddings()
        layer = WordEmbedding(base, first, starts[part].to(base.weight))
        layer.watch(encoder)
        encoder.set_input_embeddings(layer)
        names[f"{part}.words.vectors"] = layer.vectors
    return names


def embeddings_of(model: Model) -> Iterator[tuple[str, WordEmbedding]]:
    """The embeddings with new words, by the part that they are in."""
    for part in model.word_parts:
        layer = model.parts[part].get_input_embeddings()  # type: ignore[operator]
        if isinstance(layer, WordEmbedding):
            yield part, layer


def detach(model: Model) -> None:
    """Put the embeddings back, and forget the words."""
    for part, layer in list(embeddings_of(model)):
        layer.leave()
        model.parts[part].set_input_embeddings(layer.base)  # type: ignore[operator]
    model.new_words = None


class MoreWords:
    """New words beside those that a model has learned before."""

    def __init__(self, model: Model, words: Mapping[str, int], vectors: Mapping[str, Tensor]) -> None:
        """`vectors`: by part, those of all tokens of `words`. Raises ConfigError for a word that the model knows."""
        self._model, self._before = model, _learned(model)
        known, rows = self._before
        detach(model)
        try:
            self._attach({**known, **words}, {p: torch.cat([*rows.get(p, ()), v]) for p, v in vectors.items()})
        except ConfigError:
            self.close()
            raise

    def _attach(self, words: Mapping[str, int], vectors: Mapping[str, Tensor]) -> None:
        attach(self._model, words, vectors)
        for _, layer in embeddings_of(self._model):
            layer.requires_grad_(False)

    def set_strength(self, strength: float) -> None:
        """A word is known or not, nothing between: those of strength 0 are not taken in at all."""

    def close(self) -> None:
        """The model knows what it knew before."""
        detach(self._model)
        words, rows = self._before
        if words:
            self._attach(words, {part: torch.cat(found) for part, found in rows.items()})


def _learned(model: Model) -> tuple[dict[str, int], dict[str, list[Tensor]]]:
    """The words that a model has learned and reads, and their vectors by part."""
    if model.new_words is None:
        return {}, {}
    return dict(model.new_words.words), {part: [layer.vectors.detach()] for part, layer in embeddings_of(model)}


def starts(model: Model, words: Mapping[str, str], count: int, seed: int) -> dict[str, Tensor]:
    """First vectors, by part, for `count` tokens of each of `words` (word -> what it begins as): (tokens, width).

    The vectors of the words that it begins as, one after the other, again from the first when they are used up; without any,
    random ones as the others are spread.
    """
    rng = torch.Generator().manual_seed(seed)
    out = {}
    for part, tokenizer in zip(model.word_parts, model.tokenizers, strict=False):
        table_VD: Tensor = model.parts[part].get_input_embeddings().weight.detach().float().cpu()  # type: ignore[operator]
        rows = []
        for text in words.values():
            ids = tokenizer(text, add_special_tokens=False).input_ids if text else []
            noise_ND = torch.randn(count, table_VD.shape[1], generator=rng)
            spread_ND = table_VD.mean(0) + table_VD.std(0) * noise_ND
            rows += [table_VD[ids[i % len(ids)]] if ids else spread_ND[i] for i in range(count)]
        out[part] = torch.stack(rows)
    return out


class InstalledWords:
    """New words on a model: at strength 0 it reads them letter by letter, as the base does; else they have their vectors."""

    def __init__(self, model: Model) -> None:
        self._model, self._words = model, model.new_words

    def set_strength(self, strength: float) -> None:
        self._model.new_words = self._words if strength else None

    def close(self) -> None:
        detach(self._model)
