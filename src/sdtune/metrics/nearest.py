"""The nearest training picture of each drawn one: the place to look for copies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def nearest(pictures_ND: Array, train_MD: Array, centre_D: Array) -> tuple[NDArray[np.int64], Array]:
    """Index of the nearest training picture and its cosine, both (N,).

    Cosines are taken from `centre_D` (the mean of real pictures): features share a large constant part, and from the
    origin everything would look alike.
    """
    cosine_NM = _unit(pictures_ND - centre_D) @ _unit(train_MD - centre_D).T
    return cosine_NM.argmax(1).astype(np.int64), cosine_NM.max(1)


def _unit(x_ND: Array) -> Array:
    return np.asarray(x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12))
