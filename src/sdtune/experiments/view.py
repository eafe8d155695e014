"""The page's HTML: what its template is given. Coordinates are in view-box units."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from sdtune import charts, pages
from sdtune import config as configs
from sdtune.data.layouts import plural
from sdtune.experiments import page, shown
from sdtune.experiments.cards import HEADINGS, Card
from sdtune.experiments.evidence import BASE, LABELS, Table
from sdtune.experiments.leaderboard import Estimate, Ranking
from sdtune.experiments.matrix import settings_text
from sdtune.units import duration

Json = dict[str, Any]
WIDE, EDGE = 360, 14
"""Of the drawing of a row's interval."""
PLOT_WIDE, PLOT_HIGH, LEFT, RIGHT, TOP, BOTTOM = 520, 320, 64, 20, 16, 44
PROMPTS = 24
"""Prompts of the grid, evenly spread over all."""
LARGE = 256
"""Pictures are shown at most so wide."""


def html(subject: page.Subject, found: Table, cards: Sequence[Card]) -> str:
    """The whole page. No script, style, font or picture is loaded from anywhere."""
    return pages.page("experiments", **_view(subject, found, cards))


def _view(subject: page.Subject, found: Table, cards: Sequence[Card]) -> Json:
    label, better = LABELS[found.primary]
    words = page.best(found) or "one row, and nothing to compare it with"
    settings = {entry.name: _short(entry.settings) for entry in subject.entries}
    helped = {entry.name: page.answers(entry, "helped") for entry in subject.entries}
    return {
        "css": pages.asset("report.css"),
        "own_css": pages.asset("experiments.css"),
        "kind": subject.kind,
        "name": subject.name,
        "about": subject.about,
        "headline": f"{words[0].upper()}{words[1:]}.",
        "facts": list(_facts(subject, found)),
        "figure": label,
        "better": better,
        "board": _board(found.main, found.primary, found.ceilings.get(found.primary), settings, helped),
        "explained": page.explained(found),
        "pairs": _pairs(found.main, found.primary),
        "others": list(_others(found)),
        "costs": _costs(subject),
        "plots": list(_plots(subject, found)),
        "grid": _grid(subject),
        "cards": [_card(card) for card in cards],
        "open": [{"label": label, "state": state, "why": why} for label, state, why in subject.open],
        "again": subject.again,
        "toml": configs.to_toml(subject.config),
    }


def _short(settings: Mapping[str, Any]) -> str:
    """rank 8, targets many: without the group where that is clear."""
    leaves = [key.rpartition(".")[2] for key in settings]
    clear = {
        key: leaf for key, leaf in zip(settings, leaves, strict=True) if leaf != "type" and leaves.count(leaf) == 1
    }
    return settings_text({clear.get(key, key): value for key, value in settings.items()})


def _facts(subject: page.Subject, found: Table) -> Iterator[tuple[str, str]]:
    runs = [t for entry in subject.entries for t in entry.runs]
    seconds = [c.seconds for entry in subject.entries for c in entry.costs if c.seconds]
    yield "Decided by", f"{LABELS[found.primary][0]}, fixed before the runs"
    yield "Rows", f"{plural(len(subject.entries), 'cell')} and the base"
    yield "Trainings", str(len(runs))
    yield ("Validation pictures" if found.primary == "validation_loss" else "Prompts"), str(found.units[found.primary])
    if seconds:
        yield "Training time", duration(sum(seconds))


# ---- the leaderboard


def _board(
    ranking: Ranking, key: str, real: float | None, settings: Mapping[str, str], helped: Mapping[str, str]
) -> Json:
    """Rows with their intervals on one scale; the base's value as a line through all, and that of real pictures."""
    ends = [v for line in ranking.lines for v in _ends(line.estimate)]
    ends += [v for line in ranking.lines for v in line.seeds]
    at, marks = _scale([*ends, *([] if real is None else [real])], WIDE, EDGE, key)
    floor = next((line.estimate.value for line in ranking.lines if line.name == BASE), None)
    rows = []
    for line in ranking.lines:
        low, high = line.estimate.low, line.estimate.high
        side = _side(line.change, key)
        rows.append(
            {
                "name": line.name,
                "settings": settings.get(line.name, "the model before training"),
                "letters": line.letters,
                "base": line.name == BASE,
                "x": at(line.estimate.value),
                "span": (at(low), at(high)) if math.isfinite(low) else None,
                "dots": [at(v) for v in line.seeds] if len(line.seeds) > 1 else [],
                "value": page._number(line.estimate.value, key),
                "interval": _span(line.estimate, key),
                "change": page._number(line.change.value, key, signed=True) if line.change else "",
                "change_interval": _span(line.change, key, signed=True) if line.change else "",
                "tone": {1: "good", -1: "bad", 0: ""}[side],
                "helped": helped.get(line.name, "").split(", ") if helped.get(line.name) else [],
                "helped_tone": {"yes": "good", "no": "bad"}.get(helped.get(line.name, ""), ""),
                "trainings": page.trainings(line),
            }
        )
    return {
        "rows": rows, "marks": marks, "floor": None if floor is None else at(floor), "real": None if real is None else at(real),
        "real_text": "" if real is None else page._number(real, key),
    }  # fmt: skip


def _ends(e: Estimate) -> list[float]:
    return [v for v in (e.value, e.low, e.high) if math.isfinite(v)]


def _span(e: Estimate, key: str, *, signed: bool = False) -> str:
    if not math.isfinite(e.low):
        return ""
    low, high = (page._number(v, key, signed=signed) for v in (e.low, e.high))
    return f"{low} to {high}"


def _side(change: Estimate | None, key: str) -> int:
    """Better (1) or worse (-1) than the base beyond chance, or neither."""
    if change is None or not math.isfinite(change.low) or change.low <= 0 <= change.high:
        return 0
    return 1 if (change.value < 0) == (LABELS[key][1] == "lower") else -1


def _scale(values: Sequence[float], wide: float, edge: float, key: str) -> tuple[Any, list[tuple[float, str]]]:
    """Where a value lies, and the marks of the axis."""
    ticks = charts.ticks(min(values), max(values), 4)

    def at(value: float) -> float:
        return round(edge + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (wide - 2 * edge), 1)

    return at, [(at(t), _tick(t, key)) for t in ticks]


def _tick(value: float, key: str) -> str:
    return f"{100 * value:g}%" if key == "found_first" else f"{value:g}".replace("-", "\N{MINUS SIGN}")


def _pairs(ranking: Ranking, key: str) -> list[Json]:
    """The pairs of rows, those that are told apart first."""
    rows = sorted(ranking.pairs, key=lambda p: p.p)
    return [
        {"a": p.a, "b": p.b, "difference": page._number(p.difference.value, key, signed=True),
         "interval": _span(p.difference, key, signed=True),
         "p": "< 0.001" if p.p < 0.001 else f"{p.p:.3f}", "separated": p.separated}
        for p in rows
    ]  # fmt: skip


def _others(found: Table) -> Iterator[Json]:
    """The secondary figures, in the order of the leaderboard."""
    names = [line.name for line in found.main.lines]
    for key, ranking in found.rankings.items():
        if key == found.primary:
            continue
        yield {
            "label": LABELS[key][0],
            "better": LABELS[key][1],
            "real": page._number(found.ceilings[key], key) if key in found.ceilings else "",
            "cells": [
                {"name": name, "value": page._number(line.estimate.value, key), "interval": _span(line.estimate, key),
                 "tone": {1: "good", -1: "bad", 0: ""}[_side(line.change, key)]}
                for name in names for line in [ranking.line(name)]
            ],
        }  # fmt: skip


# ---- costs


def _costs(subject: page.Subject) -> Json:
    told = {entry.name: page.costs_text(entry.costs) for entry in subject.entries}
    heads = list(dict.fromkeys(head for row in told.values() for head in row))
    if len(energy := {row.get("energy", "") for row in told.values()}) == 1 and "Wh" not in next(iter(energy)):
        heads.remove("energy")
        note = f"Energy: {next(iter(energy))}."
    else:
        note = ""
    devices = sorted({_device(t.scores) for entry in subject.entries for t in entry.runs} - {""})
    rows = [{"name": name, "cells": [row.get(head, "") for head in heads]} for name, row in told.items()]
    return {"heads": heads, "rows": rows, "note": note, "devices": "; ".join(devices)}


def _device(scores: Mapping[str, Any]) -> str:
    about = scores.get("environment") or {}
    return str(about.get("device", ""))


def _plots(subject: page.Subject, found: Table) -> Iterator[Json]:
    """Quality against time, memory and size: a point for each cell, with its interval."""
    for name, unit, key, size in (
        ("Training time", "minutes", "seconds", 60),
        ("Size of the result", "MB", "size_mb", 1),
        ("Peak memory", "GB", "peak_memory_mb", 1024),
    ):
        points = []
        for entry in subject.entries:
            known = [value / size for c in entry.costs if (value := getattr(c, key))]
            if known:
                points.append((entry.name, fmean(known), found.main.line(entry.name).estimate))
        if len(points) > 1 and len({x for _, x, _ in points}) > 1:
            yield _plot(name, unit, points, found.primary)


def _plot(name: str, unit: str, points: Sequence[tuple[str, float, Estimate]], key: str) -> Json:
    """Time, size and memory span orders of magnitude: where the largest is ten times the smallest the axis is logarithmic."""
    xs = [x for _, x, _ in points]
    log = max(xs) / min(xs) >= 10
    ticks_x = _powers(min(xs), max(xs)) if log else charts.ticks(0.0, max(xs), 4)
    ticks_y = charts.ticks(*_least_and_most([v for *_, e in points for v in _ends(e)]), 4)

    def across(x: float) -> float:
        f = math.log10 if log else float
        part = (f(x) - f(ticks_x[0])) / (f(ticks_x[-1]) - f(ticks_x[0]))
        return round(LEFT + part * (PLOT_WIDE - LEFT - RIGHT), 1)

    def up(y: float) -> float:
        return round(TOP + (ticks_y[-1] - y) / (ticks_y[-1] - ticks_y[0]) * (PLOT_HIGH - TOP - BOTTOM), 1)

    marks = []
    for label, x, e in sorted(points, key=lambda p: p[2].value):
        marks.append(
            {
                "name": label,
                "x": across(x),
                "y": up(e.value),
                "span": (up(e.low), up(e.high)) if math.isfinite(e.low) else None,
            }
        )
    _spread_labels(marks)
    return {
        "name": name, "unit": unit, "marks": marks, "log": log,
        "ticks_x": [(across(t), f"{t:g}") for t in ticks_x], "ticks_y": [(up(t), _tick(t, key)) for t in ticks_y],
    }  # fmt: skip


def _least_and_most(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _powers(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20, ... around low to high."""
    first = math.floor(math.log10(low))
    row = [m * 10.0**k for k in range(first, math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)]
    inside = [v for v in row if low <= v <= high]
    return [
        max((v for v in row if v <= low), default=row[0]),
        *inside,
        min((v for v in row if v >= high), default=row[-1]),
    ]


def _spread_labels(marks: list[Json]) -> None:
    """Names beside their points where nothing else lies, with a line to the point where that is farther away."""
    taken = [(m["x"] - 6, m["x"] + 6, m["y"]) for m in marks]

    def free(x0: float, x1: float, y: float) -> bool:
        inside = x0 > LEFT and x1 < PLOT_WIDE and TOP - 8 < y < PLOT_HIGH - BOTTOM
        return inside and not any(abs(y - ty) < 13 and x0 < t1 and t0 < x1 for t0, t1, ty in taken)

    for mark in sorted(marks, key=lambda m: (m["y"], m["x"])):
        wide, x, y = 7.0 * len(mark["name"]), mark["x"], mark["y"]
        places = [(y + dy, side) for dy in (0, -14, 14, -28, 28, -42, 42, -56, 56) for side in (1, -1)]
        spans = [(y0, side, *sorted((x + side * 10, x + side * (10 + wide)))) for y0, side in places]
        at, side, x0, x1 = next((s for s in spans if free(s[2], s[3], s[0])), spans[0])
        taken.append((x0, x1, at))
        mark |= {
            "tx": x + side * 10,
            "ty": round(at + 4, 1),
            "anchor": "start" if side > 0 else "end",
            "led": at != y,
            "ly": at,
        }


# ---- pictures


def _grid(subject: page.Subject) -> Json:
    """Prompts down, the real picture, the base and each cell's first training across, all at one seed."""
    found = shown.of_subject(subject, PROMPTS)
    rows = [
        {"prompt": r.prompt, "short": r.short, "real": _picture(r.real), "cells": [_picture(path) for path in r.drawn]}
        for r in found.rows
    ]
    return {
        "heads": found.names, "rows": rows, "seed": found.seed, "real": found.real, "train_seed": found.train_seed,
        "whole": found.whole,
    }  # fmt: skip


@functools.lru_cache(maxsize=2048)
def _picture(path: Path | None) -> str:
    """The picture as a data URI; "" for one that is gone."""
    image = shown.opened(path)
    return pages.data_uri(image, LARGE) if image else ""


# ---- cards


def _card(card: Card) -> Json:
    parts = []
    for heading in HEADINGS:
        facts = [line.removeprefix("- ") for line in card.facts.get(heading, "").splitlines() if line]
        parts.append({"heading": heading, "facts": facts, "prose": _paragraphs(card.prose.get(heading, ""))})
    return {"name": card.name, "parts": parts}


def _paragraphs(text: str) -> list[str]:
    return [" ".join(block.split()) for block in text.split("\n\n") if block.strip()]
