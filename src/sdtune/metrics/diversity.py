"""How much the pictures of one prompt differ from seed to seed, and as how many different ones a set counts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sdtune.metrics.vectors import paired_cosine, unit

Array = NDArray[np.float64]


def seed_diversity(pictures_ND: Array, prompt_N: NDArray[np.int64]) -> Array:
    """Mean Euclidean distance between the pictures of each prompt, in order of the prompt numbers; nan where there is one."""
    return np.array([_mean_pairwise(pictures_ND[prompt_N == p]) for p in np.unique(prompt_N)])


def between_prompts(pictures_ND: Array, prompt_N: NDArray[np.int64]) -> float:
    """Mean Euclidean distance between pictures of different prompts: the yardstick of `seed_diversity`."""
    distance_NN = np.linalg.norm(pictures_ND[:, None] - pictures_ND[None], axis=-1)
    return float(distance_NN[prompt_N[:, None] != prompt_N[None]].mean())


def seed_pairs(prompt_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The places of all pairs of pictures of one prompt, prompt by prompt: what a distance of pairs (LPIPS) is to be taken of."""
    found = []
    for prompt in np.unique(prompt_N):
        own = np.flatnonzero(prompt_N == prompt)
        i, j = np.triu_indices(len(own), 1)
        found.append(np.stack([own[i], own[j]]))
    both = np.concatenate(found, 1) if found else np.zeros((2, 0), np.int64)
    return both[0].astype(np.int64), both[1].astype(np.int64)


def by_prompt(values_K: Array, first_K: NDArray[np.int64], prompt_N: NDArray[np.int64]) -> Array:
    """The mean of each prompt's pairs, in order of the prompt numbers; nan for a prompt with one picture.

    `first_K` is the first place of each pair, as `seed_pairs` gives it.
    """
    asked_K = prompt_N[first_K]
    return np.array([values_K[asked_K == p].mean() if (asked_K == p).any() else np.nan for p in np.unique(prompt_N)])


def cosine_diversity(pictures_ND: Array, prompt_N: NDArray[np.int64]) -> Array:
    """The mean 1 - cosine between the pictures of each prompt, in order of the prompt numbers; nan where there is one."""
    i, j = seed_pairs(prompt_N)
    return by_prompt(1 - paired_cosine(pictures_ND[i], pictures_ND[j]), i, prompt_N)


def vendi(pictures_ND: Array, weights_N: Array | None = None) -> float:
    """The Vendi score (arXiv:2210.02410, definition 3.1) with cosines: exp of the entropy of the eigenvalues of K / N.

    1 for N equal pictures, N for N that have nothing in common. Whole weights are as good as so many equal pictures.
    """
    unit_ND = unit(pictures_ND)
    total = float(len(unit_ND))
    if weights_N is not None:
        unit_ND = unit_ND[weights_N > 0] * np.sqrt(weights_N[weights_N > 0])[:, None]
        total = float(weights_N.sum())
    small = (
        unit_ND @ unit_ND.T if len(unit_ND) <= unit_ND.shape[1] else unit_ND.T @ unit_ND
    )  # their eigenvalues are the same
    values = np.linalg.eigvalsh(small / total)
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def _mean_pairwise(x_ND: Array) -> float:
    if len(x_ND) < 2:
        return float("nan")
    distance_NN = np.linalg.norm(x_ND[:, None] - x_ND[None], axis=-1)
    return float(distance_NN.sum() / (len(x_ND) * (len(x_ND) - 1)))
