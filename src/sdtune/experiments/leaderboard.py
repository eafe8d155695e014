"""What can be told apart. Every row (a cell, or the base) has estimates of one figure: one for each training seed, each drawn again.

Prompts are drawn once for all rows, so that differences between rows are paired by prompt. Training seeds are few, and the bootstrap
takes the spread of three for smaller than it is; their part is therefore reckoned by its variance: that of all rows together, or the
row's own where it is larger, with Student's t for the few degrees of freedom (Satterthwaite, 1946). By simulation, rows that do not differ
are told apart in about 5% of experiments at most, also where some vary more than others. numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from string import ascii_lowercase
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sdtune import stats
from sdtune.experiments.matrix import SEEDS_TO_CLAIM

Array = NDArray[np.float64]
LEVEL = stats.ALPHA
"""Of all comparisons between rows together."""


@dataclass(frozen=True)
class Sample:
    """A row's estimates of a figure, one a training seed; the base has one, and no seed."""

    name: str
    values_S: Array
    draws_SW: Array
    """Each estimate under W draws of the prompts, the same draws for all rows."""
    trained: bool = True


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval. `low` and `high` are nan where there is none."""

    value: float
    low: float
    high: float
    error: float
    """Standard error."""
    freedom: float
    """Degrees of freedom behind it."""


@dataclass(frozen=True)
class Line:
    """A row of the leaderboard, for one figure."""

    name: str
    estimate: Estimate
    change: Estimate | None
    """To the base, paired by prompt."""
    seeds: tuple[float, ...]
    """The value of each training."""
    letters: str
    """Rows that share a letter cannot be told apart; "" where nothing can be said of the cell."""
    claims: bool
    """Whether there are trainings enough to speak of the cell rather than of these runs."""


@dataclass(frozen=True)
class Pair:
    a: str
    b: str
    difference: Estimate
    """a minus b."""
    p: float
    """Corrected for the number of pairs (Holm)."""

    @property
    def separated(self) -> bool:
        return self.p < LEVEL


@dataclass(frozen=True)
class Ranking:
    lines: tuple[Line, ...]
    """Best first."""
    pairs: tuple[Pair, ...]
    of: Literal["cells", "runs"]
    """What the letters speak of. Runs: no cell has trainings enough, so that another seed may turn everything round."""
    pooled: float
    """The spread (standard deviation) between trainings of one cell, over all cells; nan if none has two."""

    def line(self, name: str) -> Line:
        return next(line for line in self.lines if line.name == name)

    @property
    def first_group(self) -> tuple[str, ...]:
        """The best row and all that cannot be told from it."""
        ranked = [line for line in self.lines if line.letters]
        return tuple(line.name for line in ranked if ranked and ranked[0].letters[0] in line.letters)


def rank(rows: Sequence[Sample], units: int, better: Literal["lower", "higher"], base: str | None = None) -> Ranking:
    """Order the rows and say which can be told apart. `units` are the prompts (or pictures) behind the draws; `base` names the floor."""
    spread = _spread(rows)
    of: Literal["cells", "runs"] = "cells" if any(_claims(r) for r in rows if r.trained) else "runs"
    estimates = {
        r.name: _estimate(_mean(r), _error(r.draws_SW.mean(0)), _seeds_parts((r,), spread, of), units) for r in rows
    }
    floor = next((r for r in rows if r.name == base), None)
    compared = [r for r in rows if of == "runs" or _claims(r) or not r.trained]
    pairs = _pairs(compared, spread, units, of)
    sign = 1 if better == "lower" else -1
    order = sorted(rows, key=lambda r: sign * _mean(r))
    apart = {frozenset((p.a, p.b)) for p in pairs if p.separated}
    letters = compact_letters([r.name for r in order if r in compared], apart)
    lines = [
        Line(
            r.name, estimates[r.name], _difference(r, floor, spread, units, of) if floor and r is not floor else None,
            tuple(map(float, r.values_S)), letters.get(r.name, ""), _claims(r) or not r.trained,
        )
        for r in order
    ]  # fmt: skip
    return Ranking(tuple(lines), tuple(pairs), of, math.sqrt(spread[0]) if spread[1] else math.nan)


def _claims(row: Sample) -> bool:
    return row.trained and len(row.values_S) >= SEEDS_TO_CLAIM


def _mean(row: Sample) -> float:
    return float(row.values_S.mean())


def _error(draws_W: Array) -> float:
    """Of the draws that have a value: KID has none where one and the same prompt was drawn every time."""
    draws_W = draws_W[np.isfinite(draws_W)]
    return float(draws_W.std()) if len(draws_W) > 1 else math.nan


def _spread(rows: Iterable[Sample]) -> tuple[float, int]:
    """The variance between trainings of one row, over all rows, and its degrees of freedom."""
    several = [r for r in rows if r.trained and len(r.values_S) > 1]
    freedom = sum(len(r.values_S) - 1 for r in several)
    total = sum(float(r.values_S.var(ddof=1)) * (len(r.values_S) - 1) for r in several)
    return (total / freedom if freedom else 0.0), freedom


Part = tuple[float, float]
"""A variance and its degrees of freedom."""


def _seeds_parts(rows: Sequence[Sample], spread: tuple[float, int], of: str) -> list[Part]:
    """The variance of the rows' means that comes from their few trainings; none where one speaks of these very runs.

    No row is taken to vary less than all do together, and one that varies more has its own variance.
    """
    if of == "runs":
        return []
    own = [max(float(r.values_S.var(ddof=1)), spread[0]) / len(r.values_S) for r in rows if _claims(r)]
    return [(sum(own), spread[1])] if own else []


def _estimate(value: float, prompts_error: float, seeds: Sequence[Part], units: int) -> Estimate:
    """Value and interval: the prompts' variance and the seeds' add up, and so do their degrees of freedom (Satterthwaite)."""
    parts: list[Part] = [(prompts_error**2, max(1, units - 1)), *seeds]
    variance = sum(v for v, _ in parts)
    weight = sum(v * v / f for v, f in parts if v)
    freedom = variance * variance / weight if weight else float(max(1, units - 1))
    error = math.sqrt(variance)
    if not math.isfinite(error):
        return Estimate(value, math.nan, math.nan, math.nan, freedom)
    reach = stats.t_quantile(freedom) * error
    return Estimate(value, value - reach, value + reach, error, freedom)


def _difference(a: Sample, b: Sample, spread: tuple[float, int], units: int, of: str) -> Estimate:
    error = _error(a.draws_SW.mean(0) - b.draws_SW.mean(0))
    return _estimate(_mean(a) - _mean(b), error, _seeds_parts((a, b), spread, of), units)


def _pairs(rows: Sequence[Sample], spread: tuple[float, int], units: int, of: str) -> list[Pair]:
    found = [(a, b, _difference(a, b, spread, units, of)) for a, b in combinations(rows, 2)]
    p_values = [_p_value(d) for _, _, d in found]
    corrected: Sequence[float] = stats.holm(p_values)
    return [Pair(a.name, b.name, d, p) for (a, b, d), p in zip(found, corrected, strict=True)]


def _p_value(d: Estimate) -> float:
    if not math.isfinite(d.error):
        return 1.0
    if d.error == 0:
        return 1.0 if d.value == 0 else 0.0
    return stats.t_p_value(d.value / d.error, d.freedom)


def compact_letters(names: Sequence[str], apart: set[frozenset[str]]) -> dict[str, str]:
    """Letters such that two names share one exactly if they are not in `apart` (insert and absorb, Piepho, 2004). `names` best first,
    so that "a" is the best group."""
    groups: list[set[str]] = [set(names)] if names else []
    for pair in sorted(apart, key=sorted):
        for group in [g for g in groups if pair <= g]:
            groups.remove(group)
            groups += [group - {name} for name in pair]
        groups = [g for i, g in enumerate(groups) if not any(g < h or (g == h and i > j) for j, h in enumerate(groups))]
    place = {name: i for i, name in enumerate(names)}
    groups.sort(key=lambda g: sorted(place[name] for name in g))
    return {name: "".join(_letter(i) for i, g in enumerate(groups) if name in g) for name in names}


def _letter(number: int) -> str:
    """a to z, then A to Z; a leaderboard of more groups than that is no longer read."""
    signs = ascii_lowercase + ascii_lowercase.upper()
    return signs[min(number, len(signs) - 1)]
