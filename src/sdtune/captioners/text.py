"""What becomes of a caption between the model and the file. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sdtune.captioners.config import CaptionConfig
from sdtune.data.caption import between


def finish(made: str, config: CaptionConfig, *, tags: bool) -> str:
    """The caption in one line, without the phrases of the blacklist, between prefix and suffix; "" if nothing is left."""
    text = without_tags(made, config.blacklist) if tags else without_phrases(made, config.blacklist)
    return between(text, _line(config.prefix), _line(config.suffix)) if text else ""


def without_phrases(text: str, phrases: Sequence[str]) -> str:
    """`text` in one line, without the phrases: whole words, in any case, and what punctuation they leave alone."""
    text = _line(text)
    before = text
    for phrase in sorted((_line(p) for p in phrases), key=len, reverse=True):
        if phrase:
            words = r"\s+".join(re.escape(word) for word in phrase.split())
            text = re.sub(rf"(?<!\w){words}(?!\w)", " ", text, flags=re.IGNORECASE)
    return text if text == before else _tidy(text)


def without_tags(text: str, tags: Sequence[str]) -> str:
    unwanted = {_tag(tag) for tag in tags}
    return ", ".join(tag for tag in split_tags(text) if _tag(tag) not in unwanted)


def split_tags(text: str) -> list[str]:
    return [tag for part in text.split(",") if (tag := _line(part))]


def added(caption: str, made: str, *, tags: bool) -> str:
    """`caption` and behind it `made`, or as much of it as `caption` does not say already."""
    if tags:
        known = {_tag(tag) for tag in split_tags(caption)}
        made = ", ".join(tag for tag in split_tags(made) if _tag(tag) not in known)
    if not made or made.casefold() in caption.casefold():
        return caption
    return caption + (" " if caption.endswith((".", ",", ";", ":", "!", "?")) else ", ") + made


def _line(text: str) -> str:
    return " ".join(text.split())


def _tag(text: str) -> str:
    return _line(text.replace("_", " ")).casefold()


def _tidy(text: str) -> str:
    """Without the blanks and commas that stood around what is gone."""
    text = re.sub(r"\s+([,.;:!?])", r"\1", _line(text))
    text = re.sub(r"[,;:]\s*(?=[,.;:!?])", "", text)
    return text.strip(" ,;:").lstrip(".!? ")
