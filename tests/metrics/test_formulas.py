"""The formulas against themselves written down a second time, and against cases with a known answer."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from sdtune.errors import EvaluationError
from sdtune.metrics import aesthetic, clip_score, cmmd, copying, dino, diversity, drift, frechet, kid, prdc, preference

Array = NDArray[np.float64]


def normal(seed: int, n: int, d: int, shift: float = 0.0) -> Array:
    return np.random.default_rng(seed).normal(shift, 1, (n, d))


# ---- distributions


def test_cmmd_is_the_published_estimate() -> None:
    """The mean over all pairs, those of a picture with itself included, as in the code of the paper."""
    x, y = normal(0, 6, 4), normal(1, 5, 4, 2.0)

    def k(a: Array, b: Array) -> float:
        return math.exp(-sum((a[i] - b[i]) ** 2 for i in range(4)) / (2 * 10**2))

    def mean(p: Array, q: Array) -> float:
        return sum(k(a, b) for a, b in itertools.product(p, q)) / (len(p) * len(q))

    assert cmmd.cmmd(x, y) == pytest.approx(1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)), rel=1e-9)
    assert cmmd.cmmd(x, x) == pytest.approx(0, abs=1e-9)


def test_unbiased_cmmd_is_nought_on_average_and_the_published_one_is_not() -> None:
    pairs = [(normal(2 * s, 12, 3) * 3, normal(2 * s + 1, 12, 3) * 3) for s in range(300)]
    unbiased, published = (np.array([f(x, y) for x, y in pairs]) for f in (cmmd.unbiased, cmmd.cmmd))
    assert abs(unbiased.mean()) < 3 * unbiased.std() / math.sqrt(len(pairs))
    assert published.min() > 0


def test_clustered_cmmd_of_single_pictures_is_the_unbiased_one() -> None:
    x, y = normal(0, 9, 3), normal(1, 6, 3)
    clustered = kid.ClusteredKid(x, np.arange(9), y, np.arange(9, 15), 15, kernel=cmmd.gaussian_kernel)
    assert 1000 * clustered()[0] == pytest.approx(cmmd.unbiased(x, y), rel=1e-9)


def test_published_kid_draws_subsets() -> None:
    x, y = normal(0, 40, 3), normal(1, 50, 3, 0.5)
    mean, deviation = kid.published(x, y, subsets=200, size=20)
    assert mean == pytest.approx(kid.kid(x, y), abs=4 * deviation / math.sqrt(200) + 0.05) and deviation > 0
    assert kid.published(x, y, subsets=3, size=40)[0] != kid.published(x, y, subsets=3, size=40, seed=1)[0]
    everything = kid.published(x, x[::-1], subsets=1, size=40)[0]
    assert everything == pytest.approx(kid.kid(x, x), rel=1e-9)
    with pytest.raises(EvaluationError, match="40 pictures: the published KID draws subsets of 1000"):
        kid.published(x, y)


@pytest.mark.parametrize(("n", "m", "d"), [(5, 7, 30), (20, 12, 6)])
def test_frechet_of_few_pictures_is_the_same(n: int, m: int, d: int) -> None:
    x, y = normal(0, n, d), normal(1, m, d, 0.5) * 2
    assert frechet.frechet_few(x, y) == pytest.approx(frechet.frechet(x, y), rel=1e-6)


def test_frechet_weights_count_pictures() -> None:
    x, y = normal(0, 6, 10), normal(1, 5, 10)
    times = np.array([2, 0, 1, 3, 0, 1])
    assert frechet.frechet_few(x, y, times.astype(float)) == pytest.approx(
        frechet.frechet(np.repeat(x, times, 0), y), rel=1e-6
    )


def test_published_frechet_is_refused_below_its_floor() -> None:
    x, y = normal(0, 10, 4), normal(1, 10, 4)
    with pytest.raises(EvaluationError, match=r"10 pictures: a Frechet distance needs 2,048.*--indicative"):
        frechet.published(x, y)
    assert frechet.published(x, y, indicative=True) == pytest.approx(frechet.frechet(x, y))


def test_prdc_is_its_definition() -> None:
    real, drawn, k = normal(0, 14, 2), normal(1, 11, 2, 0.7), 3

    def reach(x: Array) -> list[float]:
        return [sorted(float(np.linalg.norm(a - b)) for b in x)[k] for a in x]

    r, g = reach(real), reach(drawn)
    d = [[float(np.linalg.norm(a - b)) for b in drawn] for a in real]
    found = prdc.prdc(real, drawn, k)
    assert found.precision == pytest.approx(np.mean([any(d[i][j] < r[i] for i in range(14)) for j in range(11)]))
    assert found.recall == pytest.approx(np.mean([any(d[i][j] < g[j] for j in range(11)) for i in range(14)]))
    assert found.density == pytest.approx(sum(d[i][j] < r[i] for i in range(14) for j in range(11)) / (k * 11))
    assert found.coverage == pytest.approx(np.mean([min(d[i]) < r[i] for i in range(14)]))


def test_prdc_tells_collapse_from_noise() -> None:
    """All drawn pictures alike and good: precise, not varied. All far away: neither."""
    real = normal(0, 200, 3)
    alike = prdc.prdc(real, 0.01 * normal(1, 200, 3))
    assert alike.precision == 1 and alike.coverage < 0.5 and alike.recall < 0.1
    assert prdc.prdc(real, normal(2, 200, 3, 50.0)) == prdc.Prdc(0, 0, 0, 0)
    with pytest.raises(EvaluationError, match="with 5 neighbours at least 6 of each"):
        prdc.prdc(real, real[:5])


# ---- content and likeness


def test_clip_score_is_a_hundred_times_the_cosine_and_never_below_nought() -> None:
    a, b = np.array([[1.0, 0], [1, 1], [1, 0]]), np.array([[2.0, 0], [1, 0], [-1, 0]])
    assert clip_score.clip_score(a, b) == pytest.approx([100, 100 / math.sqrt(2), 0])


def test_likeness_is_the_mean_over_references() -> None:
    pictures, references = np.array([[1.0, 0], [0, 3]]), np.array([[2.0, 0], [0, 1], [1, 1]])
    h = 1 / math.sqrt(2)
    assert dino.likeness(pictures, references) == pytest.approx([(1 + 0 + h) / 3, (0 + 1 + h) / 3])
    assert dino.among(references) == pytest.approx([h / 2, h / 2, h])
    assert np.isnan(dino.among(references[:1])).all()


def test_pickscore_and_hps() -> None:
    a, b = np.array([[3.0, 0], [1, 1]]), np.array([[1.0, 0], [1, 0]])
    h = 1 / math.sqrt(2)
    assert preference.hps_score(a, b) == pytest.approx([1, h])
    assert preference.pick_score(a, b, 100.0) == pytest.approx([100, 100 * h])
    # eq. 2: softmax over two pictures of the scaled scores
    first, second = np.exp(100 * 0.21), np.exp(100 * 0.2)
    assert preference.chosen(np.array([0.21]), np.array([0.2]), 100.0)[0] == pytest.approx(first / (first + second))


def test_win_rate_counts_ties_apart() -> None:
    tuned, base = np.array([1.0, 2, 3, 4, 5, np.nan]), np.array([0.0, 2, 1, 5, 4, 1])
    found = preference.win_rate(tuned, base)
    assert (found.wins, found.losses, found.ties, found.n) == (3, 1, 1, 5)
    assert found.rate.value == 0.75 and found.rate.n == 4
    assert found.p == pytest.approx(2 * (1 + 4) / 16)
    assert preference.win_rate(base[:1], base[:1]).p == 1


def test_aesthetic_of_one_layer_and_of_wrong_files() -> None:
    weight, bias = aesthetic.head({"weight": np.array([[1.0, 2.0]]), "bias": np.array([0.5])})
    assert aesthetic.aesthetic(np.array([[3.0, 4.0]]), weight, bias) == pytest.approx([0.6 + 1.6 + 0.5])
    with pytest.raises(EvaluationError, match=r"has not the layers layers\.0\.weight"):
        aesthetic.head({"layers.0.weight": np.eye(2), "layers.0.bias": np.zeros(2)})
    with pytest.raises(EvaluationError, match="ends in 2 values"):
        aesthetic.head({"weight": np.eye(2), "bias": np.zeros(2)})
    with pytest.raises(EvaluationError, match="take those of clip-l14"):
        aesthetic.aesthetic(np.ones((1, 3)), weight, bias)


# ---- diversity, copies, drift


def test_vendi_counts_different_pictures() -> None:
    assert diversity.vendi(np.eye(5)) == pytest.approx(5)
    assert diversity.vendi(np.ones((5, 3))) == pytest.approx(1)
    assert diversity.vendi(np.repeat(np.eye(3), 4, 0)) == pytest.approx(3)
    many = normal(0, 50, 4)  # more pictures than dimensions
    kernel = (
        (many / np.linalg.norm(many, axis=1, keepdims=True))
        @ (many / np.linalg.norm(many, axis=1, keepdims=True)).T
        / 50
    )
    values = np.linalg.eigvalsh(kernel).clip(1e-300)
    assert diversity.vendi(many) == pytest.approx(math.exp(-(values * np.log(values)).sum()), rel=1e-9)


def test_diversity_of_seeds() -> None:
    prompts = np.array([7, 3, 7, 3, 7, 5])
    i, j = diversity.seed_pairs(prompts)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == [(1, 3), (0, 2), (0, 4), (2, 4)]
    found = diversity.by_prompt(np.array([10.0, 1, 2, 6]), i, prompts)
    assert found[[0, 2]] == pytest.approx([10, 3]) and np.isnan(found[1])
    turned = np.array([[1.0, 0], [1, 0], [0, 1], [1, 0], [1, 0], [1, 0]])
    assert diversity.cosine_diversity(turned, prompts)[[0, 2]] == pytest.approx([0, 2 / 3])


def test_copies_are_flagged_beyond_the_limit() -> None:
    train = np.eye(4)
    drawn = np.array([[1.0, 0.1, 0, 0], [1, 1, 1, 1.1], [0, 0, -1, 0.1]])
    found = copying.copies(drawn, train, held_out_HD=np.array([[1.0, 1, 0, 0], [1, 1, 1, 1]]), limit=0.6)
    assert found.nearest_N.tolist() == [0, 3, 3]
    assert found.flagged_N.tolist() == [True, False, False] and found.share == pytest.approx(1 / 3)
    assert found.held_out == 0.5
    own = copying.copies(drawn, train, held_out_HD=np.array([[1.0, 1, 0, 0]]), limit=None)
    assert own.limit == pytest.approx(1 / math.sqrt(2)) and own.flagged_N.tolist() == [True, False, False]
    assert copying.copies(drawn, train, limit=None).limit == 1.0
    assert math.isnan(copying.copies(drawn, train).held_out)


def test_drift_has_its_yardstick() -> None:
    base = np.array([[1.0, 0], [0, 1], [1, 0], [1, 0]])
    tuned = np.array([[2.0, 0], [1, 0], [1, 1], [-1, 0]])
    assert drift.drift(tuned, base) == pytest.approx([0, 1, 1 - 1 / math.sqrt(2), 2])
    assert drift.between_seeds(base, np.array([0, 0, 1, 1])) == pytest.approx(0.5)
    assert math.isnan(drift.between_seeds(base, np.arange(4)))
