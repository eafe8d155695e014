"""Pictures in other colours: always the same, as much as asked for, and the first as it is."""

from __future__ import annotations

import numpy as np
import pytest

from sdtune.data.images import Pixels
from sdtune.data.jitter import jittered
from tests import tiny


@pytest.fixture(scope="module")
def square() -> Pixels:
    return np.asarray(tiny.picture(1))


def away(a: Pixels, b: Pixels) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def test_the_first_and_strength_zero_are_the_picture_itself(square: Pixels) -> None:
    assert np.array_equal(jittered(square, 0.5, "k", 0), square) and np.array_equal(jittered(square, 0, "k", 1), square)


def test_the_same_key_gives_the_same_pixels_and_each_number_others(square: Pixels) -> None:
    made = [jittered(square, 0.2, "k", n) for n in (1, 1, 2)] + [jittered(square, 0.2, "other", 1)]
    assert np.array_equal(made[0], made[1]) and made[0].dtype == np.uint8 and made[0].shape == square.shape
    assert min(away(made[0], made[2]), away(made[0], made[3]), away(made[2], made[3])) > 1


def test_golden_values(square: Pixels) -> None:
    small = square[8:24:15, 8:24:15].reshape(-1, 3)
    assert small.tolist() == [[196, 233, 100], [104, 97, 145], [212, 152, 139], [183, 198, 133]]
    made = jittered(square, 0.3, "golden", 1)[8:24:15, 8:24:15].reshape(-1, 3)
    assert made.tolist() == [[240, 255, 157], [127, 121, 163], [242, 190, 177], [222, 236, 179]]


@pytest.mark.parametrize("key", list("abcdef"))
def test_more_strength_is_more_change_within_bounds(square: Pixels, key: str) -> None:
    changes = [away(jittered(square, s, key, 1), square) for s in (0.02, 0.05, 0.1, 0.2, 0.4)]
    assert changes == sorted(changes) and changes[0] > 0
    assert all(change <= 3.2 * s * 128 for change, s in zip(changes, (0.02, 0.05, 0.1, 0.2, 0.4), strict=True))


def test_grey_stays_grey_and_no_way_is_preferred() -> None:
    grey = np.full((4, 4, 3), 120, np.uint8)
    made = np.stack([jittered(grey, 0.2, "k", n) for n in range(1, 200)]).astype(int)
    assert (np.ptp(made, -1) <= 1).all()
    levels = made.mean((1, 2, 3))
    assert 96 <= levels.min() < 100 and 140 < levels.max() <= 144 and abs(levels.mean() - 120) < 3


def test_colours_turn_by_a_tenth_of_the_strength_at_most() -> None:
    red = np.zeros((2, 2, 3), np.uint8) + np.array([200, 60, 60], np.uint8)
    hues = []
    for n in range(1, 200):
        r, g, b = jittered(red, 0.2, "k", n)[0, 0] / 255.0
        hues.append(float(np.degrees(np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b))))
    # 0.02 of the circle is 7 degrees in YIQ, 10 of a red's hue
    assert 7 < max(np.abs(hues)) < 11 and abs(np.mean(hues)) < 1
