"""Holes that an inpainting model learns to fill: random shapes, each a function of its key."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
from numpy.typing import NDArray

Hole = NDArray[np.float32]
Shape = tuple[int, int]


def hole(shape: Shape, key: str, number: int) -> Hole:
    """Hole `number` of the picture `key`, of `shape` (height, width): 1 where it is to be painted.

    Every fourth, from the first on, is the whole. The others are rectangles, ovals and strokes, which cover some 5 to 70 percent.
    """
    if number % 4 == 0:
        return np.ones(shape, np.float32)
    digest = hashlib.sha256(f"{key}/{number}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8]))
    return {1: _rectangle, 2: _oval, 3: _strokes}[number % 4](shape, rng).astype(np.float32)


def _box(shape: Shape, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Centre and half sides, in cells."""
    half_y, half_x = rng.uniform(0.15, 0.42, 2) * shape
    y, x = rng.uniform(half_y, shape[0] - half_y), rng.uniform(half_x, shape[1] - half_x)
    return y, x, half_y, half_x


def _from_centre(shape: Shape, y: float, x: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.abs(np.arange(shape[0])[:, None] + 0.5 - y), np.abs(np.arange(shape[1])[None, :] + 0.5 - x)


def _rectangle(shape: Shape, rng: np.random.Generator) -> NDArray[np.bool_]:
    y, x, half_y, half_x = _box(shape, rng)
    dy, dx = _from_centre(shape, y, x)
    return (dy <= half_y) & (dx <= half_x)


def _oval(shape: Shape, rng: np.random.Generator) -> NDArray[np.bool_]:
    y, x, half_y, half_x = _box(shape, rng)
    dy, dx = _from_centre(shape, y, x)
    return (dy / half_y) ** 2 + (dx / half_x) ** 2 <= 1


def _strokes(shape: Shape, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Two brush strokes of a few straight pieces."""
    covered = np.zeros(shape, np.bool_)
    for _ in range(2):
        points = rng.uniform(0.1, 0.9, (4, 2)) * shape
        width = rng.uniform(0.06, 0.12) * min(shape)
        for a, b in itertools.pairwise(points):
            for y, x in a + (b - a) * np.linspace(0, 1, 2 * max(shape))[:, None]:
                dy, dx = _from_centre(shape, float(y), float(x))
                covered |= dy**2 + dx**2 <= width**2
    return covered
