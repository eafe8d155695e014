"""Likeness to a subject, as DreamBooth measured it (arXiv:2208.12242, section 4.1): cosines of embeddings, DINO's or CLIP's.

A value says little alone. `among` real pictures of the subject is the ceiling, the base model's pictures the floor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sdtune.metrics.vectors import unit

Array = NDArray[np.float64]


def likeness(pictures_ND: Array, references_MD: Array) -> Array:
    """Of each picture, the mean cosine to all references, (N,). The mean of it over pictures is the published figure."""
    return np.asarray((unit(pictures_ND) @ unit(references_MD).T).mean(1))


def among(references_MD: Array) -> Array:
    """Of each real picture, the mean cosine to the other ones, (M,); nan where there is no other."""
    if len(references_MD) < 2:
        return np.full(len(references_MD), np.nan)
    cosine_MM = unit(references_MD) @ unit(references_MD).T
    return np.asarray((cosine_MM.sum(1) - cosine_MM.diagonal()) / (len(references_MD) - 1))
