"""Kernel Inception Distance, arXiv:1801.01401: the unbiased squared maximum mean discrepancy with a cubic kernel.

Feature arrays are (pictures, D). Values compare with published ones only where the features are those of Inception
(encoders.py, "inception"); those of the shipped scorer compare with each other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sdtune import stats
from sdtune.errors import EvaluationError

Array = NDArray[np.float64]

MIN_PICTURES = 50
"""Below this many pictures on either side KID is not shown as evidence."""


def cubic_kernel(x_ND: Array, y_MD: Array) -> Array:
    """k(x, y) = (x . y / D + 1)^3, shape (N, M)."""
    return np.asarray((x_ND @ y_MD.T / x_ND.shape[1] + 1.0) ** 3)


def kid(x_ND: Array, y_MD: Array) -> float:
    """The unbiased estimate over all pairs of independent pictures (eq. 4); it may be slightly negative."""
    n, m = len(x_ND), len(y_MD)
    xx, yy, xy = cubic_kernel(x_ND, x_ND), cubic_kernel(y_MD, y_MD), cubic_kernel(x_ND, y_MD)
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def published(x_ND: Array, y_MD: Array, subsets: int = 100, size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Mean and deviation of `kid` over random subsets, the protocol of torch-fidelity and of most papers; times 1000 in many tables.

    The deviation is that of subsets, which is no interval of the mean. Raises EvaluationError where a side has fewer than `size`.
    """
    few = min(len(x_ND), len(y_MD))
    if few < size:
        raise EvaluationError(
            f"{few} pictures: the published KID draws subsets of {size}; with fewer take `kid`, which is unbiased for any number"
        )
    rng = np.random.default_rng(seed)
    values = [
        kid(x_ND[rng.choice(len(x_ND), size, replace=False)], y_MD[rng.choice(len(y_MD), size, replace=False)])
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


class ClusteredKid:
    """KID where pictures come in clusters: the seeds of a prompt, and the real picture that carries the same caption.

    Pictures of one cluster are not independent draws, so pairs inside a cluster are left out of all three means; what is
    left is again unbiased, for prompts drawn from the same source. With one picture per cluster this equals `kid`.
    Weights W (draws, C) say how often each cluster is drawn; ones give the estimate itself, bootstrap counts its draws.
    A cluster drawn twice forms no pairs with itself, so resampling does not bias the estimate.
    """

    def __init__(
        self,
        x_ND: Array,
        x_cluster: NDArray[np.int64],
        y_MD: Array,
        y_cluster: NDArray[np.int64],
        clusters: int,
        kernel: Callable[[Array, Array], Array] = cubic_kernel,
    ):
        """`kernel`: another one makes another discrepancy of it, such as cmmd.gaussian_kernel."""
        a_CN, b_CM = _membership(x_cluster, clusters), _membership(y_cluster, clusters)
        self.clusters = clusters
        self._xx = _between(kernel(x_ND, x_ND), a_CN, a_CN)
        self._yy = _between(kernel(y_MD, y_MD), b_CM, b_CM)
        self._xy = _between(kernel(x_ND, y_MD), a_CN, b_CM)

    def __call__(self, weights_WC: Array | None = None) -> Array:
        """The estimate for each row of weights, shape (W,); without weights a single one."""
        w = np.ones((1, self.clusters)) if weights_WC is None else weights_WC
        return np.asarray(_mean(self._xx, w) + _mean(self._yy, w) - 2 * _mean(self._xy, w))

    def drawn_again(self, weights_WC: Array, strata: NDArray[np.int64], factor: float = 1.0) -> stats.PairMean:
        """With its bootstrap draws; `strata` of the clusters, as in stats.resample. `factor`: what it is shown times."""
        form_CC = _form(self._xx) + _form(self._yy) - 2 * _form(self._xy)
        both = factor * (form_CC + form_CC.T) / 2
        return stats.PairMean(factor * float(self()[0]), factor * self(weights_WC), both, strata)


def _membership(cluster: NDArray[np.int64], clusters: int) -> Array:
    return np.asarray(np.arange(clusters)[:, None] == cluster[None, :], np.float64)


def _between(k_NM: Array, a_CN: Array, b_CM: Array) -> tuple[Array, Array]:
    """Sums and counts of the kernel between different clusters, both (C, C)."""
    sums, counts = a_CN @ k_NM @ b_CM.T, np.outer(a_CN.sum(1), b_CM.sum(1))
    np.fill_diagonal(sums, 0.0)
    np.fill_diagonal(counts, 0.0)
    return sums, counts


def _mean(between: tuple[Array, Array], w_WC: Array) -> Array:
    total, count = (((w_WC @ m) * w_WC).sum(1) for m in between)
    return np.asarray(np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0))


def _form(between: tuple[Array, Array]) -> Array:
    """Of one mean: its derivative by the product of two weights."""
    total, count = between
    return np.asarray((total - total.sum() / count.sum() * count) / count.sum())
