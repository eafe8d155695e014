"""Frechet distance between two sets of features, fitted by normal distributions (arXiv:1706.08500)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MIN_PICTURES = 2048
"""Below this many pictures the distance is indicative only: its bias is of the size of its value (arXiv:1911.07023)."""


def frechet(x_ND: Array, y_MD: Array) -> float:
    """|mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)) of the sample means and unbiased covariances."""
    return frechet_normal(x_ND.mean(0), np.cov(x_ND, rowvar=False), y_MD.mean(0), np.cov(y_MD, rowvar=False))


def frechet_normal(mean_x_D: Array, cov_x_DD: Array, mean_y_D: Array, cov_y_DD: Array) -> float:
    """The same between two given normal distributions.

    S_x S_y has the eigenvalues of the symmetric S_x^(1/2) S_y S_x^(1/2), so no general matrix root is needed.
    """
    cov_x_DD, cov_y_DD = np.atleast_2d(cov_x_DD), np.atleast_2d(cov_y_DD)
    values, vectors = np.linalg.eigh(cov_x_DD)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_y_DD @ root).clip(0)).sum()
    gap = mean_x_D - mean_y_D
    return float(gap @ gap + np.trace(cov_x_DD) + np.trace(cov_y_DD) - 2 * cross)


def rank_bound(pictures: int, dimensions: int) -> int:
    """The highest rank that a covariance of so many pictures can have. Below `dimensions` the distance is blind to the rest."""
    return min(dimensions, pictures - 1)
