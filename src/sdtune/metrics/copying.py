"""Drawn pictures that are copies of training pictures: the nearest one by SSCD (arXiv:2202.10261), as in arXiv:2212.03860.

A figure cannot settle it: the pairs are to be looked at. Held-out real pictures say how near one comes without copying.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdtune.metrics.vectors import unit

Array = NDArray[np.float64]

SSCD_LIMIT = 0.5
"""From this cosine on a pair counts as a copy (arXiv:2212.03860); SSCD's authors give 90% precision from 0.75 on, on their own set."""


@dataclass(frozen=True)
class Copies:
    """Of N drawn pictures. `limit` is SSCD's, or the nearest that a held-out picture comes."""

    nearest_N: NDArray[np.int64]
    """The training picture that is nearest."""
    cosine_N: Array
    limit: float
    held_out: float
    """The share of held-out real pictures beyond the limit; nan without any."""

    @property
    def flagged_N(self) -> NDArray[np.bool_]:
        return np.asarray(self.cosine_N > self.limit)

    @property
    def share(self) -> float:
        return float(self.flagged_N.mean()) if len(self.cosine_N) else float("nan")


def copies(
    drawn_ND: Array, train_MD: Array, held_out_HD: Array | None = None, limit: float | None = SSCD_LIMIT
) -> Copies:
    """The nearest training picture of each drawn one, cosines taken from the origin.

    `limit`: None for encoders that nobody has calibrated (DINO): then it is the nearest that any held-out picture comes.
    """
    cosine_NM = unit(drawn_ND) @ unit(train_MD).T
    real_H = None if held_out_HD is None or not len(held_out_HD) else (unit(held_out_HD) @ unit(train_MD).T).max(1)
    if limit is None:
        limit = 1.0 if real_H is None else float(real_H.max())
    beyond = float("nan") if real_H is None else float((real_H > limit).mean())
    return Copies(cosine_NM.argmax(1).astype(np.int64), cosine_NM.max(1), limit, beyond)
