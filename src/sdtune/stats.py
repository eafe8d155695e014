"""What a few dozen prompts can tell: bootstrap over prompts, smallest detectable effect, exact binomial figures. numpy only.

The unit is always the prompt (the cluster): its seeds stay together. Intervals are 95% percentile intervals of the bootstrap, expanded
for few units: a plain percentile interval of n units is too short by as much as the normal distribution is narrower than t with n - 1
degrees of freedom and the spread of a sample than its population's (Hesterberg, The American Statistician 69(4), 2015, section 4.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
T = TypeVar("T")
LEVEL = 0.95
ALPHA = 0.05
MIN_UNITS = 20
"""Fewer prompts, or validation pictures, decide nothing."""


@dataclass(frozen=True)
class Interval:
    """An estimate, its 95% interval and the number of independent units (prompts or pictures) behind it."""

    value: float
    low: float
    high: float
    n: int
    error: float = 0.0
    """Standard error: the standard deviation of the bootstrap draws."""

    @property
    def detectable(self) -> float:
        """The smallest true effect that so many units show with 80% power at 5%, in the units of `value`."""
        return detectable_effect(self.n) * self.error * math.sqrt(self.n)

    @property
    def p(self) -> float:
        """Two-sided, of a true value of 0: t with n - 1 degrees of freedom. It goes with the interval: 0.05 at its bounds, nearly."""
        if self.n < 2 or not math.isfinite(self.error):
            return math.nan
        if self.error == 0:
            return 1.0 if self.value == 0 else 0.0
        return t_p_value(self.value / self.error * math.sqrt((self.n - 1) / self.n), self.n - 1)


def resample(strata: NDArray[np.int64], draws: int, seed: int) -> Array:
    """How often each of C units is drawn, (draws, C). Units of one stratum replace each other, so its size stays as it is."""
    rng = np.random.default_rng(seed)
    weights_WC = np.zeros((draws, len(strata)))
    for stratum in np.unique(strata):
        inside = np.flatnonzero(strata == stratum)
        weights_WC[:, inside] = rng.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), size=draws)
    return weights_WC


def interval(value: float, draws_W: Array, n: int) -> Interval:
    """The percentile interval of bootstrap draws. An estimate that cannot be drawn again has no bounds (nan)."""
    draws_W = draws_W[np.isfinite(draws_W)]
    if n < 2 or not len(draws_W):
        return Interval(value, math.nan, math.nan, n, math.nan)
    low, high = np.quantile(draws_W, [_tail(n), 1 - _tail(n)])
    return Interval(value, float(low), float(high), n, float(draws_W.std()))


def bootstrap_mean(values_C: Array, draws: int = 2000, seed: int = 0) -> Interval:
    """The mean over prompts (each the mean of its seeds) with its interval. Prompts without a value (nan) are left out."""
    values_C = values_C[np.isfinite(values_C)]
    if not len(values_C):
        return Interval(math.nan, math.nan, math.nan, 0, math.nan)
    weights_WC = resample(np.zeros(len(values_C), np.int64), draws, seed)
    return interval(float(values_C.mean()), weights_WC @ values_C / len(values_C), len(values_C))


PAIRS_TAKEN_OFF = 1.75
"""Of the two shares too many that a bootstrap counts; with both, simulated intervals of 20 prompts covered 93% (docs/evaluation.md)."""


@dataclass(frozen=True)
class PairMean:
    """A mean over pairs of units (a U-statistic: KID) with its bootstrap draws, or the difference of two that were drawn together.

    It varies by its units, V1, and by its pairs, V2 (Hoeffding, Annals of Mathematical Statistics 19, 1948). Draws of the units vary by
    V1 + 3 V2: by the pairs as often as they should, and twice more since the mean of the pairs of one unit, which V1 is drawn from, is
    itself uncertain by them. Where two models are nearly alike V2 is most of it, so `interval` narrows the draws.
    """

    value: float
    draws_W: Array
    form_CC: Array
    """H, symmetric and without a diagonal: drawn w times, the value is about w' H w from where it was."""
    strata: NDArray[np.int64]

    def __sub__(self, other: PairMean) -> PairMean:
        return PairMean(
            self.value - other.value, self.draws_W - other.draws_W, self.form_CC - other.form_CC, self.strata
        )

    def interval(self, n: int) -> Interval:
        spread, pairs = float(self.draws_W.var()), pair_variance(self.form_CC, self.strata)
        if not spread > 0:
            return interval(self.value, self.draws_W, n)
        least = 1 - PAIRS_TAKEN_OFF / 3  # of draws that vary by nothing but pairs
        narrower = math.sqrt(max(1 - PAIRS_TAKEN_OFF * pairs / spread, least))
        return interval(self.value, self.value + narrower * (self.draws_W - self.value), n)


def pair_variance(form_CC: Array, strata: NDArray[np.int64]) -> float:
    """The variance of w' H w that is of pairs alone: of what is left of H without the means of its rows and columns, stratum by stratum."""
    inside = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    blocks = (_centred(form_CC[np.ix_(a, b)], same=a is b) for a in inside for b in inside)
    return 2 * float(sum((block**2).sum() for block in blocks))


def _centred(block: Array, *, same: bool) -> Array:
    """Without its rows' and columns' means. `same`: of the units of one stratum with each other, where the diagonal is empty."""
    if not same:
        return np.asarray(block - block.mean(1, keepdims=True) - block.mean(0) + block.mean())
    n = len(block)
    if n < 3:  # one pair tells nothing about pairs
        return np.zeros_like(block)
    mean = block.sum() / (n * (n - 1))
    effect = (block.sum(1) - (n - 1) * mean) / (n - 2)
    left = block - mean - effect[:, None] - effect
    np.fill_diagonal(left, 0.0)
    return np.asarray(left)


@cache
def _tail(n: int) -> float:
    """The share of draws beyond each bound of an expanded percentile interval of n units."""
    return NormalDist().cdf(-t_quantile(n - 1) * math.sqrt(n / (n - 1)))


def spread(values: Sequence[T], most: int) -> list[T]:
    """At most so many of them, evenly chosen."""
    return [values[i * len(values) // most] for i in range(most)] if len(values) > most else list(values)


def group_means(values_N: Array, group_N: NDArray[np.int64], groups: int) -> Array:
    """The mean of each group's values, (groups,); nan for an empty group."""
    count = np.bincount(group_N, minlength=groups)
    total = np.bincount(group_N, values_N, minlength=groups)
    return np.asarray(np.divide(total, count, out=np.full(groups, np.nan), where=count > 0))


@cache
def detectable_effect(n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest effect, in standard deviations of the paired differences, that a two-sided t test of n pairs finds with `power`."""
    if n < 2:
        return math.inf
    critical = _root(lambda t: alpha - _t_power(t, 0.0, n - 1), 0.0, 1e4)
    shift = _root(lambda d: _t_power(critical, d, n - 1) - power, 0.0, 1e4)
    return shift / math.sqrt(n)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p value of so many wins and losses, ties left out, if both were equally likely."""
    n, k = wins + losses, min(wins, losses)
    return 1.0 if n == 0 else min(1.0, 2 * _binomial_cdf(k, n, 0.5))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values corrected for being several (Holm, Scandinavian Journal of Statistics 6, 1979), in their order; nan stays out."""
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    adjusted, highest = list(map(float, p_values)), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def share(hits: int, n: int) -> Interval:
    """A share with its exact 95% interval (Clopper and Pearson, 1934). Good at 0 of n too, where a bootstrap is blind."""
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0, math.nan)
    tail = (1 - LEVEL) / 2
    low = 0.0 if hits == 0 else _root(lambda p: 1 - _binomial_cdf(hits - 1, n, p) - tail, 0.0, 1.0)
    high = 1.0 if hits == n else _root(lambda p: tail - _binomial_cdf(hits, n, p), 0.0, 1.0)
    value = hits / n
    return Interval(value, low, high, n, math.sqrt(value * (1 - value) / n))


def _t_power(critical: float, shift: float, freedom: int) -> float:
    """P(|T| > critical) for a noncentral t variable: (Z + shift) / (chi / sqrt(freedom)), the chi part integrated numerically."""
    s, weight = _chi_grid(freedom)
    normal = NormalDist()
    above = np.array([1 - normal.cdf(critical * x - shift) + normal.cdf(-critical * x - shift) for x in s])
    return float((above * weight).sum())


@cache
def _chi_grid(freedom: int) -> tuple[Array, Array]:
    """Values s = chi / sqrt(freedom) on a grid and their probabilities, which sum to 1."""
    s = np.linspace(1e-6, 1 + 8 / math.sqrt(2 * freedom) + 2 / freedom, 400)
    log_density = (freedom - 1) * np.log(s) - freedom * s**2 / 2
    weight = np.exp(log_density - log_density.max())
    return s, weight / weight.sum()


def _binomial_cdf(k: int, n: int, p: float) -> float:
    if not 0 < p < 1:
        return 1.0 if p <= 0 or k >= n else 0.0
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(p) + (n - i) * math.log1p(-p)
        for i in range(k + 1)
    ]
    return min(1.0, math.fsum(math.exp(x) for x in logs))


def _root(rising: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function crosses zero, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2


def t_p_value(t: float, freedom: float) -> float:
    """Two-sided p value of Student's t with `freedom` degrees, which need not be whole."""
    if math.isnan(t):
        return math.nan
    return _incomplete_beta(freedom / (freedom + t * t), freedom / 2)


def t_quantile(freedom: float, level: float = LEVEL) -> float:
    """So many standard errors to each side hold `level` of Student's t."""
    return _root(lambda t: (1 - level) - t_p_value(t, freedom), 0.0, 1e3)


def _incomplete_beta(x: float, a: float, b: float = 0.5) -> float:
    """The regularised incomplete beta function, by its continued fraction (Abramowitz and Stegun 26.5.8, Lentz' algorithm)."""
    if x <= 0 or x >= 1:
        return min(1.0, max(0.0, x))
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly, its mirror image does not
        return 1 - _incomplete_beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    value, c, d = 1.0, 1.0, 0.0
    for k in range(300):
        m = k // 2
        if k == 0:
            term = 1.0
        elif k % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / _off_zero(1 + term * d)
        c = _off_zero(1 + term / c)
        value *= c * d
        if abs(c * d - 1) < 1e-12:
            break
    return front * (value - 1)


def _off_zero(value: float) -> float:
    return value if abs(value) > 1e-300 else 1e-300
