"""What can be told apart: groups, intervals, and how often chance alone is taken for a difference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sdtune import stats
from sdtune.experiments.leaderboard import Ranking, Sample, compact_letters, rank

Array = NDArray[np.float64]
PROMPTS, DRAWS = 24, 60


def rows(
    rng: np.random.Generator, effects: Sequence[float], *, seeds: int = 3, seed_sd: Sequence[float] | float = 0.3,
    prompt_sd: float = 1.0, noise: float = 0.3, base: bool = False,
) -> list[Sample]:  # fmt: skip
    """Cells whose prompts, trainings and pictures vary independently."""
    weights = stats.resample(np.zeros(PROMPTS, np.int64), DRAWS, int(rng.integers(1_000_000))) / PROMPTS
    prompt = rng.normal(0, prompt_sd, PROMPTS)
    spread = np.broadcast_to(seed_sd, len(effects))

    def one(shift: float) -> Array:
        return np.asarray(prompt + shift + rng.normal(0, noise, PROMPTS), np.float64)

    out = []
    for k, effect in enumerate(effects):
        table = np.stack([one(effect + rng.normal(0, spread[k])) for _ in range(seeds)])
        out.append(Sample(f"c{k}", table.mean(1), table @ weights.T))
    if base:
        floor = one(0.0)[None]
        out.append(Sample("base", floor.mean(1), floor @ weights.T, trained=False))
    return out


@pytest.mark.parametrize(
    ("seed_sd", "noise"), [(0.0, 0.5), (1.0, 0.05), ((3.0, 1.0, 1.0, 1.0), 0.05)], ids=["prompts", "seeds", "one varies more"]
)  # fmt: skip
def test_no_effect_is_seldom_taken_for_one(seed_sd: float | Sequence[float], noise: float) -> None:
    rng = np.random.default_rng(0)
    trials = 60
    wrong = sum(
        any(p.separated for p in rank(rows(rng, [0.0] * 4, seed_sd=seed_sd, noise=noise), PROMPTS, "lower").pairs)
        for _ in range(trials)
    )
    assert wrong <= 8  # 5% would be 3; fewer than 1 in 100 such tests have more than 8


def test_an_effect_of_many_seed_spreads_is_found() -> None:
    rng = np.random.default_rng(1)
    found = [rank(rows(rng, [-3.0, 0.0, 0.0, 0.0]), PROMPTS, "lower") for _ in range(20)]
    assert sum(r.first_group == ("c0",) for r in found) >= 18


def test_intervals_of_differences_hold_the_truth() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(100):
        line = rank(rows(rng, [-1.0, 0.0, 0.5], base=True), PROMPTS, "lower", "base").line("c0")
        assert line.change is not None
        held += line.change.low <= -1.0 <= line.change.high
    assert held >= 88


def test_changes_are_paired_by_prompt() -> None:
    """What prompts have in common falls out of the change, not out of the value."""
    ranking = rank(
        rows(np.random.default_rng(3), [0.0] * 3, seed_sd=0.0, prompt_sd=5.0, base=True), PROMPTS, "lower", "base"
    )
    line = ranking.line("c1")
    assert line.change is not None and line.change.error < line.estimate.error / 5


def test_higher_may_be_better() -> None:
    made = rows(np.random.default_rng(4), [0.0, 5.0, -5.0], seed_sd=0.1)
    assert [line.name for line in rank(made, PROMPTS, "higher").lines] == ["c1", "c0", "c2"]
    assert [line.name for line in rank(made, PROMPTS, "lower").lines] == ["c2", "c0", "c1"]


def test_a_cell_of_few_trainings_is_ranked_without_a_claim() -> None:
    rng = np.random.default_rng(5)
    made = rows(rng, [0.0, 0.0])
    short = rows(rng, [-9.0], seeds=2)[0]
    made.append(Sample("short", short.values_S, short.draws_SW[:, :DRAWS]))
    ranking = rank(made, PROMPTS, "lower")
    assert ranking.of == "cells"
    assert (ranking.line("short").letters, ranking.line("short").claims) == ("", False)
    assert all("short" not in (p.a, p.b) for p in ranking.pairs)
    assert "short" not in ranking.first_group


def test_without_trainings_enough_the_letters_speak_of_runs() -> None:
    ranking = rank(rows(np.random.default_rng(6), [0.0, -4.0], seeds=1), PROMPTS, "lower")
    assert ranking.of == "runs" and ranking.first_group == ("c1",)
    assert not any(line.claims for line in ranking.lines) and math.isnan(ranking.pooled)


def test_a_draw_without_a_value_takes_no_interval_away() -> None:
    """KID has none where one prompt was drawn every time, as happens with few of them."""
    whole = rows(np.random.default_rng(9), [0.0, -4.0], seeds=1)
    holed = [Sample(s.name, s.values_S, np.where(np.arange(DRAWS) == 7, np.nan, s.draws_SW)) for s in whole]
    ranking = rank(holed, PROMPTS, "lower")
    assert ranking.first_group == ("c1",) and all(math.isfinite(line.estimate.error) for line in ranking.lines)
    assert ranking.pairs[0].separated


def test_equal_rows_are_not_told_apart() -> None:
    one = rows(np.random.default_rng(7), [0.0], seeds=1)[0]
    ranking = rank([one, Sample("twin", one.values_S, one.draws_SW)], PROMPTS, "lower")
    assert [line.letters for line in ranking.lines] == ["a", "a"] and ranking.pairs[0].p == 1.0


def test_one_row_is_a_leaderboard() -> None:
    ranking: Ranking = rank(rows(np.random.default_rng(8), [0.0]), PROMPTS, "lower")
    assert [line.letters for line in ranking.lines] == ["a"] and not ranking.pairs


# ---- letters


def test_letters_of_a_chain() -> None:
    """a and c differ, b is like both."""
    assert compact_letters(["a", "b", "c"], {frozenset("ac")}) == {"a": "a", "b": "ab", "c": "b"}


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # it may wait for a busy machine
@given(st.sets(st.frozensets(st.sampled_from("abcdefg"), min_size=2, max_size=2)))
def test_two_rows_share_a_letter_exactly_if_they_are_not_apart(apart: set[frozenset[str]]) -> None:
    letters = compact_letters(list("abcdefg"), apart)
    for pair in (frozenset((a, b)) for a in "abcdefg" for b in "abcdefg" if a < b):
        a, b = pair
        assert bool(set(letters[a]) & set(letters[b])) == (pair not in apart)
    assert letters["a"].startswith("a")


# ---- the statistics behind it


@pytest.mark.parametrize(
    ("t", "freedom", "p"), [(2.776445, 4, 0.05), (12.7062, 1, 0.05), (2.1199, 16, 0.05), (4.604095, 4, 0.01)]
)
def test_student_t(t: float, freedom: float, p: float) -> None:
    assert stats.t_p_value(t, freedom) == pytest.approx(p, rel=1e-4)
    assert stats.t_p_value(-t, freedom) == stats.t_p_value(t, freedom)


@pytest.mark.parametrize(("freedom", "t"), [(2, 4.302653), (4, 2.776445), (16, 2.119905), (95, 1.985251)])
def test_quantiles_of_student_t(freedom: float, t: float) -> None:
    assert stats.t_quantile(freedom) == pytest.approx(t, rel=1e-6)


def test_holm() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
