"""Features and scores to figures with intervals. The unit is the real picture with all that was drawn for it.

Whether a figure is evidence is said by `Metric.needs` of the registry: `weighed` alone decides it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sdtune import stats
from sdtune.judging.figures import change_p, kid_of_real, paired_figure
from sdtune.judging.scores import Figure, number
from sdtune.metrics import cmmd, copying, diversity, drift, frechet, kid, prdc
from sdtune.protocol.choosing import Choice, choice_of
from sdtune.stats import Interval

Array = NDArray[np.float64]

FRECHET_DRAWS = ((100, 200), (400, 50))
"""Up to so many pictures, so many bootstrap draws: each takes a singular value decomposition."""
VENDI_DRAWS = ((200, 400), (1000, 100))
"""The same: each takes the eigenvalues of a matrix. Of more pictures FEW_DRAWS."""
PRDC_DRAWS = ((1000, 1000),)
FEW_DRAWS = 50
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

    @property
    def items(self) -> int:
        return len(self.real_ND)

    def even(self) -> Sides:
        """With as many pictures of both models for each real one: the first ones."""
        most = np.minimum(*(np.bincount(own, minlength=self.items) for _, own in self.drawn))
        kept = []
        for x, own in self.drawn:
            first = np.searchsorted(own, own)  # `own` rises: where the pictures of the same real one begin
            keep = np.arange(len(own)) - first < most[own]
            kept.append((x[keep], own[keep]))
        (a, a_own), (b, b_own) = kept
        return Sides(self.real_ND, a, a_own, b, b_own)


def weighed(choice: Choice, figure: Figure, n: int, note: str = "") -> Figure:
    """The figure with `note`, and with its verdict on so many units: below what the metric needs it is no evidence."""
    m = choice.rule
    few = f"not evidence: {n:,} {m.unit}, needs {m.needs:,}" if n < m.needs else ""
    return dataclasses.replace(figure, evidence=not few, note="; ".join(filter(None, (few, note))))


def each(
    choice: Choice, better: Literal["lower", "higher", ""], original_N: Array, tuned_N: Array, real_N: Array | None,
    draws: int, seed: int,
) -> Figure:  # fmt: skip
    """Of one value a real picture, the mean of what was drawn for it. `real_N`: the same of real pictures, the yardstick."""
    figure = paired_figure(choice.key, choice.label, better, original_N, tuned_N, draws, seed)
    real = None if real_N is None else stats.bootstrap_mean(real_N, draws, seed)
    return weighed(choice, dataclasses.replace(figure, real=real), _units(figure))


def won(choice: Choice, figure: Figure) -> Figure:
    """Of a figure with one value a caption: in which share of them the tuned model's is the higher one, against one half.

    The interval is exact (Clopper and Pearson), so it leaves out one half where the sign test says p < 0.05. Ties decide nothing.
    """
    assert figure.wins is not None and figure.losses is not None and figure.tuned is not None
    part, ties = choice.of("wins"), figure.tuned.n - figure.wins - figure.losses
    rate = stats.share(figure.wins, figure.wins + figure.losses)
    over = Interval(rate.value - 0.5, rate.low - 0.5, rate.high - 0.5, rate.n, rate.error)
    row = Figure(part.key, part.label, "higher", None, rate, over, wins=figure.wins, losses=figure.losses)
    tied = f"{ties} of {figure.tuned.n} are ties" if ties else ""
    return weighed(part, row, rate.n, "; ".join(filter(None, ("the difference is to one half", tied))))


def varied(choice: Choice, original_N: Array, tuned_N: Array, draws: int, seed: int) -> Figure:
    """How far the seeds of a caption are apart, nan where there is one. There is no better side, and no real picture to hold it against."""
    figure = each(choice, "", original_N, tuned_N, None, draws, seed)
    alone = len(original_N) - _units(figure)
    return weighed(
        choice, figure, _units(figure), f"{alone} captions were drawn once and are left out" if alone else ""
    )


def drifted(choice: Choice, sides: Sides, draws: int, seed: int) -> Figure:
    """How far tuned pictures are from the original's own of the same caption and seed: 1 - cosine.

    Its yardstick, in the place of the original, are two seeds of the original: who has drifted so far draws another picture. The
    pictures of a caption are paired in order; a caption with other numbers of them is left out.
    """
    n = sides.items
    counts = [np.bincount(own, minlength=n) for _, own in sides.drawn]
    same = counts[0] == counts[1]
    (a, own), (b, b_own) = ((x[same[of]], of[same[of]]) for x, of in sides.drawn)
    assert (own == b_own).all()
    moved = by_item(drift.drift(b, a), own, n)
    seeds = np.full(n, math.nan)
    seeds[np.unique(sides.original_own)] = diversity.cosine_diversity(*sides.drawn[0])
    units = int(np.isfinite(moved).sum())
    lost = f"{n - units} captions with other numbers of pictures are left out" if units < n else ""
    if not np.isfinite(seeds[same]).any():
        figure = Figure(choice.key, choice.label, "", tuned=stats.bootstrap_mean(moved, draws, seed))
        why = "without a second seed of the original nobody can say whether that is far"
        return dataclasses.replace(weighed(choice, figure, units, "; ".join(filter(None, (why, lost)))), evidence=False)
    figure = paired_figure(choice.key, choice.label, "", seeds, moved, draws, seed)
    said = "original: two of its own seeds; higher than that is another picture"
    return weighed(choice, figure, _units(figure), "; ".join(filter(None, (said, lost))))


def copied(
    choice: Choice, sides: Sides, found: Sequence[copying.Copies], held_out: copying.Copies, draws: int, seed: int
) -> Figure:
    """The share of a caption's pictures that are nearer to a training picture than the limit. `found`: of original and tuned;
    `held_out`: of the real test pictures, the yardstick where it is not them that set the limit."""
    a, b = (
        by_item(c.flagged_N.astype(np.float64), own, sides.items)
        for c, (_, own) in zip(found, sides.drawn, strict=True)
    )
    figure = each(choice, "lower", a, b, None, draws, seed)
    assert figure.base and figure.tuned and figure.difference
    figure = dataclasses.replace(
        figure, base=_open(figure.base, a, 0), tuned=_open(figure.tuned, b, 0), difference=_open(figure.difference, b - a, -1),
        real=stats.share(int(held_out.flagged_N.sum()), sides.items) if held_out.limit == copying.SSCD_LIMIT else None,
    )  # fmt: skip
    nearest = [number(float(c.cosine_N.max())) for c in (*found, held_out)]
    said = f"cosine above {number(found[0].limit)}; the nearest: original {nearest[0]}, tuned {nearest[1]}, real test pictures {nearest[2]}"
    return weighed(choice, figure, _units(figure), said)


def _open(i: Interval, values_N: Array, least: float) -> Interval:
    """A bootstrap is blind where all values are alike: then with the exact bound of none of so many, between `least` and 1."""
    if np.ptp(values_N) > 0:
        return i
    room = stats.share(0, i.n).high
    return Interval(i.value, max(least, i.value - room), min(1.0, i.value + room), i.n, room / 2)


def prdcs(choice: Choice, sides: Sides, draws: int, seed: int) -> list[Figure]:
    """Precision, recall, density and coverage, with intervals from drawing real pictures again with their drawn ones."""
    sides = sides.even()
    n = sides.items
    weights_WC = stats.resample(np.zeros(n, np.int64), _fewer(draws, n, PRDC_DRAWS), seed)
    found = [
        (dataclasses.astuple(prdc.prdc(sides.real_ND, x)), prdc.Redrawn(sides.real_ND, x, own)(weights_WC))
        for x, own in sides.drawn
    ]
    (a, a_W4), (b, b_W4) = found
    real = _half_prdc(sides.real_ND)
    figures = []
    for i, part in enumerate(field.name for field in dataclasses.fields(prdc.Prdc)):
        row = choice.of(part)
        figure = Figure(
            row.key, row.label, "higher", _inside(_around(a[i], a_W4[:, i], n), part), _inside(_around(b[i], b_W4[:, i], n), part),
            _around(b[i] - a[i], b_W4[:, i] - a_W4[:, i], n), real=None if real is None else alone(real[i], len(sides.real_ND) // 2),
        )  # fmt: skip
        figures.append(weighed(row, figure, n))
    return figures


def _half_prdc(real_ND: Array) -> tuple[float, ...] | None:
    """Of one half of the real pictures against the other."""
    if len(real_ND) < HALVES:
        return None
    order = np.random.default_rng(0).permutation(len(real_ND))
    return dataclasses.astuple(prdc.prdc(real_ND[order[::2]], real_ND[order[1::2]]))


def _inside(i: Interval, part: str) -> Interval:
    """Bounds of a share lie between 0 and 1; a density knows the lower one alone."""
    high = math.inf if part == "density" else 1.0
    return dataclasses.replace(i, low=max(0.0, i.low), high=min(high, i.high))


def vendis(choice: Choice, sides: Sides, draws: int, seed: int) -> Figure:
    """As how many different pictures both models' count. It grows with their number, so both have equally many; no side is better."""
    sides = sides.even()
    n, most = sides.items, len(sides.original_ND)
    weights_WC = stats.resample(np.zeros(n, np.int64), _fewer(draws, most, VENDI_DRAWS), seed)
    found = [(diversity.vendi(x), np.array([diversity.vendi(x, w[own]) for w in weights_WC])) for x, own in sides.drawn]
    (a, a_W), (b, b_W) = found
    real = alone(diversity.vendi(sides.real_ND), n) if most == n else None
    rows = (_around(a, a_W, n), _around(b, b_W, n), _around(b - a, b_W - a_W, n))
    return weighed(
        choice, Figure(choice.key, choice.label, "", *rows, real=real), n, f"of {most:,} pictures on both sides"
    )


def _fewer(draws: int, pictures: int, table: tuple[tuple[int, int], ...]) -> int:
    return min(draws, next((count for most, count in table if pictures <= most), FEW_DRAWS))


def _units(figure: Figure) -> int:
    return figure.difference.n if figure.difference else 0


def alone(value: float, n: int) -> Interval:
    """A value without an interval."""
    return Interval(value, math.nan, math.nan, n, math.nan)


def discrepancy(
    choice: Choice, sides: Sides, kernel: Callable[[Array, Array], Array], factor: float, draws: int, seed: int
) -> Figure:
    """KID or CMMD, without bias, with the interval of the difference from drawing real pictures again with their drawn ones."""
    n, one = sides.items, np.zeros(sides.items, np.int64)
    weights_WC = stats.resample(one, draws, seed)
    found = [
        kid.ClusteredKid(x, own, sides.real_ND, np.arange(n), n, kernel=kernel) for x, own in sides.drawn
    ]  # a drawn picture and its own real one are no independent pair, and are left out
    a, b = (k.drawn_again(weights_WC, one, factor) for k in found)
    figure = Figure(
        choice.key,
        choice.label,
        "lower",
        a.interval(n),
        b.interval(n),
        (b - a).interval(n),
        real=_halves(sides.real_ND, kernel, factor),
    )
    return weighed(choice, figure, n)


def distance(choice: Choice, sides: Sides, draws: int, seed: int) -> Figure:
    """The Frechet distance, and what it is worth with so many pictures. Its refusal is the caller's business."""
    n, dimensions = sides.real_ND.shape
    a, b = (
        frechet.frechet_few(x, sides.real_ND) if n < dimensions else frechet.frechet(x, sides.real_ND)
        for x, _ in sides.drawn
    )
    count = next((c for most, c in FRECHET_DRAWS if n <= most), 0)
    change_W = _frechet_changes(sides, min(draws, count), seed)
    real = _half_distance(sides.real_ND, seed)
    figure = Figure(choice.key, choice.label, "lower", alone(a, n), alone(b, n), _around(b - a, change_W, n), real=real)
    return weighed(choice, figure, n, _worth(n, choice.rule.needs, dimensions, real))


def _worth(n: int, needs: int, dimensions: int, real: Interval | None) -> str:
    """What a Frechet distance of so many pictures tells, in words."""
    if n >= needs:
        return "values compare with those of equally many pictures alone; without an interval, which takes too long for so many"
    rank = frechet.rank_bound(n, dimensions)
    blind = f"; covariances of rank {rank} at most in {dimensions:,} dimensions" if rank < dimensions else ""
    half = f"; two halves of the real pictures are {number(real.value)} apart, where the truth is 0" if real else ""
    return (
        "biased upwards by about its own size, and the more so the more varied the pictures are, so that it rewards a model whose "
        f"pictures are alike{blind}{half}"
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
    return kid_of_real(real_ND[order[::2]], real_ND[order[1::2]], 500, 0, kernel, factor)


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


Says = Literal["better", "worse", "higher", "lower", "cannot tell", "not evidence"]


def told(figure: Figure) -> Says:
    """What a figure says of the tuned model; "higher" or "lower" where no side is better."""
    d = figure.difference
    if not figure.evidence or d is None:
        return "not evidence"
    if not (d.low > 0 or d.high < 0) or (figure.holm is not None and figure.holm > stats.ALPHA):
        return "cannot tell"
    if not figure.better:
        return "higher" if d.low > 0 else "lower"
    return "better" if (d.high < 0) == (figure.better == "lower") else "worse"


def p_of(figure: Figure) -> float:
    """Two-sided, of no difference: the sign test for a win rate, else t; nan where there is none."""
    if choice_of(figure.key).part == "wins":
        return stats.sign_test(figure.wins or 0, figure.losses or 0)
    return change_p(figure)


def words(values: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(values[:-1]), values[-1]])) if values else ""
