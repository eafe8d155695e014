"""New words in a model's vocabulary. Imports no torch."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sdtune.errors import ConfigError


class NewWords:
    """Words that tokenizers have learned beside those that they came with; each stands for one or several tokens."""

    def __init__(self, tokenizers: Sequence[Any], words: Mapping[str, int]) -> None:
        """`words`: how many tokens each takes. The given tokenizers stay as they are. Raises ConfigError for a word that is known."""
        for word in words:
            _check(word, tokenizers)
        self.words = dict(words)
        self.tokens = [token for word, count in words.items() for token in tokens_of(word, count)]
        self.tokenizers = tuple(copy.deepcopy(tokenizer) for tokenizer in tokenizers)
        self.firsts = [len(tokenizer) for tokenizer in self.tokenizers]
        """The id of the first new token in each; the others follow."""
        for tokenizer in self.tokenizers:
            tokenizer.add_tokens(self.tokens)

    def spell(self, prompts: Sequence[str]) -> list[str]:
        """`prompts` with every new word as all of its tokens."""
        return [self._spelled(prompt) for prompt in prompts]

    def _spelled(self, prompt: str) -> str:
        for word, count in self.words.items():
            text = " ".join(tokens_of(word, count))
            prompt = re.sub(rf"{re.escape(word)}(?!_\d)", lambda _, text=text: text, prompt, flags=re.IGNORECASE)  # type: ignore[misc]
        return prompt


def tokens_of(word: str, count: int) -> list[str]:
    """The names of a word's tokens, as diffusers has them."""
    return [word, *(f"{word}_{i}" for i in range(1, count))]


def _check(word: str, tokenizers: Sequence[Any]) -> None:
    if not word or re.search(r"\s", word):
        raise ConfigError(f"method.tokens: {word!r} is no single word; write one such as <sks>")
    for tokenizer in tokenizers:
        if len(tokenizer(word, add_special_tokens=False).input_ids) == 1:
            raise ConfigError(
                f"method.tokens: {word!r} is a word that the model knows; choose another, such as <{word}-1>"
            )
