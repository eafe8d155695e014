"""Pictures that look alike: a hash of 64 bits for each, and which of many are near to each other. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITS = 64
DISTANCE = 4
"""Up to so many differing bits mean the same picture: another size, format or quality of it. A flipped or cut one is another."""

BROAD = 8
"""So many where the coarse colours are asked, too."""
TONE = 16
"""Look-alikes differ by no more than this, of 255, in any of their coarse colours."""

Values = NDArray[np.uint64]
Hashes = Sequence[int] | Values
Pairs = NDArray[np.intp]
Places = NDArray[np.intp]
RUN = 256
"""More hashes than that with an equal part are compared in blocks."""


def dhash(image: Image.Image) -> int:
    """The difference hash: of 8 rows of 9 grey fields, whether each is brighter than the one to its left.

    A picture without any structure, such as one colour all over, has the hash 0.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX))
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes())


def coarse(image: Image.Image) -> bytes:
    """The mean colours of its 4 x 4 fields, 48 bytes: `dhash` looks at brightness alone, and takes a red square for a blue one."""
    return image.convert("RGB").resize((4, 4), Image.Resampling.BOX).tobytes()


def near(value: int, hashes: Hashes, distance: int = DISTANCE) -> Places:
    """The places in `hashes` of those that differ from `value` in at most `distance` bits, in order."""
    return np.flatnonzero(np.bitwise_count(_array(hashes) ^ np.uint64(value)) <= distance)


def near_pairs(hashes: Hashes, distance: int = DISTANCE) -> Pairs:
    """All pairs (i, j), i < j, of hashes that differ in at most `distance` bits: (P, 2), sorted.

    So many equal hashes have their square of pairs; `groups` is for those.
    """
    values, bands = _array(hashes), _bands(distance)
    found = [pairs for i, band in enumerate(bands) for pairs in _in_band(values, band, bands[:i], distance)]
    if not found:
        return np.empty((0, 2), np.intp)
    both = np.sort(np.concatenate(found, axis=1), axis=0)
    return both[:, np.lexsort(both[::-1])].T


def groups(hashes: Hashes, distance: int = DISTANCE) -> list[list[int]]:
    """The places of hashes that hang together by pairs of at most `distance` bits, two or more in each, in order."""
    values, where = np.unique(_array(hashes), return_inverse=True)
    together = Together(len(values))
    for pair in near_pairs(values, distance).tolist():
        together.join(pair)
    members: dict[int, list[int]] = {}
    for place, i in enumerate(where.tolist()):
        members.setdefault(together.top(i), []).append(place)
    return [places for places in members.values() if len(places) > 1]


class Together:
    """Sets of places that grow together."""

    def __init__(self, count: int) -> None:
        self._above = list(range(count))

    def join(self, places: Sequence[int]) -> None:
        for place in places[1:]:
            self._above[self.top(place)] = self.top(places[0])

    def groups(self) -> list[list[int]]:
        """All sets, those of one place, too, each in order."""
        members: dict[int, list[int]] = {}
        for place in range(len(self._above)):
            members.setdefault(self.top(place), []).append(place)
        return list(members.values())

    def top(self, i: int) -> int:
        """The place that stands for the set of `i`."""
        while self._above[i] != i:
            self._above[i] = self._above[self._above[i]]
            i = self._above[i]
        return i


# ---- in brightness and in colour


class Looks(Protocol):
    """A picture's hashes."""

    @property
    def look(self) -> int:
        """Of `dhash`."""

    @property
    def colours(self) -> bytes:
        """Of `coarse`."""


def lots(items: Sequence[Looks]) -> list[list[int]]:
    """The places of pictures that look like the first of their lot; each is in one lot, and those that are in none are left out."""
    taken, found = set[int](), list[list[int]]()
    for place, near_by in _alike(items):
        lot = [i for i in near_by if i not in taken]
        if place not in taken and len(lot) > 1:
            taken.update(lot)
            found.append(sorted(lot))
    return found


def linked(items: Sequence[Looks]) -> list[list[int]]:
    """The places of pictures that hang together, each looking like another: no two that look alike are in two sets."""
    together = Together(len(items))
    for _, near_by in _alike(items):
        together.join(near_by)
    return [places for places in together.groups() if len(places) > 1]


def tone(a: Looks, b: Looks) -> int:
    """The largest difference in the coarse colours."""
    return int(np.abs(_tones([a, b])[0] - _tones([a, b])[1]).max())


def _alike(items: Sequence[Looks]) -> Iterator[tuple[int, list[int]]]:
    """A picture, and those that look like it, itself first; of each two that look alike one comes with the other."""
    seen = [i for i, item in enumerate(items) if item.look]  # without any structure all look alike
    for group in groups([items[i].look for i in seen], BROAD):
        places = np.asarray([seen[k] for k in group])
        tones = _tones([items[i] for i in places])
        order = np.argsort(tones.mean(1), kind="stable")
        places, tones = places[order], tones[order]
        looks, means = np.asarray([items[i].look for i in places], np.uint64), tones.mean(1)
        ends = np.searchsorted(means, means + TONE, "right")  # what differs more in the mean differs more in a field
        for i, end in enumerate(ends.tolist()):
            near_by = i + np.flatnonzero(np.bitwise_count(looks[i:end] ^ looks[i]) <= BROAD)
            yield int(places[i]), places[near_by[np.abs(tones[near_by] - tones[i]).max(1) <= TONE]].tolist()


def _tones(items: Sequence[Looks]) -> NDArray[np.int16]:
    return np.stack([np.frombuffer(item.colours, np.uint8) for item in items]).astype(np.int16)


def _array(hashes: Hashes) -> Values:
    return np.asarray(hashes, np.uint64)


def _bands(distance: int) -> list[np.uint64]:
    """Masks that cut the bits into `distance` + 1 parts: hashes with fewer differing bits are equal in one of them."""
    if not 0 <= distance < BITS:
        raise ValueError(f"distance {distance} is not from 0 to {BITS - 1}")
    edges = [BITS * i // (distance + 1) for i in range(distance + 2)]
    return [np.uint64(2**high - 2**low) for low, high in pairwise(edges)]


def _in_band(values: Values, band: np.uint64, earlier: Sequence[np.uint64], distance: int) -> Iterator[Pairs]:
    """The near pairs (2, P) among hashes that are equal in `band` and in none of `earlier`, whose pairs are found already."""
    order = np.argsort(values & band, kind="stable")
    values = values[order]
    keys = values & band
    firsts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.empty(0, np.intp)
    sizes = np.diff(np.r_[firsts, len(keys)])
    for first, size in zip(firsts[sizes > RUN].tolist(), sizes[sizes > RUN].tolist(), strict=True):
        for i, j in _in_run(values[first : first + size], distance):
            yield from _unseen(values, order, first + i, first + j, earlier)
    # short runs, all at once: each hash against the next, then the one after that, and so on
    last = np.repeat(firsts + sizes, sizes)
    here, step = np.flatnonzero(np.repeat(sizes, sizes) <= RUN), 1
    while len(here := here[here + step < last[here]]):
        close = here[np.bitwise_count(values[here] ^ values[here + step]) <= distance]
        yield from _unseen(values, order, close, close + step, earlier)
        step += 1


def _in_run(values: Values, distance: int) -> Iterator[tuple[Places, Places]]:
    """The near pairs of a long run, as flat pictures and white margins make it: blocks of rows against all that follows."""
    rows = max(1, 2**18 // len(values))
    for start in range(0, len(values), rows):
        apart = np.bitwise_count(values[start : start + rows, None] ^ values[None, start:])
        i, j = np.divmod(
            np.flatnonzero(apart <= distance), apart.shape[1]
        )  # np.nonzero of two axes takes thrice as long
        yield start + i[i < j], start + j[i < j]


def _unseen(values: Values, order: Places, i: Places, j: Places, earlier: Sequence[np.uint64]) -> Iterator[Pairs]:
    """The pairs without those that are equal in an earlier band, too."""
    if len(i):
        apart = values[i] ^ values[j]
        new = np.logical_and.reduce([np.ones(len(i), bool), *((apart & band) != 0 for band in earlier)])
        yield np.stack([order[i[new]], order[j[new]]])
