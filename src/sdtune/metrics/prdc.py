"""Precision and recall (arXiv:1904.06991), density and coverage (arXiv:2002.09797) of drawn pictures against real ones.

Precision and density ask whether drawn pictures are realistic, recall and coverage whether they are varied. Balls around
pictures reach to their k-th neighbour. All of them move with the number of pictures: compare equal numbers only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdtune.errors import EvaluationError
from sdtune.metrics.vectors import squared_distances

Array = NDArray[np.float64]

NEIGHBOURS = 5


@dataclass(frozen=True)
class Prdc:
    precision: float
    """The share of drawn pictures inside the ball of a real one."""
    recall: float
    """The share of real pictures inside the ball of a drawn one."""
    density: float
    """In how many balls of real pictures a drawn one lies, over k; may be above 1 (eq. 3)."""
    coverage: float
    """The share of real pictures whose ball holds a drawn one (eq. 4)."""


def prdc(real_MD: Array, drawn_ND: Array, k: int = NEIGHBOURS) -> Prdc:
    """All four. Raises EvaluationError where a side has no k-th neighbour."""
    if min(len(real_MD), len(drawn_ND)) <= k:
        raise EvaluationError(
            f"{len(drawn_ND)} drawn and {len(real_MD)} real pictures: with {k} neighbours at least {k + 1} of each are needed"
        )
    across_MN = squared_distances(real_MD, drawn_ND)
    real_M, drawn_N = _reach(real_MD, k), _reach(drawn_ND, k)
    inside_MN = across_MN < real_M[:, None]
    return Prdc(
        precision=float(inside_MN.any(0).mean()),
        recall=float((across_MN < drawn_N[None]).any(1).mean()),
        density=float(inside_MN.sum(0).mean() / k),
        coverage=float((across_MN.min(1) < real_M).mean()),
    )


def _reach(x_ND: Array, k: int) -> Array:
    """The squared distance of each to its k-th neighbour, itself not counted, (N,)."""
    apart = squared_distances(x_ND, x_ND)
    np.fill_diagonal(apart, 0.0)
    return np.partition(apart, k, axis=1)[:, k]
