"""CLIP score (arXiv:2104.08718): does a picture show its prompt? And CLIP-I: does it look like given pictures?

Values of different CLIPs do not compare. From about 0.30 on a higher cosine no longer means a better picture to people.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sdtune.metrics.vectors import paired_cosine

Array = NDArray[np.float64]

FACTOR = 100.0
"""The paper's own is 2.5; the tools that are used report 100 * max(cos, 0)."""


def clip_score(pictures_NE: Array, prompts_NE: Array) -> Array:
    """100 max(cos, 0) of each picture and its prompt, (N,)."""
    return FACTOR * paired_cosine(pictures_NE, prompts_NE).clip(0)
