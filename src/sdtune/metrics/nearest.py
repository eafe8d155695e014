"""The nearest training picture of each drawn one: the place to look for copies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sdtune.metrics.vectors import unit

Array = NDArray[np.float64]


def nearest(pictures_ND: Array, train_MD: Array, centre_D: Array) -> tuple[NDArray[np.int64], Array]:
    """Index of the nearest training picture and its cosine, both (N,).

    Cosines are taken from `centre_D` (the mean of real pictures): features share a large constant part, and from the
    origin everything would look alike.
    """
    cosine_NM = unit(pictures_ND - centre_D) @ unit(train_MD - centre_D).T
    return cosine_NM.argmax(1).astype(np.int64), cosine_NM.max(1)
