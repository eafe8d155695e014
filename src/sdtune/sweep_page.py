"""The sweep as a page: the trade-off as a drawing, its table, and the pictures as a grid of checkpoints and strengths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from sdtune import stats
from sdtune.charts import ticks
from sdtune.config import to_toml
from sdtune.files import write_json, write_text
from sdtune.judging.scores import number
from sdtune.judging.verdicts import CONTENT_BOUND
from sdtune.pages import asset, page
from sdtune.report import LARGE, SMALL, SWEEP, shown_path, thumb
from sdtune.stats import Interval
from sdtune.sweep import Point, Sweep

SHOWN = 6
"""Prompts in the grid, evenly chosen."""
GAP = 18
"""Between names, in view-box units."""
WIDE, HIGH, LEFT, BOTTOM, TOP, RIGHT = 900, 430, 80, 52, 18, 130

Json = dict[str, Any]


def write(s: Sweep) -> None:
    """Writes `sweep.json` and `report.html` into the run's folder for it."""
    write_json(s.run.sweep / "sweep.json", as_json(s))
    write_text(s.run.sweep / "report.html", html(s))


def as_json(s: Sweep) -> Json:
    """What sweep.json holds."""
    return {
        "format": SWEEP,
        "run": s.run.config().name,
        "prompts": list(s.prompts),
        "seeds": list(s.seeds),
        "suggested": None if s.chosen is None else {"checkpoint": s.chosen.checkpoint, "strength": s.chosen.strength},
        "rule": s.rule,
        "real_content": None if s.real is None else s.real.value,
        "points": [_record(p, s) for p in (s.base, *s.points)],
    }


def html(s: Sweep) -> str:
    measured = s.base.kid is not None
    return page(
        "sweep",
        css=asset("report.css") + asset("sweep.css"),
        name=s.run.config().name,
        headline=f"Suggested: {s.chosen.name}" if s.chosen else "No point is suggested",
        rule=s.rule[0].upper() + s.rule[1:],
        chart=_chart(s) if measured else None,
        rows=[_row(p, s) for p in (s.base, *s.points)] if measured else [],
        grids=_grids(s),
        bound=f"{CONTENT_BOUND:.0%}",
        pictures=f"{len(s.prompts)} prompts x {len(s.seeds)} seeds",
        command=_command(s),
        toml=to_toml(s.run.config()),
    )


def _command(s: Sweep) -> str:
    run = shown_path(s.run.path)
    if s.chosen is None:
        return f"sdtune sweep {run}"
    return f"sdtune compare {run} --checkpoint {s.chosen.checkpoint} sample.strength={s.chosen.strength:g}"


def _record(p: Point, s: Sweep) -> Json:
    def plain(i: Interval | None) -> Json | None:
        return None if i is None else {"value": i.value, "low": i.low, "high": i.high, "n": i.n}

    figures = {key: plain(getattr(p, key)) for key in ("kid", "content", "lost", "behind")}
    files = [file.relative_to(s.run.sweep).as_posix() for file in p.pictures]
    return {"checkpoint": p.checkpoint, "strength": p.strength, **figures, "pictures": files}


def _row(p: Point, s: Sweep) -> Json:
    def cell(i: Interval | None, percent: bool = False) -> tuple[str, str]:
        if i is None:
            return "", ""
        texts = [f"{100 * v:.0f}%" if percent else number(v) for v in (i.value, i.low, i.high)]
        return texts[0].replace("-", "\N{MINUS SIGN}"), f"{texts[1]} to {texts[2]}".replace("-", "\N{MINUS SIGN}")

    base = p is s.base
    return {
        "name": p.name, "chosen": p == s.chosen, "kid": cell(p.kid), "content": cell(p.content),
        "lost": ("", "") if base else cell(p.lost, percent=True), "behind": ("", "") if base else cell(p.behind),
    }  # fmt: skip


def _chart(s: Sweep) -> Json:
    """Points in view-box units: content to the right, nearness to the target upwards; a line joins the strengths of a checkpoint."""
    every = [s.base, *s.points]
    x = ticks(*_span([*(p.content for p in every), s.real]))
    y = ticks(*_span([p.kid for p in every]))

    def at(p: Point) -> tuple[float, float]:
        return across(p.content.value if p.content else 0.0), up(p.kid.value if p.kid else 0.0)

    def across(value: float) -> float:
        return round(LEFT + (value - x[0]) / (x[-1] - x[0]) * (WIDE - LEFT - RIGHT), 1)

    def up(value: float) -> float:
        share = (value - y[0]) / (y[-1] - y[0])  # lower is better, and stands higher
        return round(TOP + share * (HIGH - TOP - BOTTOM), 1)

    names = list(dict.fromkeys(p.checkpoint for p in s.points))
    marks, lines = list[Json](), list[Json]()
    for number_of, checkpoint in enumerate(names):
        own = sorted((p for p in s.points if p.checkpoint == checkpoint), key=lambda p: p.strength)
        shade = round(0.35 + 0.65 * (number_of + 1) / len(names), 2)
        x_end, y_end = at(own[-1])
        leftwards = x_end < at(own[-2] if len(own) > 1 else s.base)[0]
        lines.append(
            {
                "d": "M" + "L".join("{},{}".format(*at(p)) for p in (s.base, *own)), "shade": shade, "text": checkpoint,
                "x": x_end + (-14 if leftwards else 14), "y": y_end + 4, "anchor": "end" if leftwards else "start",
            }
        )  # fmt: skip
        marks += [
            {"at": at(p), "text": f"{p.strength:g}", "shade": shade, "chosen": p == s.chosen, "title": _row(p, s)}
            for p in own
        ]
    lines.sort(key=lambda line: float(line["y"]))
    for upper, lower in pairwise(lines):
        lower["y"] = max(lower["y"], upper["y"] + GAP)
    return {
        "wide": WIDE, "high": HIGH, "left": LEFT, "right": WIDE - RIGHT, "top": TOP, "bottom": HIGH - BOTTOM,
        "ticks_x": [(across(v), f"{v:g}") for v in x], "ticks_y": [(up(v), f"{v:g}") for v in y],
        "base": at(s.base), "real": across(s.real.value) if s.real else None, "marks": marks, "lines": lines,
    }  # fmt: skip


def _span(intervals: Sequence[Interval | None]) -> tuple[float, float]:
    values = [i.value for i in intervals if i is not None]
    return min(values), max(values)


def _grids(s: Sweep) -> list[Json]:
    """For some prompts, a row a checkpoint and a column a strength, at the first seed."""
    names = list(dict.fromkeys(p.checkpoint for p in s.points))
    strengths = list(dict.fromkeys(p.strength for p in s.points))
    by = {(p.checkpoint, p.strength): p for p in s.points}
    side = SMALL if len(strengths) > 4 else LARGE // 2
    grids = []
    for k in stats.spread(range(len(s.prompts)), SHOWN):
        at = k * len(s.seeds)
        rows = [
            {
                "name": c,
                "cells": [
                    {"src": thumb(by[c, v].pictures[at], side), "chosen": by[c, v] == s.chosen} for v in strengths
                ],
            }
            for c in names
        ]
        grids.append({"prompt": s.prompts[k], "seed": s.seeds[0], "base": thumb(s.base.pictures[at], side), "rows": rows,
                      "strengths": [f"{v:g}" for v in strengths]})  # fmt: skip
    return grids
