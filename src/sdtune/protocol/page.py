"""The result as one HTML file that needs nothing else, as Markdown, and as JSON.

File names and captions are strangers' words; in the page they are escaped.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from sdtune.data.images import load_image
from sdtune.data.layouts import shown
from sdtune.errors import EvaluationError
from sdtune.files import as_json, is_ours, write_text
from sdtune.judging.scores import Figure, change, number, p_text, unseen
from sdtune.pages import asset, data_uri, page
from sdtune.protocol.choosing import choice_of
from sdtune.protocol.measures import p_of, told
from sdtune.protocol.results import Near, Result
from sdtune.stats import Interval, sign_test

_MARK = "<!-- sdtune protocol -->"
MARKS = {"report.html": _MARK, "report.md": _MARK, "scores.json": '{\n "made_by": "sdtune protocol"'}
"""How our own files begin: others of these names are not written over."""
SIDE = 256
"""Of thumbnails, which enlarge."""
SHOWN = 200
"""Test pictures with thumbnails; the rest is in the JSON."""
_TONES = {
    "better": "good", "worse": "bad", "higher": "even", "lower": "even", "cannot tell": "open", "not evidence": "weak",
}  # fmt: skip

Json = dict[str, Any]


def check_folder(folder: Path) -> None:
    """Refuse a folder whose files of our names are not ours. Raises EvaluationError."""
    for name, mark in MARKS.items():
        if not is_ours(folder / name, mark):
            raise EvaluationError(
                f"{folder / name}: exists and is no file of `sdtune protocol`; name another folder with --out"
            )


def write(result: Result, folder: Path) -> Path:
    """report.html, report.md and scores.json in `folder`; returns the page. Raises EvaluationError as `check_folder`."""
    check_folder(folder)
    write_text(folder / "scores.json", as_json(record(result)))
    write_text(folder / "report.md", markdown(result))
    write_text(folder / "report.html", f"{MARKS['report.html']}\n{page('protocol', **_view(result))}")
    return folder / "report.html"


def record(result: Result) -> Json:
    """All of it as plain values; what is no number is null."""
    r = result
    items = [
        {
            "name": item.name, "real": shown(item.real), "caption": item.caption,
            "original": [shown(p) for p in item.original], "tuned": [shown(p) for p in item.tuned],
            **{key: {"original": _plain(a[i]), "tuned": _plain(b[i])} for key, (a, b) in r.values.items()},
        }
        for i, item in enumerate(r.pairs.items)
    ]  # fmt: skip
    return {
        "made_by": "sdtune protocol", "headline": r.headline, "reference": r.reference, "original": r.original, "tuned": r.tuned,
        "pictures": len(items), "paired": r.pairs.how, "figures": [_figure(f) for f in r.figures],
        "refused": [{"figure": key, "why": why} for key, why in r.refused],
        "left_out": [{"figure": key, "encoder": m.encoder, "why": m.why, "remedy": m.remedy} for key, m in r.missing],
        **({"train": r.train, "nearest": {key: [_near(n) for n in rows] for key, rows in r.nearest.items()}} if r.train else {}),
        "limits": r.limits, "encoders": r.encoders, "draws": r.draws, "seed": r.seed, "seconds": round(r.seconds, 1), "items": items,
    }  # fmt: skip


def markdown(result: Result) -> str:
    """The table and its limits, for a README or a pull request."""
    r = result
    heads = ["figure", "better", "original", "tuned", "difference (95% interval)", "says", "real pictures"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for f in r.figures:
        cells = [
            f.label,
            f.better or "neither",
            _cell(f.base),
            _cell(f.tuned),
            _change(f.difference),
            told(f),
            _cell(f.real),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    out = [f"{key}: left out, {why}" for key, why in r.refused] + [
        f"{key}: left out, {m.why}; {m.remedy}" for key, m in r.missing
    ]
    encoders = [f"{e['encoder']}: {e['title']}; {e['look']}" for e in r.encoders]
    parts = [
        MARKS["report.md"], f"# {r.headline}.",
        f"{len(r.pairs.items)} test pictures of `{r.reference}`; `{r.original}` against `{r.tuned}`, paired {r.pairs.how}.",
        "\n".join(lines), _bullets("What these figures are not", [*notes(r), *r.limits]), _bullets("Left out", out),
        *(_bullets(f"Nearest training pictures, by {choice_of(key).encoder}", [_pair(n) for n in rows]) for key, rows in r.nearest.items()),
        _bullets("Encoders", encoders),
    ]  # fmt: skip
    return "\n\n".join(filter(None, parts)) + "\n"


def notes(result: Result) -> list[str]:
    """What is to be said of single figures: why they are no evidence, and the sign test of win rates."""
    said = ((f, "; ".join(filter(None, (f.note, _wins(f) if choice_of(f.key).part else "")))) for f in result.figures)
    return [f"{f.label}: {text}" for f, text in said if text]


def table_rows(result: Result) -> list[tuple[str, str, str, str, str]]:
    """Figure, original, tuned, difference with its interval, and what it says: for a terminal."""
    return [(f.label, _cell(f.base), _cell(f.tuned), _change(f.difference), told(f)) for f in result.figures]


def _view(result: Result) -> Json:
    r = result
    keys = [f.key for f in r.figures if f.key in r.values]
    facts = [
        ("test pictures", f"{len(r.pairs.items)} of {r.reference}"), ("original", r.original), ("tuned", r.tuned),
        ("paired", r.pairs.how), ("drawn", f"{_counts(r)} a picture"),
    ]  # fmt: skip
    return {
        "css": asset("report.css"), "own_css": asset("protocol.css"), "headline": r.headline, "facts": facts,
        "rows": [_row(f) for f in r.figures], "limits": r.limits, "heads": [(k, choice_of(k).short) for k in keys],
        "refused": r.refused, "missing": [(key, f"{m.why}; {m.remedy}") for key, m in r.missing],
        "items": [_item(r, i, keys) for i in range(min(SHOWN, len(r.pairs.items)))], "more": max(0, len(r.pairs.items) - SHOWN),
        "nearest": [_nearest(key, rows) for key, rows in r.nearest.items()],
        "encoders": r.encoders, "draws": f"{r.draws:,}", "seed": r.seed, "tone": _tone(r),
    }  # fmt: skip


def _row(f: Figure) -> Json:
    return {
        "label": f.label, "better": f.better, "base": _parts(f.base), "tuned": _parts(f.tuned), "real": _parts(f.real),
        "difference": _parts(f.difference, signed=True), "says": told(f), "tone": _TONES[told(f)], "note": f.note, "wins": _wins(f),
        "holm": "" if f.holm is None else f"corrected {p_text(f.holm)}", "unseen": unseen(f), "weak": not f.evidence,
    }  # fmt: skip


def _wins(f: Figure) -> str:
    """In how many pairs the tuned model has it, with the sign test."""
    if f.wins is None or f.losses is None:
        return ""
    which = "lower" if f.better == "lower" else "higher"
    return f"{which} in {f.wins} of {f.wins + f.losses}, {p_text(sign_test(f.wins, f.losses))} (sign test)"


def _near(n: Near) -> Json:
    return {"drawn": shown(n.drawn), "train": shown(n.train), "cosine": n.cosine, "flagged": n.flagged}


def _pair(n: Near) -> str:
    return f"`{shown(n.drawn)}`: `{shown(n.train)}`, cosine {n.cosine:.2f}" + ", **flagged**" * n.flagged


def _nearest(key: str, rows: list[Near]) -> Json:
    """The pairs of one encoder with their thumbnails."""
    pairs = [
        {
            "drawn": _thumb(n.drawn), "train": _thumb(n.train), "name": n.drawn.name, "train_name": n.train.name,
            "cosine": f"{n.cosine:.2f}", "flagged": n.flagged,
        }
        for n in rows
    ]  # fmt: skip
    return {"encoder": choice_of(key).encoder, "pairs": pairs, "flagged": sum(n.flagged for n in rows)}


def _item(r: Result, i: int, keys: list[str]) -> Json:
    item = r.pairs.items[i]
    better = {f.key: f.better for f in r.figures}
    values = []
    for key in keys:
        a, b = (float(side[i]) for side in r.values[key])
        won = (b < a) if better[key] == "lower" else (b > a)
        values.append({"original": number(a), "tuned": number(b), "won": won and a != b, "lost": not won and a != b})
    return {
        "name": item.name, "caption": item.caption, "real": _thumb(item.real),
        "original": [_thumb(p) for p in item.original[:4]], "tuned": [_thumb(p) for p in item.tuned[:4]],
        "values": values,
    }  # fmt: skip


def _tone(r: Result) -> str:
    says = {told(f) for f in r.figures}
    return (
        "good"
        if "better" in says and "worse" not in says
        else "bad"
        if "worse" in says and "better" not in says
        else "open"
    )


def _counts(r: Result) -> str:
    counts = sorted({len(side) for item in r.pairs.items for side in (item.original, item.tuned)})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _parts(i: Interval | None, signed: bool = False) -> tuple[str, str] | None:
    if i is None or not math.isfinite(i.value):
        return None
    value = ("+" if signed and i.value > 0 else "") + number(i.value)
    return value, f"{number(i.low)} to {number(i.high)}" if math.isfinite(i.low) else ""


def _cell(i: Interval | None) -> str:
    parts = _parts(i)
    return "" if parts is None else f"{parts[0]} ({parts[1]})" if parts[1] else parts[0]


def _change(i: Interval | None) -> str:
    if i is None:
        return ""
    return change(i).replace(", 95% interval ", " (") + ")" if math.isfinite(i.low) else number(i.value)


def _figure(f: Figure) -> Json:
    def plain(i: Interval | None) -> Json | None:
        return None if i is None else {k: _plain(v) for k, v in dataclasses.asdict(i).items()}

    parts = {name: plain(getattr(f, name)) for name in ("base", "tuned", "difference", "real")}
    parts["original"] = parts.pop("base")
    return {
        "key": f.key, "label": f.label, "better": f.better or None, **parts, "says": told(f), "evidence": f.evidence, "note": f.note,
        "wins": f.wins, "losses": f.losses, "p": _plain(p_of(f)), "p_corrected": f.holm,
    }  # fmt: skip


def _plain(value: float | int | np.floating[Any]) -> float | int | None:
    if isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None


def _bullets(title: str, lines: list[str]) -> str:
    return "\n".join([f"## {title}", "", *(f"- {line}" for line in lines)]) if lines else ""


def _thumb(path: Path) -> str:
    return data_uri(load_image(path), SIDE)
