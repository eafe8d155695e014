"""The report of `sdtune data check` as one HTML file that needs nothing else: no script, style or picture from anywhere. Captions and
names are strangers' words and are escaped. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sdtune.data.check.report import Bar, Report, Row
from sdtune.data.layouts import Fault
from sdtune.data.thumbs import data_uri
from sdtune.errors import DataError
from sdtune.files import is_ours, write_text
from sdtune.pages import asset
from sdtune.pages import page as rendered

MARK = "<!-- sdtune data check -->"
SIDE = 240
SHOWN = 24
"""Findings of a kind that are shown; the rest is counted, and named in the JSON."""
BESIDE = 4
"""Look-alikes that are shown side by side."""
WIDE = ("leak", "near_leak", "copies", "near_copies", "name_clash", "long_caption", "no_trigger")
"""Kinds with several pictures or much text in a card."""
WIDEST, NARROW = 410, 310
"""Bars, in view-box units: behind those of frames stands more."""
FRAMES = 40
LONGEST = 600
"""A caption that is cut off may be longer than what there is to say about it."""

Json = dict[str, Any]


def write(report: Report, path: Path) -> Iterator[tuple[int, int]]:
    """Write the page, yielding how many kinds are drawn of how many. Raises DataError for a file that is there and no such page."""
    check_file(path)
    rows = []
    for done, row in enumerate(report.rows):
        yield done, len(report.rows)
        rows.append(_row(row, done, report))
    write_text(path, f"{MARK}\n{rendered('check', **_view(report), rows=rows)}")


def check_file(path: Path) -> None:
    """Refuse a file that is there and no such page. Raises DataError."""
    if not is_ours(path, MARK):
        raise DataError(f"{path}: exists and is no page of `sdtune data check`; move it away")


def _view(report: Report) -> Json:
    side = " and ".join(map(str, report.resolutions)) + " pixels" if report.resolutions else "unknown"
    facts = [("to train on", str(report.train)), ("held out", str(report.validation)), ("trained at", side)]
    facts += [("the text encoder reads", f"{report.max_tokens} tokens")] if report.max_tokens else []
    facts += [(f"with {t.word!r}", f"{t.having} of {report.train}") for t in report.triggers]
    charts = [
        ("Shorter side", "pixels", _bars(report.sizes)),
        ("Proportions", "width to height, the nearest", _bars(report.shapes)),
        ("Captions", "tokens, marks included", _bars(report.tokens)),
    ]
    if report.frames:
        charts.insert(0, ("Frames", "of the pictures to train on, with the mean share cut away", _frames(report)))
    return {
        "css": asset("report.css"), "own_css": asset("check.css"), "label": report.label, "headline": report.headline,
        "stops": bool(report.stopping), "facts": facts, "charts": charts, "notes": report.notes,
        "lead": "Of the pictures that can be used. Bars in another colour lie beyond what the model is trained at or reads.",
    }  # fmt: skip


def _row(row: Row, place: int, report: Report) -> Json:
    kind = row.kind
    about, remedy = (text.replace("`", "") for text in (kind.about, kind.remedy))
    return {
        "id": f"{kind.name}-{place}", "name": kind.name, "count": len(row.faults), "policy": row.policy, "key": row.key,
        "about": about, "remedy": remedy, "choices": ", ".join(kind.policies), "lots": kind.name in WIDE,
        "finds": [_find(f, report) for f in row.faults[:SHOWN]], "more": max(0, len(row.faults) - SHOWN),
    }  # fmt: skip


def _find(fault: Fault, report: Report) -> Json:
    images = [_thumb(path, report.max_pixels) for path in fault.pictures[:BESIDE]]
    more = len(fault.pictures) - BESIDE
    detail = fault.detail if len(fault.detail) <= LONGEST else fault.detail[:LONGEST] + " ..."
    detail = ", ".join(filter(None, [detail, f"and {more} more like it" if more > 0 else ""]))
    return {"where": fault.where, "what": fault.what, "detail": detail, "images": images}


def _thumb(path: Path, max_pixels: int) -> str | None:
    try:
        return data_uri(path, SIDE, max_pixels=max_pixels)
    except DataError:
        return None


def _bars(bars: Sequence[Bar]) -> list[tuple[str, str, float, bool]]:
    """Label, number, width in view-box units, whether it is beyond the limit."""
    most = max((bar.count for bar in bars), default=0)
    return [(bar.label, str(bar.count), round(WIDEST * bar.count / most, 1), bar.odd) for bar in bars]


def _frames(report: Report) -> list[tuple[str, str, float, bool]]:
    """The same of the frames, in another colour where most are enlarged."""
    shown = report.frames[:FRAMES]
    most = max(row.count for row in shown)
    bars = []
    for row in shown:
        said = f"{row.count}, {row.cropped:.0%} cut" + f", {row.enlarged} enlarged" * bool(row.enlarged)
        bars.append((row.frame, said, round(NARROW * row.count / most, 1), 2 * row.enlarged > row.count))
    return bars + ([("others", str(len(report.frames) - FRAMES), 0.0, False)] if len(report.frames) > FRAMES else [])
