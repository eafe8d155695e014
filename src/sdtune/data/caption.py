"""What becomes of a caption between its file and the text encoder. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from sdtune.data.chance import uniform
from sdtune.data.config import DataConfig
from sdtune.data.wildcards import choose

KEEP, TOGETHER = "|||", ";;;"
"""Marks in captions of tags, kohya's usual ones: the tags before it keep their place; the tags around it stay together."""


def decorate(caption: str, config: DataConfig) -> str:
    """The caption between the prefix and suffix of `config`."""
    return between(caption, config.caption_prefix, config.caption_suffix)


def every_variant(captions: Sequence[str], config: DataConfig) -> tuple[str, ...]:
    """The variants of all `captions`, equally many of each, so that each is drawn as often as the others. No captions: ("",)."""
    of_each = [variants(caption, config) for caption in captions or ("",)]
    most = max(map(len, of_each))
    return tuple(own[n % len(own)] for own in of_each for n in range(most))


def variants(caption: str, config: DataConfig) -> tuple[str, ...]:
    """The different texts that `caption` is shown as, between prefix and suffix; at most `config.caption_variants`.

    The first leaves nothing to chance: tags in their own order, first choices. The others follow from a hash of the caption.
    """
    if not config.varies_captions:
        return (decorate(caption, config),)
    keys = (None, *(f"{n}/{caption}" for n in range(1, config.caption_variants)))
    return tuple(dict.fromkeys(_variant(caption, config, key) for key in keys))


def _variant(caption: str, config: DataConfig, key: str | None) -> str:
    """One variant, drawn by a hash of `key`. None: the first."""
    prefix, suffix = config.caption_prefix, config.caption_suffix
    if config.wildcards:
        prefix, caption, suffix = (
            choose(text, None if key is None else f"{place}/{key}")
            for place, text in (("prefix", prefix), ("caption", caption), ("suffix", suffix))
        )
    if config.shuffle_tags or config.tag_dropout:
        caption = _tags(caption, config, key)
    return between(caption, prefix, suffix)


def _tags(caption: str, config: DataConfig, key: str | None) -> str:
    """The tags of a caption, of those that are not kept some left out and the others shuffled; without the marks."""
    kept, loose, last = _places(caption, config.keep_tags)
    if key is not None:
        loose = [tag for i, tag in enumerate(loose) if uniform(f"drop/{i}/{key}") >= config.tag_dropout]
    if key is not None and config.shuffle_tags:
        order = sorted(range(len(loose)), key=lambda i: uniform(f"shuffle/{i}/{key}"))
        loose = [loose[i] for i in order]
    return ", ".join(part.strip() for tag in (*kept, *loose, *last) for part in tag.split(TOGETHER) if part.strip())


def _places(caption: str, keep: int) -> tuple[list[str], list[str], list[str]]:
    """Tags that stay at the beginning, those that may move, and those that stay at the end."""
    first, *rest = caption.split(KEEP)
    if not rest:
        tags = _split(first)
        return tags[:keep], tags[keep:], []
    return _split(first), _split(rest[0]), [tag for part in rest[1:] for tag in _split(part)]


def _split(tags: str) -> list[str]:
    return [tag.strip() for tag in tags.split(",") if tag.strip()]


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
