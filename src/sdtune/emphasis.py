"""Weights in prompts, as AUTOMATIC1111's web UI writes them. Imports no torch.

(word) counts 1.1 times as much, ((word)) 1.21 times, [word] 1 / 1.1; (a red word:1.3) what is said. They nest and multiply. `\\(` is
a bracket. A bracket that is not closed reaches to the end, one that was not opened is a letter. BREAK ends a chunk of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sdtune.errors import ConfigError

ROUND, SQUARE = 1.1, 1 / 1.1
_NUMBER = re.compile(r":\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*$")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_ESCAPED = re.compile(r"\\.")
_OTHERS = {
    re.compile(r"\[[^\[\]]*:\s*[\d.]+\s*\]"): "prompt editing ([from:to:when])",
    re.compile(r"\[[^\[\]]*\|[^\[\]]*\]"): "alternating words ([a|b])",
    re.compile(r"\sAND\s"): "prompts joined by AND",
    re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>"): "a file named in the prompt (name LoRAs with --lora FILE:STRENGTH)",
}
"""What that web UI reads, too, and we do not."""


@dataclass
class Piece:
    """A stretch of a prompt that counts the same."""

    text: str
    weight: float = 1.0


def looks_weighted(prompt: str) -> bool:
    """Whether somebody meant a weight: (word:1.3)."""
    return bool(re.search(r"\([^()]+:\s*\d*\.?\d+\s*\)", _ESCAPED.sub("", prompt)))


def weighs(prompt: str) -> bool:
    """Whether a web UI would read anything but letters: brackets that are not escaped, or BREAK."""
    return any(sign in "()[]" and not escaped for sign, escaped in _signs(prompt)) or bool(_BREAK.search(prompt))


def escape(prompt: str) -> str:
    """The letters of `prompt` so that a web UI reads them as letters."""
    return re.sub(r"[\\()\[\]]", r"\\\g<0>", prompt)


def unescape(prompt: str) -> str:
    """The letters that a web UI reads where nothing has a weight: the inverse of `escape`."""
    return "".join(sign for sign, _ in _signs(prompt))


def unsupported(prompt: str) -> str:
    """What of `prompt` web UIs read and we do not; "" if there is nothing of it."""
    bare = _ESCAPED.sub("", prompt)
    found = ((pattern.search(bare), what) for pattern, what in _OTHERS.items())
    return next((f"{at[0].strip()[:40]!r}: {what} is not supported" for at, what in found if at), "")


def parse(prompt: str) -> list[list[Piece]]:
    """The pieces of each part of `prompt`, the parts being what BREAK divides. Raises ConfigError for what is not supported."""
    if what := unsupported(prompt):
        raise ConfigError(
            f"prompt {prompt[:60]!r}: {what}; take it out, or write \\[ for a bracket, or set sample.prompt_weights=false to have all "
            "of it read as letters"
        )
    parts: list[list[Piece]] = [[]]
    for piece in _pieces(prompt):
        for i, text in enumerate(_BREAK.split(piece.text)):
            if i:
                parts.append([])
            if text:
                parts[-1].append(Piece(text, piece.weight))
    return parts


def is_plain(prompt: str, parts: list[list[Piece]]) -> bool:
    """Whether nothing in `prompt` was meant for us: it is read as ever."""
    return parts == [[Piece(prompt)]] or not prompt


def _pieces(prompt: str) -> list[Piece]:
    """Stretches of one weight, in their order, neighbours of the same weight as one."""
    pieces, opened = [Piece("")], list[tuple[str, int]]()
    for sign, escaped in _signs(prompt):
        if escaped or sign not in "()[]":
            pieces[-1].text += sign
        elif sign in "([":
            opened.append((sign, len(pieces)))
            pieces.append(Piece(""))
        elif opened and opened[-1][0] == {")": "(", "]": "["}[sign]:
            _, first = opened.pop()
            said = _NUMBER.search(pieces[-1].text) if sign == ")" else None
            if said:
                pieces[-1].text = pieces[-1].text[: said.start()]
            _weigh(pieces[first:], float(said[1]) if said else ROUND if sign == ")" else SQUARE)
            pieces.append(Piece(""))
        else:
            pieces[-1].text += sign
    for sign, first in opened:
        _weigh(pieces[first:], ROUND if sign == "(" else SQUARE)
    return _joined(pieces)


def _signs(prompt: str) -> Iterator[tuple[str, bool]]:
    """Each letter, and whether a backslash before it made it one."""
    i = 0
    while i < len(prompt):
        escaped = prompt[i] == "\\" and prompt[i + 1 : i + 2] in ("(", ")", "[", "]", "\\")
        i += escaped
        yield prompt[i], escaped
        i += 1


def _weigh(pieces: list[Piece], weight: float) -> None:
    for piece in pieces:
        piece.weight *= weight


def _joined(pieces: list[Piece]) -> list[Piece]:
    out = list[Piece]()
    for piece in pieces:
        if out and out[-1].weight == piece.weight:
            out[-1].text += piece.text
        elif piece.text:
            out.append(piece)
    return out
