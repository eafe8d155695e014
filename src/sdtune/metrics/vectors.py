"""What the metrics on feature vectors share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def unit(x_ND: Array) -> Array:
    """Rows to unit length; a row of zeros stays."""
    return np.asarray(x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12))


def squared_distances(x_ND: Array, y_MD: Array) -> Array:
    """|x - y|^2 of all pairs, (N, M), never below 0."""
    squares = (x_ND**2).sum(1)[:, None] + (y_MD**2).sum(1)[None] - 2 * x_ND @ y_MD.T
    return np.asarray(squares.clip(0))


def paired_cosine(x_ND: Array, y_ND: Array) -> Array:
    """The cosine of each row with the row of the other, (N,)."""
    return np.asarray((unit(x_ND) * unit(y_ND)).sum(1))
