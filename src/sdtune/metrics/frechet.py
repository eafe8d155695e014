"""Frechet distance between two sets of features, fitted by normal distributions (arXiv:1706.08500)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sdtune.errors import EvaluationError

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


def published(x_ND: Array, y_MD: Array, *, indicative: bool = False) -> float:
    """The distance as papers report it. Raises EvaluationError below MIN_PICTURES on a side, unless an indicative one is asked for."""
    few = min(len(x_ND), len(y_MD))
    if few < MIN_PICTURES and not indicative:
        raise EvaluationError(
            f"{few} pictures: a Frechet distance needs {MIN_PICTURES:,}, its bias is of the size of its value "
            "(arXiv:1911.07023); take KID, or --indicative to have it with that warning"
        )
    return frechet(x_ND, y_MD)


def frechet_few(x_ND: Array, y_MD: Array, x_N: Array | None = None, y_M: Array | None = None) -> float:
    """`frechet`, quick where there are fewer pictures than dimensions; `x_N` and `y_M` say how often each picture counts.

    With centred rows X, Y of the two sets the cross term is tr((S_x S_y)^(1/2)) = |X Y^T|_* / sqrt((n - 1)(m - 1)), a nuclear norm of
    an N x M matrix. Whole weights are as good as so many equal rows, so bootstrap draws need no copies of features.
    """
    (mean_x, rows_x), (mean_y, rows_y) = _rows(x_ND, x_N), _rows(y_MD, y_M)
    cross = np.linalg.svd(rows_x @ rows_y.T, compute_uv=False).sum()
    gap = mean_x - mean_y
    return float(gap @ gap + (rows_x**2).sum() + (rows_y**2).sum() - 2 * cross)


def _rows(x_ND: Array, weights_N: Array | None) -> tuple[Array, Array]:
    """The mean, and rows whose product with themselves is the unbiased covariance."""
    weights = np.ones(len(x_ND)) if weights_N is None else weights_N
    total = weights.sum()
    mean = weights @ x_ND / total
    return mean, (x_ND - mean) * np.sqrt(weights / (total - 1))[:, None]


def rank_bound(pictures: int, dimensions: int) -> int:
    """The highest rank that a covariance of so many pictures can have. Below `dimensions` the distance is blind to the rest."""
    return min(dimensions, pictures - 1)
