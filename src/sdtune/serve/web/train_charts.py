"""Curves of a training as options of an ECharts chart, and in words for those who do not see it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sdtune.serve.work import Curves

POINTS = 500
"""Of a curve on the page; more would not be seen, and be sent again and again."""
_TEXT = {"color": "var(--soft)", "fontSize": 12}
_LINE = {"lineStyle": {"color": "var(--line)"}}


def options(curves: Curves, *, log: bool = False, raw: bool = True) -> dict[str, Any]:
    """Loss smoothed, on wish as it was logged, and validation with its lowest point. Colours are the page's, in both modes."""
    steps, loss = thinned(curves.step, POINTS), thinned(curves.loss, POINTS)
    smooth = thinned(smoothed(curves.loss), POINTS)
    axis = {"axisLabel": _TEXT, "axisLine": _LINE, "splitLine": _LINE, "nameTextStyle": _TEXT}
    return {
        "animation": False,
        "grid": {"left": 8, "right": 16, "top": 40, "bottom": 8, "containLabel": True},
        "legend": {"top": 0, "left": 0, "textStyle": {"color": "var(--ink)", "fontSize": 13}, "itemGap": 18},
        "tooltip": {
            "trigger": "axis", "backgroundColor": "var(--card)", "borderColor": "var(--line)", "textStyle": {"color": "var(--ink)"},
            "axisPointer": {"lineStyle": {"color": "var(--soft)"}},
        },
        "xAxis": {"type": "value", "min": 0, "max": max([*curves.step, *curves.validation_step, 1]), **axis, "splitLine": {"show": False}},
        "yAxis": {"type": "log" if log else "value", "scale": True, **axis},
        "series": [
            _line("loss", _pairs(steps, smooth), "var(--accent)", width=2.5),
            _line("loss, each step", _pairs(steps, loss) if raw else [], "var(--soft)", width=1, opacity=0.45),
            _validation(curves),
        ],
    }  # fmt: skip


def _line(name: str, data: list[list[float]], colour: str, *, width: float, opacity: float = 1.0) -> dict[str, Any]:
    return {
        "name": name, "type": "line", "data": data, "showSymbol": False, "color": colour,
        "lineStyle": {"width": width, "opacity": opacity, "color": colour}, "itemStyle": {"color": colour},
        "emphasis": {"disabled": True},
    }  # fmt: skip


def _validation(curves: Curves) -> dict[str, Any]:
    data = _pairs(curves.validation_step, curves.validation)
    line = _line("validation loss", data, "var(--good)", width=2)
    if data:
        step, value = min(data, key=lambda pair: pair[1])
        best = {"coord": [step, value], "symbol": "circle", "symbolSize": 11, "label": {"show": False}}
        line["markPoint"] = {"data": [best], "itemStyle": {"color": "var(--good)"}, "animation": False, "silent": True}
    return {**line, "showSymbol": True, "symbolSize": 6}


def _pairs(steps: Sequence[float], values: Sequence[float]) -> list[list[float]]:
    """Points that can be drawn: without those that are no numbers."""
    return [[s, round(v, 5)] for s, v in zip(steps, values, strict=True) if math.isfinite(v)]


def smoothed(values: Sequence[float], share: float = 0.04) -> list[float]:
    """An exponential mean over about `share` of all values, without the pull towards the first."""
    span = max(5.0, len(values) * share)
    keep, mean, weight, out = 1 - 1 / span, 0.0, 0.0, list[float]()
    for value in values:
        if math.isfinite(value):
            mean, weight = keep * mean + value, keep * weight + 1
        out.append(mean / weight if weight else value)
    return out


def thinned(values: Sequence[float], most: int) -> list[float]:
    """At most so many of them, evenly, the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def words(curves: Curves) -> str:
    """What the curves say, in a sentence or two."""
    if not curves.step and not curves.validation:
        return "No step has been taken yet."
    told = list[str]()
    if curves.step:
        mean = smoothed(curves.loss)
        told.append(
            f"Loss {mean[min(len(mean) - 1, 4)]:.4g} at the beginning, {mean[-1]:.4g} at step {curves.step[-1]}."
        )
    if curves.validation:
        best = min(range(len(curves.validation)), key=lambda i: curves.validation[i])
        told.append(
            f"Validation loss {curves.validation[0]:.4g} at step {curves.validation_step[0]}, {curves.validation[-1]:.4g} at step "
            f"{curves.validation_step[-1]}, lowest {curves.validation[best]:.4g} at step {curves.validation_step[best]}."
        )
    return " ".join(told)
