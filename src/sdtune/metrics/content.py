"""Does a picture show what was asked? Scores of unit-length picture embeddings against unit-length prompt embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def strip_shared(prompts: Sequence[str]) -> list[str]:
    """The prompts without the words that all distinct ones begin or end with, so that style words do not matter.

    Fewer than three distinct prompts are left as they are: what they share may be the drawing itself.
    """
    distinct = [p.split() for p in dict.fromkeys(prompts)]
    if len(distinct) < 3:
        return list(prompts)
    room = min(map(len, distinct)) - 1
    head = _shared(distinct, room)
    tail = _shared([p[::-1] for p in distinct], room - head)
    return [" ".join(words[head : len(words) - tail]).rstrip(",;: ") for words in map(str.split, prompts)]


def _shared(rows: list[list[str]], room: int) -> int:
    """How many first words, at most `room`, are the same in all rows."""
    same = 0
    while same < room and len({row[same].lower() for row in rows}) == 1:
        same += 1
    return same


def prompt_cosine(pictures_NE: Array, prompts_PE: Array, asked_N: NDArray[np.int64]) -> Array:
    """Cosine of each picture and its own prompt, (N,). A CLIP score (arXiv:2104.08718) without its factor."""
    return np.asarray((pictures_NE * prompts_PE[asked_N]).sum(1))


def margin(pictures_NE: Array, prompts_PE: Array, asked_N: NDArray[np.int64]) -> Array:
    """How much nearer (cosine) a picture is to its own prompt than to the mean of the others, (N,); 0 for a picture of nothing of them.

    Unlike the cosine itself this has a zero: it is what a picture shows of its prompt in particular. Needs two prompts.
    """
    scores_NP: Array = pictures_NE @ prompts_PE.T
    own_N = scores_NP[np.arange(len(asked_N)), asked_N]
    return np.asarray(own_N - (scores_NP.sum(1) - own_N) / (prompts_PE.shape[0] - 1))


def found_first(pictures_NE: Array, prompts_PE: Array, asked_N: NDArray[np.int64]) -> Array:
    """1 where a picture's own prompt is nearer than every other of the P prompts, else 0; (N,). Chance is 1 / P. A tie is no find."""
    scores_NP: Array = pictures_NE @ prompts_PE.T
    own_N = scores_NP[np.arange(len(asked_N)), asked_N].copy()
    scores_NP[np.arange(len(asked_N)), asked_N] = -np.inf
    return np.asarray(own_N > scores_NP.max(1, initial=-np.inf), np.float64)
