"""Intervals and tests against published figures, and by simulation."""

import dataclasses
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from sdtune import stats
from sdtune.metrics import kid


@pytest.mark.parametrize(
    "n, effect", [(10, 1.00), (20, 0.66), (30, 0.53), (50, 0.40), (100, 0.28), (200, 0.20), (500, 0.13), (1000, 0.09)]
)
def test_detectable_effect_of_a_paired_t_test(n: int, effect: float) -> None:
    assert round(stats.detectable_effect(n), 2) == effect


def test_detectable_effect_has_the_power_it_claims() -> None:
    n, rng = 12, np.random.default_rng(0)
    x = rng.normal(stats.detectable_effect(n), 1, (20000, n))
    t = x.mean(1) / (x.std(1, ddof=1) / math.sqrt(n))
    assert (np.abs(t) > 2.200985).mean() == pytest.approx(0.8, abs=0.01)  # the quantile of t with 11 degrees of freedom


@pytest.mark.parametrize(
    "wins, n", [(9, 10), (15, 20), (21, 30), (33, 50), (61, 100), (115, 200), (273, 500), (532, 1000)]
)
def test_sign_test_needs_so_many_wins(wins: int, n: int) -> None:
    assert stats.sign_test(wins, n - wins) < 0.05
    assert stats.sign_test(wins - 1, n - wins + 1) >= 0.05
    assert stats.sign_test(0, 0) == 1


def test_share_has_the_exact_interval() -> None:
    nothing = stats.share(0, 48)
    assert nothing.low == 0
    assert nothing.high == pytest.approx(1 - 0.025 ** (1 / 48), abs=1e-9)
    some = stats.share(4, 50)  # 0.0222 to 0.1923, the tables' values
    assert some.low == pytest.approx(0.0222, abs=1e-4)
    assert some.high == pytest.approx(0.1923, abs=1e-4)


def test_resampling_keeps_each_stratum_at_its_size() -> None:
    weights = stats.resample(np.array([0, 0, 0, 1, 1]), 50, seed=1)
    assert (weights[:, :3].sum(1) == 3).all()
    assert (weights[:, 3:].sum(1) == 2).all()
    assert (weights == stats.resample(np.array([0, 0, 0, 1, 1]), 50, seed=1)).all()
    assert not (weights == stats.resample(np.array([0, 0, 0, 1, 1]), 50, seed=2)).all()


@pytest.mark.parametrize("n, t", [(10, 2.262157), (24, 2.068658)])
def test_bootstrap_intervals_hold_the_truth_as_often_as_those_of_a_t_test(n: int, t: float) -> None:
    rng, inside, exact, plain = np.random.default_rng(0), 0, 0, 0
    for s in range(500):
        x = rng.normal(1, 1, n)
        i = stats.bootstrap_mean(x, 1000, seed=s % 9)
        inside += i.low <= 1 <= i.high
        exact += abs(x.mean() - 1) <= t * x.std(ddof=1) / math.sqrt(n)
        plain += abs(x.mean() - 1) <= 1.96 * x.std() / math.sqrt(n)
    assert inside / 500 == pytest.approx(exact / 500, abs=0.02)
    assert n > 20 or plain < inside - 8  # what a plain percentile interval would be, nearly


def test_a_p_value_goes_with_its_interval() -> None:
    x = np.random.default_rng(3).normal(0.3, 1, 30)
    found = stats.bootstrap_mean(x, 20_000)
    t = x.mean() / (x.std(ddof=1) / math.sqrt(30))
    assert found.p == pytest.approx(2 * 0.0548, abs=0.2)
    at_bound = dataclasses.replace(found, value=found.value - found.low)
    assert at_bound.p == pytest.approx(0.05, abs=0.01)
    assert stats.Interval(t, 0, 0, 30, math.sqrt(29 / 30)).p == pytest.approx(found.p, abs=0.01)
    assert math.isnan(stats.Interval(1.0, math.nan, math.nan, 1, math.nan).p)
    assert stats.Interval(0.0, 0.0, 0.0, 9).p == 1


def test_p_values_are_uniform_without_an_effect() -> None:
    rng = np.random.default_rng(1)
    p = np.array([stats.bootstrap_mean(rng.normal(0, 1, 12), 400, seed=s).p for s in range(1000)])
    assert [(p < level).mean() for level in (0.05, 0.2, 0.5)] == pytest.approx([0.05, 0.2, 0.5], abs=0.03)


def test_holm_corrects_for_several() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm's step-down by hand
    assert stats.holm([0.5, 0.9]) == [1.0, 1.0]
    assert stats.holm([]) == []
    kept = stats.holm([math.nan, 0.02])
    assert math.isnan(kept[0])
    assert kept[1] == 0.02


def test_seeds_of_a_prompt_are_one_unit() -> None:
    """Four equal seeds a prompt say no more than one: the interval must not shrink."""
    prompts = np.random.default_rng(0).normal(size=20)
    pictures, group = np.repeat(prompts, 4), np.repeat(np.arange(20), 4)
    one = stats.bootstrap_mean(prompts, seed=3)
    assert stats.bootstrap_mean(stats.group_means(pictures, group, 20), seed=3) == one
    assert one.error == pytest.approx(prompts.std() / math.sqrt(20), rel=0.1)
    assert one.detectable == pytest.approx(stats.detectable_effect(20) * prompts.std(), rel=0.1)


def test_nothing_can_be_said_of_one_unit() -> None:
    i = stats.bootstrap_mean(np.array([3.0, math.nan]))
    assert (i.value, i.n) == (3.0, 1)
    assert math.isnan(i.low)
    assert math.isnan(i.high)


def pairs(x_N: NDArray[np.float64], kernel: NDArray[np.float64], weights_WN: NDArray[np.float64]) -> stats.PairMean:
    """The mean of a kernel (N, N) over all pairs of units, drawn again."""
    n, off = len(x_N), kernel * (1 - np.eye(len(x_N)))
    count = (weights_WN**2).sum(1)
    draws = np.einsum("wi,ij,wj->w", weights_WN, off, weights_WN) / (n**2 - count)
    mean = off.sum() / (n * (n - 1))
    form = (off - mean * (1 - np.eye(n))) / (n * (n - 1))
    return stats.PairMean(mean, draws, form, np.zeros(n, np.int64))


def test_draws_of_a_mean_over_pairs_count_what_is_of_pairs_alone_three_times() -> None:
    """The mean of x y over pairs of mean 0 is of pairs alone: it varies by 2 / n(n-1)."""
    rng, n, found = np.random.default_rng(0), 40, []
    many = rng.standard_normal((20000, n))
    values = (many.sum(1) ** 2 - (many**2).sum(1)) / (n * (n - 1))
    weights = stats.resample(np.zeros(n, np.int64), 1000, 0)
    for _ in range(200):
        x = rng.standard_normal(n)
        mean = pairs(x, np.outer(x, x), weights)
        found.append((mean.draws_W.var(), stats.pair_variance(mean.form_CC, mean.strata)))
    drawn, alone = np.array(found).T
    true = 2 / (n * (n - 1))
    assert values.var() == pytest.approx(true, rel=0.05)
    assert drawn.mean() / true == pytest.approx(3, abs=0.4)
    assert alone.mean() / true == pytest.approx(1, abs=0.15)


def test_a_mean_over_pairs_that_is_of_units_alone_is_not_narrowed() -> None:
    x = np.random.default_rng(0).standard_normal(30)
    weights = stats.resample(np.zeros(30, np.int64), 500, 0)
    mean = pairs(x, x[:, None] + x, weights)
    assert stats.pair_variance(mean.form_CC, mean.strata) == pytest.approx(0, abs=1e-20)
    ours, plain = mean.interval(30), stats.interval(mean.value, mean.draws_W, 30)
    assert dataclasses.astuple(ours) == pytest.approx(dataclasses.astuple(plain))
    two = np.repeat([0, 1], 15)  # nor where the units are of two kinds
    assert stats.pair_variance(mean.form_CC, two) == pytest.approx(0, abs=1e-20)


def test_kid_as_a_form_is_its_second_order() -> None:
    """w' H w against the estimate itself, for clusters of unequal size that are drawn a little more or less often."""
    rng = np.random.default_rng(0)
    x, y, own = rng.normal(0, 1, (14, 5)), rng.normal(0.5, 1, (9, 5)), np.repeat(np.arange(7), 2)
    of_y = np.array([0, 1, 2, 7, 8, 9, 10, 11, 12])
    estimate, strata = kid.ClusteredKid(x, own, y, of_y, 13), np.repeat([0, 1], [7, 6])
    made = estimate.drawn_again(np.ones((1, 13)), strata, 2.0)
    assert (made.form_CC == made.form_CC.T).all() and not np.diag(made.form_CC).any()
    direction = rng.standard_normal(13)
    direction -= stats.group_means(direction, strata, 2)[strata]
    for step in (1e-3, 1e-2):
        w = 1 + step * direction
        moved = 2 * float(estimate(w[None])[0]) - made.value
        assert moved == pytest.approx(w @ made.form_CC @ w, rel=30 * step)


def test_intervals_of_kid_hold_the_truth_where_two_models_are_alike() -> None:
    """Both models draw by one law, nearly the pictures of each other: plain draws held 0 in 98 of 100, which is too often."""
    rng, n, held = np.random.default_rng(1), 30, np.zeros(2)
    strata = np.repeat([0, 1], [n, 40])
    weights, runs = stats.resample(strata, 300, 0), 400
    for _ in range(runs):
        y, shared = rng.normal(1, 1, (40, 8)), rng.normal(0.9, 0.8, (n, 8))
        a, b = (
            kid.ClusteredKid(shared + rng.normal(0, 0.6, (n, 8)), np.arange(n), y, np.arange(n, n + 40), n + 40)
            for _ in range(2)
        )
        d = b.drawn_again(weights, strata) - a.drawn_again(weights, strata)
        held += [i.low <= 0 <= i.high for i in (d.interval(n), stats.interval(d.value, d.draws_W, n))]
    ours, plain = held / runs
    assert 0.92 <= ours <= 0.975 < plain
