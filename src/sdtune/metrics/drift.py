"""Forgetting: how far pictures of unrelated prompts have moved, each from the base's own picture of the same prompt and seed.

Distance alone does not say whether it became worse; take it with CLIP scores and preference on the same prompts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sdtune.metrics.diversity import cosine_diversity
from sdtune.metrics.vectors import paired_cosine

Array = NDArray[np.float64]


def drift(tuned_ND: Array, base_ND: Array) -> Array:
    """1 - cosine of each pair, (N,): 0 where nothing has moved. The yardstick is `between_seeds` of the base."""
    return 1 - paired_cosine(tuned_ND, base_ND)


def between_seeds(base_ND: Array, prompt_N: NDArray[np.int64]) -> float:
    """The mean 1 - cosine of two seeds of one prompt, drawn by the base: a picture that has drifted so far is another picture.

    nan where no prompt has two seeds.
    """
    means = cosine_diversity(base_ND, prompt_N)
    means = means[np.isfinite(means)]
    return float(means.mean()) if len(means) else float("nan")
