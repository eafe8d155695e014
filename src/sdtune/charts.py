"""Curves as what a template draws: lines and axis marks in view-box units. No drawing library, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Chart:
    """A line over steps in view-box units, with its axis marks. Drawn by the template."""

    title: str
    line: str
    faint: str
    ticks_x: tuple[tuple[float, str], ...]
    ticks_y: tuple[tuple[float, str], ...]
    marks: tuple[tuple[float, float, str, str], ...]
    """x, y, text, where the text sits: start or end."""
    words: str
    band: str = ""
    """An area around the line."""


WIDE, HIGH, LEFT, BOTTOM, TOP, RIGHT = 640, 260, 72, 36, 14, 22


def over_steps(
    title: str, steps: Sequence[int], values: Sequence[float], raw: Sequence[float],
    marks: Sequence[tuple[int, str]], words: str, band: Sequence[tuple[float, float]] = (),
) -> Chart:  # fmt: skip
    """`values` as a line over `steps`, `raw` as a faint one behind it; `marks` are (index, text) of points with a name; `band` holds
    (low, high) at each step."""
    around = np.array(raw if len(raw) else [*values, *(v for pair in band for v in pair)])
    low, high = (float(np.quantile(around, q)) for q in ((0.02, 0.98) if len(raw) else (0, 1)))
    values_y = ticks(min(low, *values), max(high, *values))
    low, high = min(values_y[0], low, *values), max(values_y[-1], high, *values)

    def at(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (step - steps[0]) / max(1, steps[-1] - steps[0]) * (WIDE - LEFT - RIGHT)
        y = TOP + (high - min(max(value, low), high)) / (high - low or 1) * (HIGH - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    def path(row: Sequence[float]) -> str:
        stride = max(1, len(row) // 600)
        points = [at(s, v) for s, v in list(zip(steps, row, strict=True))[::stride]]
        return "M" + "L".join(f"{x},{y}" for x, y in points)

    lows, highs = [low for low, _ in band], [high for _, high in band]
    marked = [(*at(steps[i], values[i]), text, "end" if steps[i] > steps[-1] * 0.6 else "start") for i, text in marks]
    return Chart(
        title, path(values), path(raw) if len(raw) else "",
        tuple((at(s, low)[0], f"{s:g}") for s in ticks(steps[0], steps[-1]) if steps[0] <= s <= steps[-1]),
        tuple((at(steps[0], t)[1], f"{t:g}") for t in values_y if low <= t <= high),
        tuple(marked), words, _area(list(map(at, steps, lows)), list(map(at, steps, highs))),
    )  # fmt: skip


def _area(lower: Sequence[tuple[float, float]], upper: Sequence[tuple[float, float]]) -> str:
    points = [*lower, *reversed(upper)]
    return "M" + "L".join(f"{x},{y}" for x, y in points) + "Z" if points else ""


@dataclass(frozen=True)
class Plot:
    """Several lines over one axis in view-box units, with their names. Drawn by the template."""

    title: str
    about: str
    """What the axes are."""
    lines: tuple[tuple[str, str], ...]
    """Name, path."""
    dots: tuple[tuple[float, float, int], ...]
    """x, y, the number of the line."""
    pins: tuple[float, ...]
    """Marked places of the axis."""
    ticks_x: tuple[tuple[float, str], ...]
    ticks_y: tuple[tuple[float, str], ...]
    words: str


Line = tuple[str, Sequence[float], Sequence[float]]
"""Name, x, y. Points without a finite y are left out."""


def plot(
    title: str, about: str, lines: Sequence[Line], words: str, *,
    dots: Sequence[Line] = (), pins: Sequence[float] = (), zero: bool = False, decades: bool = False,
) -> Plot:  # fmt: skip
    """`lines` and points (`dots`, in the order of their lines) on one scale, which begins at 0 with `zero`.

    With `decades` y is a logarithm to base 10. The marks of x are whole numbers.
    """
    points = [p for _, xs, ys in (*lines, *dots) for p in zip(xs, ys, strict=True) if math.isfinite(p[1])]
    (left, right), (low, high) = ((min(v), max(v)) for v in zip(*points or [(0, 0), (1, 1)], strict=True))
    values_y = ticks(0.0 if zero else low, high)
    if decades:
        values_y = [v for v in values_y if v == round(v)] or values_y
    low, high = min(values_y[0], low), max(values_y[-1], high)

    def at(x: float, y: float) -> tuple[float, float]:
        across, down = (x - left) / (right - left or 1), (high - y) / (high - low or 1)
        return round(LEFT + across * (WIDE - LEFT - RIGHT), 1), round(TOP + down * (HIGH - TOP - BOTTOM), 1)

    def path(xs: Sequence[float], ys: Sequence[float]) -> str:
        stride = max(1, len(xs) // 300)
        kept = [at(x, y) for x, y in list(zip(xs, ys, strict=True))[::stride] if math.isfinite(y)]
        return "M" + "L".join(f"{x},{y}" for x, y in kept)

    marked = [
        (*at(x, y), i) for i, (_, xs, ys) in enumerate(dots) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)
    ]
    return Plot(
        title, about, tuple((name, path(xs, ys)) for name, xs, ys in lines), tuple(marked),
        tuple(at(x, low)[0] for x in pins),
        tuple((at(x, low)[0], f"{x:g}") for x in ticks(left, right) if left <= x <= right and x == round(x)),
        tuple((at(left, y)[1], _power(y) if decades else f"{y:g}") for y in values_y), words,
    )  # fmt: skip


def _power(exponent: float) -> str:
    return f"{10.0**exponent:g}" if abs(exponent) <= 4 else f"1e{exponent:.0f}"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that span low to high, at least two."""
    span = (high - low) or abs(high) or 1.0
    size = 10 ** math.floor(math.log10(span / about))
    step = next((size * k for k in (1, 2, 2.5, 5, 10) if span / (size * k) <= about), size * 10)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(k * step, 10) for k in range(first, last + 1)]
