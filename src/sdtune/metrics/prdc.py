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
REACH = 8
"""Times k: so many neighbours of a picture are kept for drawing again. That fewer than k of them are drawn has a chance of 1e-12."""


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


class Redrawn:
    """The four figures where units are drawn again: a real picture each, with what was drawn for it.

    A picture that is drawn twice is no neighbour of itself, else balls would shrink to nothing; as a neighbour of others it counts
    twice. Only pairs near enough to matter are kept, so a draw takes time by the number of pictures and not by its square.
    """

    def __init__(self, real_MD: Array, drawn_ND: Array, own_N: NDArray[np.int64], k: int = NEIGHBOURS) -> None:
        """Real pictures are the units, `own_N` says to which each drawn one belongs."""
        self._k, self._own = k, own_N
        self._real, self._drawn = _near(real_MD, REACH * k), _near(drawn_ND, REACH * k)
        across_MN = squared_distances(real_MD, drawn_ND)
        far_M, far_N = self._real[1][:, -1], self._drawn[1][:, -1]
        self._i, self._j = np.nonzero(across_MN < np.maximum(far_M[:, None], far_N[None]))
        self._apart = across_MN[self._i, self._j]

    def __call__(self, weights_WM: Array) -> Array:
        """Precision, recall, density and coverage for each row of weights, which say how often a unit is drawn: (W, 4)."""
        return np.array([self._draw(w, w[self._own]) for w in weights_WM]).reshape(-1, 4)

    def _draw(self, w_M: Array, w_N: Array) -> tuple[float, float, float, float]:
        real_M, drawn_N = self._balls(self._real, w_M), self._balls(self._drawn, w_N)
        there = (w_M[self._i] > 0) & (w_N[self._j] > 0)
        in_real = there & (self._apart < real_M[self._i])
        in_drawn = there & (self._apart < drawn_N[self._j])
        pairs = (w_M[self._i] * w_N[self._j])[in_real].sum()
        return (
            _share(self._j[in_real], w_N), _share(self._i[in_drawn], w_M), float(pairs / (self._k * w_N.sum())),
            _share(self._i[in_real], w_M),
        )  # fmt: skip

    def _balls(self, near: tuple[NDArray[np.int64], Array], w: Array) -> Array:
        """The squared distance to the k-th neighbour that was drawn."""
        index, apart = near
        reached = w[index].cumsum(1) >= self._k
        last = np.where(reached.any(1), reached.argmax(1), apart.shape[1] - 1)
        return np.asarray(apart[np.arange(len(apart)), last])


def _near(x_ND: Array, most: int) -> tuple[NDArray[np.int64], Array]:
    """The nearest others of each, nearest first, and their squared distances: (N, L) both."""
    apart = squared_distances(x_ND, x_ND)
    np.fill_diagonal(apart, -1.0)  # itself stands first, and is cut off
    kept = min(most, len(x_ND) - 1)
    index = np.argpartition(apart, kept, axis=1)[:, : kept + 1]
    index = np.take_along_axis(index, np.take_along_axis(apart, index, 1).argsort(1), 1)[:, 1:]
    return index.astype(np.int64), np.take_along_axis(apart, index, 1)


def _share(hit: NDArray[np.int64], weights: Array) -> float:
    """Of the weights, what belongs to places that are hit."""
    found = np.zeros(len(weights), bool)
    found[hit] = True
    return float(weights[found].sum() / weights.sum())
