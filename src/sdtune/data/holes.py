"""Holes that an inpainting model learns to fill: random shapes, each a function of its key."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
from numpy.typing import NDArray

Hole = NDArray[np.float32]


def hole(side: int, key: str, number: int) -> Hole:
    """Hole `number` of the picture `key`, (side, side): 1 where it is to be painted. Every fourth, from the first on, is the whole.

    The others are rectangles, ovals and strokes, which cover some 5 to 70 percent.
    """
    if number % 4 == 0:
        return np.ones((side, side), np.float32)
    digest = hashlib.sha256(f"{key}/{number}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8]))
    return {1: _rectangle, 2: _oval, 3: _strokes}[number % 4](side, rng).astype(np.float32)


def _box(side: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Centre and half sides, in cells."""
    half_y, half_x = rng.uniform(0.15, 0.42, 2) * side
    y, x = rng.uniform(half_y, side - half_y), rng.uniform(half_x, side - half_x)
    return y, x, half_y, half_x


def _from_centre(side: int, y: float, x: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    cells = np.arange(side) + 0.5
    return np.abs(cells[:, None] - y), np.abs(cells[None, :] - x)


def _rectangle(side: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    y, x, half_y, half_x = _box(side, rng)
    dy, dx = _from_centre(side, y, x)
    return (dy <= half_y) & (dx <= half_x)


def _oval(side: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    y, x, half_y, half_x = _box(side, rng)
    dy, dx = _from_centre(side, y, x)
    return (dy / half_y) ** 2 + (dx / half_x) ** 2 <= 1


def _strokes(side: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Two brush strokes of a few straight pieces."""
    covered = np.zeros((side, side), np.bool_)
    for _ in range(2):
        points = rng.uniform(0.1, 0.9, (4, 2)) * side
        width = rng.uniform(0.06, 0.12) * side
        for a, b in itertools.pairwise(points):
            for y, x in a + (b - a) * np.linspace(0, 1, 2 * side)[:, None]:
                dy, dx = _from_centre(side, float(y), float(x))
                covered |= dy**2 + dx**2 <= width**2
    return covered
