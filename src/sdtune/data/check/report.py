"""What `sdtune data check` tells: the findings by kind, and the set in numbers. As plain records for JSON. Imports no torch."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdtune.data.check import findings
from sdtune.data.check.findings import Fit
from sdtune.data.check.kinds import Kind, Policy, kinds
from sdtune.data.dataset import Example, Survey
from sdtune.data.frames import Frame, Frames, cropped, scale
from sdtune.data.layouts import Fault, shown
from sdtune.errors import DataError
from sdtune.files import write_json

FORMAT = "sdtune data check 1"
UNSEEN = "--quick: headers, captions and names alone; not looked at are damage, colours, copies, look-alikes, masks, who is held out"
ORDER: tuple[Policy, ...] = ("fail", "skip", "warn", "ignore")

Json = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """All findings of a kind that have the same policy."""

    kind: Kind
    policy: Policy
    key: str
    """The key that says so; "" where there is no choice."""
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram; `odd` marks what is beyond the limit."""

    label: str
    count: int
    odd: bool = False


@dataclass(frozen=True)
class FrameRow:
    """The pictures for training that have one frame at one resolution."""

    resolution: int
    frame: str
    count: int
    cropped: float
    """The mean share that is cut away, 0 to 1."""
    enlarged: int
    """Pictures that are smaller than the frame."""


@dataclass(frozen=True)
class Trigger:
    word: str
    having: int
    """Pictures all of whose captions have it."""


@dataclass(frozen=True)
class Report:
    label: str
    root: Path
    train: int
    validation: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    resolutions: tuple[int, ...]
    max_tokens: int | None
    sizes: tuple[Bar, ...]
    """Pictures by their shorter side."""
    shapes: tuple[Bar, ...]
    """Pictures by their proportions."""
    tokens: tuple[Bar, ...]
    """Captions by their tokens."""
    frames: tuple[FrameRow, ...]
    """Those that pictures for training have, the most frequent first."""
    left_out: int
    """Visits in an epoch that data.enlarge=false leaves out."""
    triggers: tuple[Trigger, ...]
    max_pixels: int
    quick: bool = False
    """Whether the pictures' headers alone were read."""

    @property
    def stopping(self) -> list[Row]:
        """What would stop training."""
        return [row for row in self.rows if row.policy == "fail"]

    @property
    def headline(self) -> str:
        found = Counter(row.policy for row in self.rows for _ in row.faults)
        if found["fail"]:
            return f"Training would stop: {_things(found['fail'])} to mend"
        parts = [f"{found['skip']} left out" * bool(found["skip"]), f"{found['warn']} to look at" * bool(found["warn"])]
        ready = "So far ready to train on, by headers and captions" if self.quick else "Ready to train on"
        return ready + "".join(f", {part}" for part in parts if part)


def examine(
    survey: Survey, fit: Fit, *, words: Sequence[str] = (), batch: int = 1, label: str = "", quick: bool = False
) -> Report:
    """The report on a survey; `words` are triggers that each caption should have, `batch` the pictures of a batch."""
    everyone, config = [*survey.train, *survey.validation], survey.config

    def name(path: Path) -> str:
        return shown(path.relative_to(survey.root) if path.is_relative_to(survey.root) else path)

    faults = survey.decided()
    faults += [(f, "warn", "") for f in findings.triggers(survey.train, words, name)]
    families = fit.frames(config)
    if config.buckets:
        faults += [(f, "warn", "") for f in findings.small_frames(survey.train, families, batch)]
    if not survey.train and not any(policy == "fail" for _, policy, _ in faults):
        faults.append((Fault(config.label, "no picture is left to train on"), "fail", ""))
    lacking = Counter(f.what for f, _, _ in faults if f.kind == "no_trigger")
    triggers = tuple(Trigger(w, len(survey.train) - lacking[findings.lacks(w)]) for w in words)
    frames = _frames(survey.train, families, config.crop in ("center", "random"))
    return Report(
        label or config.label, survey.root, len(survey.train), len(survey.validation), _rows(faults),
        (*survey.notes, *([UNSEEN] if quick else [])),
        fit.resolutions, fit.tokens.max_tokens if fit.tokens else None,
        _sizes(everyone, min(fit.resolutions, default=0)), _shapes(everyone), _tokens(everyone, fit), frames,
        len(survey.train) * len(families) - sum(row.count for row in frames), triggers,
        config.max_pixels, quick,
    )  # fmt: skip


def as_json(report: Report) -> Json:
    """Everything, for programs."""
    return {
        "format": FORMAT,
        "data": report.label,
        "quick": report.quick,
        "headline": report.headline,
        "stops": bool(report.stopping),
        "train": report.train,
        "validation": report.validation,
        "resolutions": list(report.resolutions),
        "max_tokens": report.max_tokens,
        "notes": list(report.notes),
        "kinds": [
            {
                "kind": row.kind.name, "policy": row.policy, "key": row.key, "count": len(row.faults),
                "about": row.kind.about, "remedy": row.kind.remedy, "findings": [_finding(f, report) for f in row.faults],
            }
            for row in report.rows
        ],
        "shorter_sides": _bars(report.sizes),
        "proportions": _bars(report.shapes),
        "caption_tokens": _bars(report.tokens),
        "frames": [vars(row) for row in report.frames],
        "left_out_of_frames": report.left_out,
        "triggers": [{"word": t.word, "pictures": t.having, "of": report.train} for t in report.triggers],
    }  # fmt: skip


def write(report: Report, path: Path) -> None:
    """As JSON. Raises DataError for a file that is there and no such report."""
    check_file(path)
    write_json(path, as_json(report))


def check_file(path: Path) -> None:
    """Refuse a file that is there and is no such report. Raises DataError."""
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        there = None
    if not (isinstance(there, dict) and there.get("format") == FORMAT):
        raise DataError(f"{path}: exists and is no report of `sdtune data check`; move it away")


def _finding(fault: Fault, report: Report) -> Json:
    names = [shown(p.relative_to(report.root) if p.is_relative_to(report.root) else p) for p in fault.pictures]
    return {"where": fault.where, "what": fault.what, "detail": fault.detail, "pictures": names}


def _things(number: int) -> str:
    return "1 thing" if number == 1 else f"{number} things"


def _rows(faults: Sequence[tuple[Fault, str, str]]) -> tuple[Row, ...]:
    """The worst first, and within a policy in the order of the kinds."""
    known, found = list(kinds()), dict[tuple[str, str, str], list[Fault]]()
    for fault, policy, key in faults:
        found.setdefault((fault.kind, policy, key), []).append(fault)
    rows = [
        Row(kinds()[kind], policy, key, tuple(some))  # type: ignore[arg-type]  # a policy is one of four
        for (kind, policy, key), some in found.items()
    ]
    return tuple(sorted(rows, key=lambda row: (ORDER.index(row.policy), known.index(row.kind.name))))


# ---- histograms


def _bars(bars: Sequence[Bar]) -> list[Json]:
    return [{"label": b.label, "count": b.count} for b in bars]


SIDES = (0, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 4096)


def _frames(examples: Sequence[Example], families: Sequence[Frames], cuts: bool) -> tuple[FrameRow, ...]:
    rows = []
    for frames in families:
        inside: dict[Frame, list[Example]] = {}
        for e in examples:
            if frame := frames.of(e.size):
                inside.setdefault(frame, []).append(e)
        for frame, some in sorted(inside.items(), key=lambda pair: -len(pair[1])):
            away = sum(cropped(e.size, frame) for e in some) / len(some) if cuts else 0.0
            larger = sum(scale(e.size, frame) > 1 for e in some)
            rows.append(FrameRow(frames.resolution, str(frame), len(some), round(away, 4), larger))
    return tuple(rows)


def _sizes(examples: Sequence[Example], resolution: int) -> tuple[Bar, ...]:
    edges = sorted({*SIDES, resolution})
    sides = [min(e.size) for e in examples]
    counts = Counter(max(i for i, edge in enumerate(edges) if edge <= side) for side in sides)
    return tuple(Bar(_span(edges, i), counts[i], edges[i] < resolution) for i in _filled(counts))


RATIOS = ((1 / 3, "taller"), (9 / 16, "9:16"), (2 / 3, "2:3"), (3 / 4, "3:4"), (1, "1:1"), (4 / 3, "4:3"), (3 / 2, "3:2"),
          (16 / 9, "16:9"), (3, "wider"))  # fmt: skip


def _shapes(examples: Sequence[Example]) -> tuple[Bar, ...]:
    """By the nearest usual proportions of width to height."""
    counts = Counter(
        min(range(len(RATIOS)), key=lambda i: abs(math.log(e.size[0] / e.size[1] / RATIOS[i][0]))) for e in examples
    )
    return tuple(Bar(RATIOS[i][1], counts[i], i in (0, len(RATIOS) - 1)) for i in _filled(counts))


def _tokens(examples: Sequence[Example], fit: Fit) -> tuple[Bar, ...]:
    if fit.tokens is None:
        return ()
    limit, texts = fit.tokens.max_tokens, [c for e in examples for c in e.captions]
    lengths = fit.tokens.token_counts(texts) if texts else []
    step = max(1, math.ceil(limit / 8))
    edges = [*range(0, limit, step), limit + 1, 2 * limit + 1]
    counts = Counter(max(i for i, edge in enumerate(edges) if edge <= n) for n in lengths)
    return tuple(Bar(_span(edges, i), counts[i], edges[i] > limit) for i in _filled(counts))


def _filled(counts: Counter[int]) -> range:
    """From the first bar that is not empty to the last."""
    return range(min(counts), max(counts) + 1) if counts else range(0)


def _span(edges: Sequence[int], i: int) -> str:
    return f"{edges[i]}\N{EN DASH}{edges[i + 1] - 1}" if i + 1 < len(edges) else f"from {edges[i]}"
