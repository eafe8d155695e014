"""How often the judge errs where the truth is known: simulated evaluations, judged by the code that judges runs."""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor

import pytest
from scripts.judging import calibrate

EVALUATIONS = 2000
MARGIN = 2.58 * math.sqrt(0.05 * 0.95 / EVALUATIONS)
"""So far may the share of 2,000 simulated evaluations lie from the true one (99%)."""


def test_a_few_evaluations_without_an_effect() -> None:
    """As a guard for every change; the slow test below is the promise."""
    case = calibrate.Case("no effect, 30 prompts", 30)
    row = calibrate.rates(case, 60, 200, None)
    assert row["answers"]["helped"].get("yes", 0) <= 0.06
    assert row["answers"]["moved"].get("yes", 0) <= 0.1
    assert row["coverage"].keys() >= set(calibrate.PAIRED) - {"validation_loss"}
    assert all(share >= 0.85 for share in row["coverage"].values())


def test_an_effect_is_seen_and_its_size_held() -> None:
    case = calibrate.Case("moved, 48 prompts", 48, effect=1.0)
    row = calibrate.rates(case, 30, 200, None)
    assert row["answers"]["moved"]["yes"] > 0.9
    assert row["coverage"]["kid_target"] >= 0.8 and row["coverage"]["kid_control"] >= 0.8


def test_true_distances_are_those_of_many_pictures() -> None:
    """The closed form of the simulation's truth, against an estimate from 4,000 pictures of each law."""
    case = calibrate.Case("moved", 4000, seeds=1, effect=0.5, real=10)
    found, _ = calibrate.evidence(case, 0)
    import numpy as np

    from sdtune.metrics.kid import kid

    to = np.random.default_rng(1).normal(0, 1, (4000, calibrate.DIMENSIONS))
    to[:, 0] += 2.0
    measured = kid(found.tuned.features_ND, to) - kid(found.base.features_ND, to)
    assert measured == pytest.approx(calibrate.truth(case, "kid_target"), rel=0.07)


@pytest.mark.slow
@pytest.mark.parametrize("case", calibrate.CASES, ids=lambda case: case.name)
def test_the_judge_is_calibrated(case: calibrate.Case) -> None:
    """ "Helped" by chance in at most 5% of 2,000 evaluations, and intervals that hold the truth in 93 to 97% of them."""
    with ProcessPoolExecutor(2) as pool:
        row = calibrate.rates(case, EVALUATIONS, 600, pool)
    if not case.effect:
        assert row["answers"]["helped"].get("yes", 0) <= 0.05
    for key, share in row["coverage"].items():
        assert 0.93 - MARGIN <= share <= 0.97 + MARGIN, key
