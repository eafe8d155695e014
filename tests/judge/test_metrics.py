"""The metrics against formulas written down a second time, and against cases with a known answer."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from sdtune.metrics import content, diversity, frechet, kid, nearest

Array = NDArray[np.float64]


def normal(seed: int, n: int, d: int, shift: float = 0.0) -> Array:
    return np.random.default_rng(seed).normal(shift, 1, (n, d))


def test_kid_is_the_double_loop_of_the_paper() -> None:
    x, y = normal(0, 7, 3), normal(1, 5, 3, 0.5)

    def k(a: Array, b: Array) -> float:
        return float((sum(a[i] * b[i] for i in range(3)) / 3 + 1) ** 3)

    xx = [k(a, b) for a, b in itertools.permutations(x, 2)]
    yy = [k(a, b) for a, b in itertools.permutations(y, 2)]
    xy = [k(a, b) for a in x for b in y]
    expected = sum(xx) / len(xx) + sum(yy) / len(yy) - 2 * sum(xy) / len(xy)
    assert kid.kid(x, y) == pytest.approx(expected, rel=1e-12)


def test_kid_is_unbiased_where_both_sides_are_alike() -> None:
    values = [kid.kid(normal(2 * s, 20, 4), normal(2 * s + 1, 20, 4)) for s in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(len(values))


def test_clustered_kid_of_single_pictures_is_kid() -> None:
    x, y = normal(0, 9, 3), normal(1, 6, 3)
    clustered = kid.ClusteredKid(x, np.arange(9), y, np.arange(9, 15), 15)
    assert clustered()[0] == pytest.approx(kid.kid(x, y), rel=1e-12)


def test_clustered_kid_leaves_out_pairs_of_one_prompt() -> None:
    x, y = normal(0, 6, 3), normal(1, 4, 3)
    gx, gy = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 3, 4])
    weights = np.array([2, 1, 0, 3, 1])

    def mean(a: Array, ga: NDArray[np.int64], b: Array, gb: NDArray[np.int64]) -> float:
        total = count = 0.0
        for i, j in itertools.product(range(len(a)), range(len(b))):
            if ga[i] != gb[j]:
                w = weights[ga[i]] * weights[gb[j]]
                total, count = total + w * (float(a[i] @ b[j]) / 3 + 1) ** 3, count + w
        return total / count

    expected = mean(x, gx, x, gx) + mean(y, gy, y, gy) - 2 * mean(x, gx, y, gy)
    assert kid.ClusteredKid(x, gx, y, gy, 5)(weights[None].astype(float))[0] == pytest.approx(expected, rel=1e-12)


def test_clustered_kid_is_unbiased_though_seeds_are_alike() -> None:
    """Two nearly equal pictures a prompt: the textbook estimate takes them for independent and is too high."""
    groups, textbook = np.repeat(np.arange(12), 2), []
    values = []
    for s in range(300):
        x = np.repeat(normal(2 * s, 12, 3), 2, axis=0) + 0.01 * normal(9000 + s, 24, 3)
        y = normal(2 * s + 1, 24, 3)
        values.append(kid.ClusteredKid(x, groups, y, np.arange(12, 36), 36)()[0])
        textbook.append(kid.kid(x, y))
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error
    assert np.mean(textbook) > 5 * error


def test_frechet_of_normals_with_a_known_answer() -> None:
    """Commuting covariances: |a - b|^2 + sum (sqrt s_i - sqrt t_i)^2. In one dimension (m1 - m2)^2 + (s1 - s2)^2."""
    rotation, _ = np.linalg.qr(normal(3, 4, 4))
    s, t = np.array([4.0, 1.0, 0.25, 9.0]), np.array([1.0, 1.0, 4.0, 0.0])
    a, b = normal(4, 1, 4)[0], normal(5, 1, 4)[0]
    expected = ((a - b) ** 2).sum() + ((np.sqrt(s) - np.sqrt(t)) ** 2).sum()
    got = frechet.frechet_normal(a, rotation * s @ rotation.T, b, rotation * t @ rotation.T)
    assert got == pytest.approx(expected, rel=1e-7)  # the root of a variance of 0, which rounding makes 1e-16
    one = frechet.frechet_normal(np.array([1.0]), np.array([[4.0]]), np.array([3.0]), np.array([[25.0]]))
    assert one == pytest.approx(4 + 9)


def test_frechet_of_covariances_that_do_not_commute() -> None:
    """tr (S T)^(1/2) in two dimensions is sqrt(tr ST + 2 sqrt(det ST))."""
    s, t = np.array([[2.0, 0.3], [0.3, 1.0]]), np.array([[1.0, -0.6], [-0.6, 1.5]])
    cross = math.sqrt(np.trace(s @ t) + 2 * math.sqrt(np.linalg.det(s @ t)))
    got = frechet.frechet_normal(np.zeros(2), s, np.zeros(2), t)
    assert got == pytest.approx(np.trace(s) + np.trace(t) - 2 * cross, rel=1e-9)


def test_frechet_of_samples_takes_unbiased_covariances() -> None:
    x = np.array([[0.0], [2.0]])  # mean 1, variance 2
    y = np.array([[5.0], [9.0]])  # mean 7, variance 8
    assert frechet.frechet(x, y) == pytest.approx(36 + (math.sqrt(8) - math.sqrt(2)) ** 2)
    assert frechet.frechet(normal(0, 30, 5), normal(0, 30, 5)) == pytest.approx(0, abs=1e-9)


def test_rank_bound() -> None:
    assert (frechet.rank_bound(48, 160), frechet.rank_bound(5000, 160)) == (47, 160)


@pytest.mark.parametrize(
    "prompts, stripped",
    [
        (["red apple in line art", "dog in line art", "sun in line art"], ["red apple", "dog", "sun"]),
        (["sks dog", "sks old cat", "sks sun, ink"], ["dog", "old cat", "sun, ink"]),
        (["a dog, ink style", "a cat, ink style", "a sun, ink style"], ["dog", "cat", "sun"]),
        (["a red dog", "a red cat"], ["a red dog", "a red cat"]),  # two share much by chance
        (["dog", "big dog", "old dog"], ["dog", "big dog", "old dog"]),  # never down to nothing
        (["x a y", "x b y", "x a y", "x y y"], ["a", "b", "a", "y"]),
    ],
)
def test_strip_shared(prompts: list[str], stripped: list[str]) -> None:
    assert content.strip_shared(prompts) == stripped


def test_found_first_counts_only_a_strict_win_of_the_own_prompt() -> None:
    prompts = np.eye(3)
    pictures = np.array([[0.9, 0.1, 0.0], [0.6, 0.8, 0.0], [0.5, 0.5, 0.0], [0.0, 0.1, 0.9]])
    asked = np.array([0, 0, 0, 2])
    assert content.found_first(pictures, prompts, asked).tolist() == [1, 0, 0, 1]
    assert content.prompt_cosine(pictures, prompts, asked).tolist() == pytest.approx([0.9, 0.6, 0.5, 0.9])


def test_nearest_is_taken_from_the_centre() -> None:
    """From the origin all of these are alike; from the centre they point in different directions."""
    centre = np.full(3, 100.0)
    train = centre + np.array([[1.0, 0, 0], [0, 1.0, 0]])
    index, cosine = nearest.nearest(centre + np.array([[0.1, 2.0, 0], [3.0, 0, 0]]), train, centre)
    assert index.tolist() == [1, 0]
    assert cosine.tolist() == pytest.approx([2 / math.hypot(0.1, 2), 1])


def test_seed_diversity() -> None:
    x = np.array([[0.0, 0], [3, 4], [1, 1], [1, 1], [9, 9]])
    prompts = np.array([0, 0, 1, 1, 2])
    got = diversity.seed_diversity(x, prompts)
    assert got[:2].tolist() == [5, 0]
    assert math.isnan(got[2])
    assert diversity.between_prompts(np.array([[0.0], [1.0], [5.0]]), np.array([0, 0, 1])) == pytest.approx(4.5)
