"""CMMD, arXiv:2401.09603: the squared maximum mean discrepancy of CLIP embeddings of unit length with a Gaussian kernel, times 1000.

The paper's code takes the estimate that keeps the pairs of a picture with itself (eq. 5 of Gretton and others, JMLR 13, 2012), and
says so; it is too high by about 2 (1 - mean k) / n. `cmmd` is that, to compare with published values; `unbiased` leaves those pairs
out, and is what to compare sets of different sizes by.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sdtune.metrics.vectors import squared_distances

Array = NDArray[np.float64]

SIGMA, FACTOR = 10.0, 1000.0
MIN_PICTURES = 50
"""Below this many pictures on either side it is not shown as evidence."""


def gaussian_kernel(x_ND: Array, y_MD: Array) -> Array:
    """exp(-|x - y|^2 / (2 sigma^2)), (N, M)."""
    return np.asarray(np.exp(-squared_distances(x_ND, y_MD) / (2 * SIGMA**2)))


def cmmd(x_ND: Array, y_MD: Array) -> float:
    """As published: all pairs, never below 0."""
    xx, yy, xy = gaussian_kernel(x_ND, x_ND), gaussian_kernel(y_MD, y_MD), gaussian_kernel(x_ND, y_MD)
    return float(FACTOR * (xx.mean() + yy.mean() - 2 * xy.mean()))


def unbiased(x_ND: Array, y_MD: Array) -> float:
    """Without the pairs of a picture with itself; it may be slightly negative."""
    n, m = len(x_ND), len(y_MD)
    xx, yy, xy = gaussian_kernel(x_ND, x_ND), gaussian_kernel(y_MD, y_MD), gaussian_kernel(x_ND, y_MD)
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return float(FACTOR * (within - 2 * xy.mean()))
