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


def weighted(
    tokenizer: Any, parts: Sequence[Sequence[tuple[int, float]]], size: int, count: int
) -> list[tuple[int, float]]:
    """The ids of `count` chunks with what each counts, (count * size); each part begins a chunk. Marks and filling count 1."""
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    room, row = size - 2, list[tuple[int, float]]()
    for part in parts:
        for k in range(0, max(1, len(part)), room):
            chunk = [(start, 1.0), *part[k : k + room], (end, 1.0)]
            row += chunk + [(tokenizer.pad_token_id, 1.0)] * (size - len(chunk))
    while len(row) < count * size:
        row += [(start, 1.0), (end, 1.0), *[(tokenizer.pad_token_id, 1.0)] * (size - 2)]
    return row[: count * size]


def weigh(states_1LD: Tensor, weights_L: Tensor, size: int) -> Tensor:
    """States times what their tokens count, then each chunk brought back to the mean that it had: AUTOMATIC1111's "original" emphasis.

    A mean near zero says nothing of the states' size (it is so in SDXL's second encoder): where the two differ by more than a
    factor of two the states stay as they are multiplied.
    """
    chunks_NLD = states_1LD.view(-1, size, states_1LD.shape[2])
    weights_NL1 = weights_L.view(-1, size, 1)
    weighed_NLD = chunks_NLD * weights_NL1
    ratio_N11 = (chunks_NLD.mean((1, 2)) / weighed_NLD.mean((1, 2))).view(-1, 1, 1)
    kept_N11 = torch.where((ratio_N11 > 0.5) & (ratio_N11 < 2), ratio_N11, torch.ones_like(ratio_N11))
    same_N11 = (weights_NL1 == 1).all(1, keepdim=True)
    return torch.where(same_N11, chunks_NLD, weighed_NLD * kept_N11).view_as(states_1LD)


def apart(tokens_BL: Tensor, size: int) -> Tensor:
    """The chunks of all prompts as rows of their own, (B * chunks, size)."""
    return tokens_BL.reshape(-1, size)


def together(states_NLD: Tensor, prompts: int) -> Tensor:
    """The states of each prompt's chunks end to end, (prompts, chunks * tokens, width)."""
    return states_NLD.reshape(prompts, -1, states_NLD.shape[-1])


def first(vectors_ND: Tensor, prompts: int) -> Tensor:
    """Of each prompt the vector of its first chunk, (prompts, width): what kohya's scripts and web UIs take for a long prompt, too."""
    return vectors_ND.reshape(prompts, -1, vectors_ND.shape[-1])[:, 0]
