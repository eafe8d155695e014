"""How much the pictures of one prompt differ from seed to seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def seed_diversity(pictures_ND: Array, prompt_N: NDArray[np.int64]) -> Array:
    """Mean Euclidean distance between the pictures of each prompt, in order of the prompt numbers; nan where there is one."""
    return np.array([_mean_pairwise(pictures_ND[prompt_N == p]) for p in np.unique(prompt_N)])


def between_prompts(pictures_ND: Array, prompt_N: NDArray[np.int64]) -> float:
    """Mean Euclidean distance between pictures of different prompts: the yardstick of `seed_diversity`."""
    distance_NN = np.linalg.norm(pictures_ND[:, None] - pictures_ND[None], axis=-1)
    return float(distance_NN[prompt_N[:, None] != prompt_N[None]].mean())


def _mean_pairwise(x_ND: Array) -> float:
    if len(x_ND) < 2:
        return float("nan")
    distance_NN = np.linalg.norm(x_ND[:, None] - x_ND[None], axis=-1)
    return float(distance_NN.sum() / (len(x_ND) * (len(x_ND) - 1)))
