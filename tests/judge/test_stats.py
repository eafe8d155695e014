"""Intervals and tests against published figures, and by simulation."""

import math

import numpy as np
import pytest

from sdtune import stats


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


def test_bootstrap_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for s in range(400):
        i = stats.bootstrap_mean(rng.normal(1, 1, 40), 300, seed=s)
        inside += i.low <= 1 <= i.high
    assert 0.90 < inside / 400 < 0.98  # 95% nominal; percentile intervals of 40 are a little short


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
