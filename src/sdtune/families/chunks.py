"""Prompts of any length for text encoders that read few tokens at once: cut into chunks, each read alone, laid end to end.

A chunk is filled to its last token, be it in the middle of a word, and has a start and an end mark of its own. Web UIs (AUTOMATIC1111,
Forge, ComfyUI) read long prompts so, apart from a comma or a new word that they do not part. kohya's scripts cut at the same places
and then leave out the marks between two chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def tokenize(tokenizer: Any, texts: Sequence[str], size: int, count: int) -> Tensor:
    """Token ids of `count` chunks of `size` tokens, marks included: (B, count * size). What is beyond them is cut."""
    rows = tokenizer(list(texts), truncation=False, verbose=False).input_ids
    return torch.tensor([_row(ids, size, count, tokenizer.pad_token_id) for ids in rows])


def _row(ids: Sequence[int], size: int, count: int, pad: int) -> list[int]:
    start, *words, end = ids
    room, row = size - 2, list[int]()
    for k in range(count):
        chunk = [start, *words[k * room : (k + 1) * room], end]
        row += chunk + [pad] * (size - len(chunk))
    return row


def apart(tokens_BL: Tensor, size: int) -> Tensor:
    """The chunks of all prompts as rows of their own, (B * chunks, size)."""
    return tokens_BL.reshape(-1, size)


def together(states_NLD: Tensor, prompts: int) -> Tensor:
    """The states of each prompt's chunks end to end, (prompts, chunks * tokens, width)."""
    return states_NLD.reshape(prompts, -1, states_NLD.shape[-1])


def first(vectors_ND: Tensor, prompts: int) -> Tensor:
    """Of each prompt the vector of its first chunk, (prompts, width): what kohya's scripts and web UIs take for a long prompt, too."""
    return vectors_ND.reshape(prompts, -1, vectors_ND.shape[-1])[:, 0]
