"""How a prompt is read: the tokens that the text encoders see, the words that these are pieces of, and what is cut off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from typing import TYPE_CHECKING, Literal

from sdtune.words import tokens_of

if TYPE_CHECKING:
    from sdtune.model import Model

Kind = Literal["start", "piece", "end", "padding"]


@dataclass(frozen=True)
class Token:
    """One token of a prompt as a text encoder reads it."""

    position: int
    """Its place among the encoder's states, over all chunks."""
    chunk: int
    id: int
    text: str
    kind: Kind
    word: int | None = None
    """Which word of the prompt it is a piece of; None for marks and padding."""


@dataclass(frozen=True)
class Word:
    text: str
    positions: tuple[int, ...]
    """Of its tokens; several where the tokenizer knows no token for the whole word."""


@dataclass(frozen=True)
class Reading:
    """A prompt as the first text encoder reads it."""

    tokens: tuple[Token, ...]
    words: tuple[Word, ...]
    cut: tuple[str, ...]
    """Words that are not read any more, the last of them perhaps in part."""
    chunks: int
    encoders: int
    """Text encoders that read the prompt, each with a tokenizer of its own."""

    def positions(self, *kinds: Kind) -> list[int]:
        return [token.position for token in self.tokens if token.kind in kinds]


def read(model: Model, prompt: str, chunks: int) -> Reading:
    """How `model` reads `prompt` in so many chunks."""
    ids = model.tokenize([prompt], chunks)[0, 0].tolist()
    known = model.new_words
    tokenizer = known.tokenizers[0] if known else model.tokenizers[0]
    text = known.spell([prompt])[0] if known else prompt
    size = len(ids) // chunks
    kinds = list(_kinds(ids, size, tokenizer.eos_token_id))
    pieces = tokenizer.convert_ids_to_tokens(ids)
    whole = tokenizer(text, truncation=False, verbose=False).input_ids
    left = tokenizer.convert_ids_to_tokens(whole[kinds.count("piece") + 1 : -1])
    new = {token: word for word, count in known.words.items() for token in tokens_of(word, count)} if known else {}
    words, of = _words(pieces, kinds, new)
    tokens = tuple(
        Token(i, i // size, number, spelled(piece.removesuffix(END)), kind, of.get(i))
        for i, (number, piece, kind) in enumerate(zip(ids, pieces, kinds, strict=True))
    )
    cut = tuple(word.text for word in _words(left, ["piece"] * len(left), new)[0])
    return Reading(tokens, words, cut, chunks, len(model.text_encoders))


END = "</w>"
"""At the end of CLIP's tokens that end a word."""


def _kinds(ids: Sequence[int], size: int, end: int) -> Iterator[Kind]:
    """Of each token. Padding may have the id of the end mark, and does not come before it."""
    for first in range(0, len(ids), size):
        chunk = ids[first : first + size]
        last = chunk.index(end, 1)
        yield "start"
        yield from repeat("piece", last - 1)
        yield "end"
        yield from repeat("padding", size - last - 1)


def _words(
    pieces: Sequence[str], kinds: Sequence[Kind], new: Mapping[str, str]
) -> tuple[tuple[Word, ...], dict[int, int]]:
    """Pieces put together to words, across chunks, too; and the word of each position. `new`: what tokens of new words stand for."""
    found, of = list[Word](), dict[int, int]()
    text, positions = "", list[int]()
    for i, (piece, kind) in enumerate(zip(pieces, kinds, strict=True)):
        if kind != "piece":
            continue
        of[i] = len(found)
        if piece in new and piece != new[piece] and found and found[-1].text == new[piece]:  # its second token or later
            found[-1] = Word(new[piece], (*found[-1].positions, i))
            of[i] -= 1
            continue
        text, positions = text + piece.removesuffix(END), [*positions, i]
        if piece.endswith(END) or piece in new:
            found.append(Word(new.get(piece) or spelled(text), tuple(positions)))
            text, positions = "", []
    if positions:
        found.append(Word(spelled(text), tuple(positions)))
    return tuple(found), of


def spelled(piece: str) -> str:
    """A token as text. Byte-level BPE writes each byte as a character; what is no whole character is shown as bytes."""
    table = _bytes()
    if not all(sign in table for sign in piece):
        return piece
    return bytes(table[sign] for sign in piece).decode(errors="backslashreplace")


@cache
def _bytes() -> dict[str, int]:
    """What bytes are written as: printable ones as they are, the others as the characters from 256 on (GPT-2, and so CLIP)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
