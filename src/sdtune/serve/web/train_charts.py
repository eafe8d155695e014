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
_LEGEND = {
    "top": 0, "left": 0, "textStyle": {"color": "var(--ink)", "fontSize": 13}, "itemGap": 16, "itemWidth": 16, "icon": "roundRect",
}  # fmt: skip
_AXIS = {"axisLabel": _TEXT, "axisLine": _LINE, "splitLine": _LINE}


def options(curves: Curves, *, log: bool = False, raw: bool = True) -> dict[str, Any]:
    """Above, the loss, smoothed and on wish as it was logged; below, of its own measure, validation with its lowest point.

    Colours are the page's, in both modes.
    """
    steps, loss = thinned(curves.step, POINTS), thinned(curves.loss, POINTS)
    smooth = thinned(smoothed(curves.loss), POINTS)
    has = bool(curves.validation)
    return {
        "animation": False,
        "grid": [_place(34, "46%" if has else 26), _place("62%" if has else "100%", 26)],
        "legend": _LEGEND,
        "tooltip": {
            "trigger": "axis", "backgroundColor": "var(--card)", "borderColor": "var(--line)", "textStyle": {"color": "var(--ink)"},
            "axisPointer": {"lineStyle": {"color": "var(--soft)"}},
        },
        "axisPointer": {"link": [{"xAxisIndex": "all"}]},
        "xAxis": [_steps(curves, 0, labelled=not has), _steps(curves, 1, labelled=True)],
        "yAxis": [_losses(0, log=log), {**_losses(1, log=log), "show": has, "splitNumber": 3}],
        "series": [
            _line("loss", _pairs(steps, smooth), "var(--accent)", width=2.5),
            _line("each step", _pairs(steps, loss) if raw else [], "var(--soft)", width=1, opacity=0.45),
            {**_validation(curves), "xAxisIndex": 1, "yAxisIndex": 1},
        ],
    }  # fmt: skip


def _place(top: Any, bottom: Any) -> dict[str, Any]:
    return {"left": 50, "right": 18, "top": top, "bottom": bottom}


def _steps(curves: Curves, at: int, *, labelled: bool) -> dict[str, Any]:
    most = max([*curves.step, *curves.validation_step, 1])
    axis = {"type": "value", "min": 0, "max": most, "minInterval": 1, "gridIndex": at, "splitLine": {"show": False}}
    return {**_AXIS, **axis, "axisLabel": {**_TEXT, "show": labelled}}


def _losses(at: int, *, log: bool) -> dict[str, Any]:
    return {**_AXIS, "type": "log" if log else "value", "scale": True, "gridIndex": at}


def _line(name: str, data: list[list[float]], colour: str, *, width: float, opacity: float = 1.0) -> dict[str, Any]:
    return {
        "name": name, "type": "line", "data": data, "showSymbol": False, "color": colour,
        "lineStyle": {"width": width, "opacity": opacity, "color": colour}, "itemStyle": {"color": colour},
        "emphasis": {"disabled": True},
    }  # fmt: skip


def _validation(curves: Curves) -> dict[str, Any]:
    data = _pairs(curves.validation_step, curves.validation)
    line = _line("validation", data, "var(--good)", width=2)
    if found := lowest(curves):
        best = {"coord": [found[0], round(found[1], 5)], "symbol": "circle", "symbolSize": 11, "label": {"show": False}}
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
        first = f"{mean[4]:.4g} at the beginning, " if len(mean) > 10 else ""
        told.append(f"Loss {first}{mean[-1]:.4g} at step {curves.step[-1]}.")
    if curves.validation:
        told.append(_validated(curves))
    return " ".join(told)


def _validated(curves: Curves) -> str:
    last = f"{curves.validation[-1]:.4g} at step {curves.validation_step[-1]}"
    best = lowest(curves)
    if best is None:
        return f"Validation loss {last}."
    base = f"{curves.validation[0]:.4g} at step 0, the base; " if curves.validation_step[0] == 0 else ""
    told = f"Validation loss {base}lowest {best[1]:.4g} at step {best[0]}; {last}."
    return f"{told} It was never below that of the base." if base and best[1] >= curves.validation[0] else told


def lowest(curves: Curves) -> tuple[int, float] | None:
    """Step and value of the lowest validation loss of trained weights; None before the first."""
    found = [
        (s, v) for s, v in zip(curves.validation_step, curves.validation, strict=True) if s > 0 and math.isfinite(v)
    ]
    return min(found, key=lambda pair: pair[1], default=None)
