"""The difference hash by hand, what it does not mind, and near pairs against every pair counted."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from PIL import Image

from sdtune.data.likeness import DISTANCE, dhash, groups, near, near_pairs


def scene(seed: int, size: tuple[int, int] = (300, 200)) -> Image.Image:
    """A picture with structure at all scales, as photographs have it."""
    rng = np.random.default_rng(seed)
    layers = [rng.integers(0, 256, (n, n, 3)) for n in (4, 9, 20)]
    whole = sum(np.asarray(Image.fromarray(x.astype(np.uint8)).resize(size, 3), float) / 3 for x in layers)
    return Image.fromarray(np.asarray(whole, np.uint8))


def hashes(n: int, seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Random hashes, each third one a few bits from another."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2**64, n, dtype=np.uint64)
    for i in range(0, n - 1, 3):
        bits = rng.choice(64, rng.integers(0, 8), replace=False)
        values[i] = values[rng.integers(i + 1, n)] ^ np.uint64(sum(1 << int(b) for b in bits))
    return values


def by_counting(values: np.ndarray[tuple[int], np.dtype[np.uint64]], distance: int) -> list[list[int]]:
    apart = np.bitwise_count(values[:, None] ^ values[None, :])
    return [[i, j] for i, j in np.argwhere(apart <= distance).tolist() if i < j]


def test_hash_by_hand() -> None:
    rows = np.zeros((8, 9), np.uint8)
    rows[0] = [0, 1, 2, 2, 1, 5, 5, 4, 9]  # rises: yes yes no no yes no no yes
    rows[7, 8] = 1
    assert dhash(Image.fromarray(rows)) == 0b11001001 << 56 | 1
    assert dhash(Image.fromarray(rows).convert("RGB")) == 0b11001001 << 56 | 1
    assert dhash(Image.new("RGB", (50, 30), "red")) == 0


@pytest.mark.parametrize("seed", range(5))
def test_size_format_and_quality_hardly_matter(seed: int) -> None:
    picture, file = scene(seed), io.BytesIO()
    picture.resize((150, 100)).save(file, "JPEG", quality=60)
    other = Image.open(file)
    assert (dhash(picture) ^ dhash(other)).bit_count() <= DISTANCE
    assert (dhash(picture) ^ dhash(scene(seed + 100))).bit_count() > 3 * DISTANCE
    assert (dhash(picture) ^ dhash(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))).bit_count() > 3 * DISTANCE


def test_near() -> None:
    assert near(0b1111, [0, 1, 0b11111 << 59, 0b11111, 2**64 - 1], 4).tolist() == [0, 1, 3]
    assert near(5, []).tolist() == []


@pytest.mark.parametrize("distance", [0, 1, 4, 9, 20])
def test_near_pairs_are_all_pairs(distance: int) -> None:
    values = hashes(400)
    found = near_pairs(values, distance)
    assert found.tolist() == by_counting(values, distance)
    assert distance == 0 or len(found) > 10
    assert near_pairs([int(v) for v in values], distance).tolist() == found.tolist()


def test_near_pairs_where_many_share_a_part() -> None:
    """White margins: more than a run of hashes with bands that are equal, and copies among them."""
    values = hashes(1500, 1)
    values[:900] &= np.uint64(0x0000_FFFF_FFFF_0000)
    values[100:120] = values[99]
    assert near_pairs(values, 4).tolist() == by_counting(values, 4)


@pytest.mark.parametrize("few", [[], [7], [7, 7]])
def test_near_pairs_of_few(few: list[int]) -> None:
    assert near_pairs(few).tolist() == ([[0, 1]] if len(few) == 2 else [])
    assert groups(few) == ([[0, 1]] if len(few) == 2 else [])


def test_groups_hang_together_by_pairs() -> None:
    assert groups([0, 2**40 - 1, 0b11, 0b1111, 2**40 - 1, 0b111 << 61], 2) == [[0, 2, 3], [1, 4]]
    assert groups([0] * 50_000) == [list(range(50_000))]  # as pairs: more than a thousand million


def test_distance_is_bounded() -> None:
    with pytest.raises(ValueError, match="distance 64 is not from 0 to 63"):
        near_pairs([1], 64)


def test_a_hundred_thousand_take_seconds() -> None:
    """CPU time; all pairs counted would take minutes."""
    values = hashes(100_000, 2)
    values[:5000] &= np.uint64(0x0000_FFFF_FFFF_0000)
    began = time.process_time()
    found = near_pairs(values)
    assert time.process_time() - began < 10
    assert len(found) > 10_000
