"""Features and scores to figures with intervals. The unit is the real picture with all that was drawn for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sdtune import stats
from sdtune.judging.figures import paired_figure
from sdtune.judging.scores import Figure, number
from sdtune.metrics import cmmd, frechet, kid
from sdtune.stats import Interval

Array = NDArray[np.float64]

FRECHET_DRAWS = ((100, 200), (400, 50))
"""Up to so many pictures, so many bootstrap draws: each takes a singular value decomposition."""
HALVES = 20
"""Real pictures from which on two halves of them are set against each other."""


@dataclass(frozen=True)
class Sides:
    """Features of n real pictures, and of what both models drew for them; `own` says for which."""

    real_ND: Array
    original_ND: Array
    original_own: NDArray[np.int64]
    tuned_ND: Array
    tuned_own: NDArray[np.int64]

    @property
    def drawn(self) -> tuple[tuple[Array, NDArray[np.int64]], tuple[Array, NDArray[np.int64]]]:
        return (self.original_ND, self.original_own), (self.tuned_ND, self.tuned_own)


def each(
    key: str, label: str, better: Literal["lower", "higher"], original_N: Array, tuned_N: Array, real_N: Array | None,
    draws: int, seed: int,
) -> Figure:  # fmt: skip
    """Of one value a real picture, the mean of what was drawn for it. `real_N`: the same of real pictures, the yardstick."""
    figure = paired_figure(key, label, better, original_N, tuned_N, draws, seed)
    return dataclasses.replace(figure, real=None if real_N is None else stats.bootstrap_mean(real_N, draws, seed))


def discrepancy(
    key: str, label: str, sides: Sides, kernel: Callable[[Array, Array], Array], factor: float, draws: int, seed: int
) -> Figure:
    """KID or CMMD, without bias, with the interval of the difference from drawing real pictures again with their drawn ones."""
    n = len(sides.real_ND)
    weights_WC = stats.resample(np.zeros(n, np.int64), draws, seed)
    found = [
        kid.ClusteredKid(x, own, sides.real_ND, np.arange(n), n, kernel=kernel) for x, own in sides.drawn
    ]  # a drawn picture and its own real one are no independent pair, and are left out
    (a, a_W), (b, b_W) = ((factor * float(k()[0]), factor * k(weights_WC)) for k in found)
    few = min(n, *(len(x) for x, _ in sides.drawn))
    note = "" if few >= kid.MIN_PICTURES else f"not evidence: {few} pictures, at least {kid.MIN_PICTURES} are needed"
    return Figure(
        key, label, "lower", stats.interval(a, a_W, n), stats.interval(b, b_W, n), stats.interval(b - a, b_W - a_W, n),
        real=_halves(sides.real_ND, kernel, factor), evidence=not note, note=note,
    )  # fmt: skip


def distance(key: str, label: str, sides: Sides, draws: int, seed: int) -> Figure:
    """The Frechet distance, and what it is worth with so many pictures. Its refusal is the caller's business."""
    n, dimensions = sides.real_ND.shape
    a, b = (
        frechet.frechet_few(x, sides.real_ND) if n < dimensions else frechet.frechet(x, sides.real_ND)
        for x, _ in sides.drawn
    )
    few = min(n, *(len(x) for x, _ in sides.drawn))
    count = next((c for most, c in FRECHET_DRAWS if few <= most), 0)
    change_W = _frechet_changes(sides, min(draws, count), seed)
    real = _half_distance(sides.real_ND, seed)
    alone = tuple(Interval(v, math.nan, math.nan, n, math.nan) for v in (a, b))
    return Figure(
        key, label, "lower", alone[0], alone[1], _around(b - a, change_W, n), real=real,
        evidence=few >= frechet.MIN_PICTURES, note=_worth(few, dimensions, real),
    )  # fmt: skip


def _worth(few: int, dimensions: int, real: Interval | None) -> str:
    """What a Frechet distance of so many pictures tells, in words."""
    if few >= frechet.MIN_PICTURES:
        return "values compare with those of equally many pictures alone"
    rank = frechet.rank_bound(few, dimensions)
    blind = f"; covariances of rank {rank} at most in {dimensions:,} dimensions" if rank < dimensions else ""
    half = f"; two halves of the real pictures are {number(real.value)} apart, where the truth is 0" if real else ""
    return (
        f"not evidence: {few} pictures, {frechet.MIN_PICTURES:,} are needed; biased upwards by about its own size, and the more so the "
        f"more varied the pictures are, so that it rewards a model whose pictures are alike{blind}{half}"
    )


def _frechet_changes(sides: Sides, draws: int, seed: int) -> Array:
    """The difference of both distances, for real pictures drawn again with what was drawn for them."""
    if draws < 2:
        return np.zeros(0)
    weights_WC = stats.resample(np.zeros(len(sides.real_ND), np.int64), draws, seed)
    found = []
    for w in weights_WC:
        if (w > 0).sum() > 1:
            a, b = (frechet.frechet_few(x, sides.real_ND, w[own], w) for x, own in sides.drawn)
            found.append(b - a)
    return np.array(found)


def _around(value: float, draws_W: Array, n: int) -> Interval:
    """The interval of draws, moved to the value: pictures that are drawn twice make each of them too low, and alike so."""
    if len(draws_W) < 2:
        return Interval(value, math.nan, math.nan, n, math.nan)
    return stats.interval(value, draws_W - draws_W.mean() + value, n)


def _halves(real_ND: Array, kernel: Callable[[Array, Array], Array], factor: float) -> Interval | None:
    """Two halves of the real pictures against each other: what a perfect model would get, give or take chance."""
    if len(real_ND) < HALVES:
        return None
    order = np.random.default_rng(0).permutation(len(real_ND))
    x, y = real_ND[order[::2]], real_ND[order[1::2]]
    n, m = len(x), len(y)
    estimate = kid.ClusteredKid(x, np.arange(n), y, np.arange(n, n + m), n + m, kernel=kernel)
    weights_WC = stats.resample(np.repeat(np.array([0, 1]), [n, m]), 500, 0)
    return stats.interval(factor * float(estimate()[0]), factor * estimate(weights_WC), m)


def _half_distance(real_ND: Array, seed: int) -> Interval | None:
    if len(real_ND) < 4:
        return None
    order = np.random.default_rng(seed).permutation(len(real_ND))
    x, y = real_ND[order[::2]], real_ND[order[1::2]]
    few = len(x) < x.shape[1]
    value = frechet.frechet_few(x, y) if few else frechet.frechet(x, y)
    return Interval(value, math.nan, math.nan, len(y), math.nan)


def by_item(values_K: Array, own_K: NDArray[np.int64], n: int) -> Array:
    """The mean of each real picture's values, (n,)."""
    return stats.group_means(values_K, own_K, n)


def kernels(metric: str) -> tuple[Callable[[Array, Array], Array], float]:
    """The kernel of `kid` or `cmmd`, and the factor that its values are shown with."""
    return (cmmd.gaussian_kernel, cmmd.FACTOR) if metric == "cmmd" else (kid.cubic_kernel, 1.0)


def told(figure: Figure) -> Literal["better", "worse", "cannot tell", "not evidence"]:
    """What a figure says of the tuned model."""
    d = figure.difference
    if not figure.evidence or d is None:
        return "not evidence"
    if not (d.low > 0 or d.high < 0) or (figure.holm is not None and figure.holm > stats.ALPHA):
        return "cannot tell"
    return "better" if (d.high < 0) == (figure.better == "lower") else "worse"


def corrected(figures: Sequence[Figure], primary: str) -> list[Figure]:
    """With the p values of all that are evidence, but for the primary one, corrected for their number (Holm)."""
    found = list(figures)
    several = [i for i, f in enumerate(found) if f.evidence and f.key != primary and f.difference is not None]
    p_values = [d.p if (d := found[i].difference) else math.nan for i in several]
    for i, p in zip(several, stats.holm(p_values), strict=True):
        found[i] = dataclasses.replace(found[i], holm=p)
    return found


def words(values: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(values[:-1]), values[-1]])) if values else ""
