"""What becomes of a caption between its file and the text encoder. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from sdtune.data.config import DataConfig


def decorate(caption: str, config: DataConfig) -> str:
    """The caption between the prefix and suffix of `config`."""
    return between(caption, config.caption_prefix, config.caption_suffix)


def between(caption: str, prefix: str, suffix: str) -> str:
    """Prefix, caption and suffix, one blank between them (none before a suffix that starts with punctuation)."""
    prefix, suffix = prefix.strip(), suffix.strip()
    text = " ".join(part for part in (prefix, caption.strip()) if part)
    return text + ("" if not text or not suffix or suffix[0] in ",.;:!?" else " ") + suffix


def cut_off(caption: str, count: Callable[[Sequence[str]], list[int]], max_tokens: int) -> str:
    """The end of `caption` that a text encoder of `max_tokens` does not read, from the first word that is cut.

    `count` gives the number of tokens of each text, start and end marks included.
    """
    starts = [m.start() for m in re.finditer(r"\w+|[^\w\s]", caption)] + [len(caption)]
    fits, beyond = 0, len(starts)  # so many words fit; so many do not
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        if count([caption[: starts[middle]].rstrip()])[0] <= max_tokens:
            fits = middle
        else:
            beyond = middle
    return caption[starts[fits] :]
