"""What an experiment shows: one HTML file that needs nothing else, the same as JSON, a leaderboard in Markdown, a sheet of pictures, a
card for each cell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sdtune.config import RunConfig
from sdtune.data.layouts import plural
from sdtune.experiments import cards, shown
from sdtune.experiments.cards import Card
from sdtune.experiments.evidence import BASE, LABELS, Table, Trained, table
from sdtune.experiments.leaderboard import Estimate, Line, Pair
from sdtune.experiments.listing import BOARD
from sdtune.experiments.matrix import SEEDS_TO_CLAIM, Matrix, settings_text
from sdtune.experiments.measure import NOT_READABLE, Cost, cost
from sdtune.files import write_json, write_text
from sdtune.judging.scores import QUESTIONS, number
from sdtune.pairs import Plan
from sdtune.units import duration, megabytes

if TYPE_CHECKING:
    from sdtune.evaluate import Viewer
    from sdtune.experiments.run import Task

NAME = "index.html"
JSON = BOARD
MARKDOWN = "leaderboard.md"
SHEET = shown.NAME
TRAINED = "trained parameters"


@dataclass(frozen=True)
class Entry:
    """A row of the page: a cell of a matrix, or runs of one recipe."""

    name: str
    id: str
    settings: Mapping[str, Any]
    runs: tuple[Trained, ...]
    config: RunConfig
    card: Path
    prose: Mapping[str, str]

    @cached_property
    def costs(self) -> list[Cost]:
        return [cost(t.run) for t in self.runs]


@dataclass(frozen=True)
class Subject:
    """What a page is about. All entries were compared as `config` says, with the prompts and pictures of `plan` (unset: config's own)."""

    kind: str
    name: str
    about: str
    out: Path
    config: RunConfig
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    open: tuple[tuple[str, str, str], ...] = ()
    """Runs that are missing: label, state, and why."""
    again: str = ""
    """The command that makes it again."""
    plan: Plan | None = None
    losses: str = ""
    """Why the validation losses of the entries do not compare, where they do not."""


def of_matrix(matrix: Matrix, out: Path, tasks: Sequence[Task]) -> Subject:
    """All finished runs of a matrix."""
    made: dict[str, list[Trained]] = {}
    for task in tasks:
        if task.state == "finished":
            made.setdefault(task.item.cell.name, []).append(Trained.of(task.item.run, task.item.seed))
    entries = []
    for cell in matrix.cells:
        if cell.name in made:
            prose = {"how it helps": cell.idea, "origin of the idea": cell.source}
            runs = tuple(sorted(made[cell.name], key=lambda t: matrix.seeds.index(t.seed)))
            path = cell.folder(out) / cards.NAME
            entries.append(Entry(cell.name, cell.id, cell.settings, runs, cell.config, path, prose))
    missing = tuple((t.item.label, t.state, t.item.failure) for t in tasks if t.state != "finished")
    again = f"sdtune experiment {matrix.file.name}"
    config = matrix.cells[0].config
    return Subject("experiment", matrix.name, matrix.about, out, config, tuple(entries), matrix.seeds, missing, again)


def write(subject: Subject, scorer: Viewer | None = None) -> str:
    """Write the page of all finished runs; returns the first group in words."""
    from sdtune.experiments import view

    rows = {entry.name: entry.runs for entry in subject.entries}
    found = table(rows, subject.config, subject.out / "shared" / "seen", subject.plan, scorer, losses=subject.losses)
    made = [_card(entry, found) for entry in subject.entries]
    write_json(subject.out / JSON, as_json(subject, found))
    write_text(subject.out / MARKDOWN, markdown(subject, found))
    shown.write_sheet(subject)
    write_text(subject.out / NAME, view.html(subject, found, made))
    return best(found)


def best(found: Table) -> str:
    """The first group in words."""
    first = found.main.first_group
    if len(found.main.lines) < 2 or not first:
        return ""
    if BASE in first:
        return "nothing can be told from the base" if len(first) > 1 else "the base itself is best"
    return f"best: {first[0]}" if len(first) == 1 else f"best, not told apart: {', '.join(first)}"


# ---- cards


def _card(entry: Entry, found: Table) -> Card:
    facts = {"overview": "\n".join(_overview(entry)), "result": "\n".join(_result(entry, found))}
    return cards.refresh(entry.card, entry.name, facts, entry.prose)


def _overview(entry: Entry) -> Iterator[str]:
    first, train = entry.costs[0], entry.config.train
    yield f"- differs from the base recipe in: {settings_text(dict(entry.settings))}"
    pictures = train.batch_size * train.accumulate
    yield f"- {train.steps} steps of {pictures} pictures; {plural(len(entry.runs), 'training')}"
    if first.trainable and first.total:
        yield f"- trains {first.trainable:,} parameters ({100 * first.trainable / first.total:.3g}% of the denoiser)"
    for what, value in costs_text(entry.costs).items():
        if what == TRAINED:
            continue
        yield f"- {what}: {value}"


def _result(entry: Entry, found: Table) -> Iterator[str]:
    for key, ranking in found.rankings.items():
        line = ranking.line(entry.name)
        change = f"; {interval(line.change, key, signed=True)} from the base" if line.change else ""
        yield f"- {LABELS[key][0]}: {interval(line.estimate, key)}{change}"
    line = found.main.line(entry.name)
    if not line.letters:
        few = plural(len(line.seeds), "training")
        yield f"- {few}: this run only, at least {SEEDS_TO_CLAIM} are needed to speak of the cell"
    else:
        peers = [o.name for o in found.main.lines if o.name != line.name and set(o.letters) & set(line.letters)]
        yield f"- cannot be told from: {', '.join(peers)}" if peers else "- can be told from all others"
    for key, (question, _) in QUESTIONS.items():
        if told := answers(entry, key):
            yield f"- {question[0].lower()}{question[1:]} {told}"


def answers(entry: Entry, key: str) -> str:
    """What the comparisons of its trainings answer, the most frequent first: "no (2 of 3), cannot tell (1 of 3)"."""
    given = [t.verdict(key) for t in entry.runs]
    counts = Counter(filter(None, given)).most_common()
    return ", ".join(answer if n == len(given) else f"{answer} ({n} of {len(given)})" for answer, n in counts)


# ---- costs in words


def costs_text(costs: Sequence[Cost]) -> dict[str, str]:
    """What the trainings of a cell cost, each the mean over them."""

    def mean(values: list[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return fmean(known) if known else None

    out = {}
    if (seconds := mean([c.seconds for c in costs])) is not None:
        out["time"] = duration(seconds)
    if (speed := mean([c.images_per_second for c in costs])) is not None:
        out["speed"] = f"{speed:.3g} img/s"
    if (peak := mean([c.peak_memory_mb for c in costs])) is not None:
        out["peak memory"] = megabytes(peak)
    if costs[0].trainable is not None:
        out[TRAINED] = f"{costs[0].trainable:,}"
    if (size := mean([c.size_mb for c in costs])) is not None:
        out["size"] = f"{size:.3g} MB"
    joules = mean([c.joules for c in costs])
    out["energy"] = f"{joules / 3600:.3g} Wh" if joules is not None else next((c.energy for c in costs), NOT_READABLE)
    return out


# ---- JSON and Markdown


def as_json(subject: Subject, found: Table) -> dict[str, Any]:
    """All in numbers."""
    return {
        "format": "sdtune experiment 1",
        "name": subject.name,
        "primary": found.primary,
        "summary": best(found),
        "of": found.main.of,
        "notes": list(found.notes),
        "missing": [{"run": label, "state": state, "why": why} for label, state, why in subject.open],
        "figures": {
            key: {
                "label": LABELS[key][0],
                "better": LABELS[key][1],
                "units": found.units[key],
                "real": found.ceilings.get(key),
                "spread_between_seeds": _plain(ranking.pooled),
                "rows": [_line(line) for line in ranking.lines],
                "pairs": [_pair(pair) for pair in ranking.pairs],
            }
            for key, ranking in found.rankings.items()
        },
        "cells": {
            entry.name: {
                "id": entry.id,
                "settings": dict(entry.settings),
                "runs": [
                    {
                        "seed": t.seed,
                        "folder": _inside(t.run.path, subject.out),
                        "headline": t.scores["headline"],
                        "verdicts": {key: t.verdict(key) for key in QUESTIONS},
                        **c.record(),
                    }
                    for t, c in zip(entry.runs, entry.costs, strict=True)
                ],
            }
            for entry in subject.entries
        },
    }


def _inside(path: Path, out: Path) -> str:
    """The folder's name from the page, or its own name where it lies elsewhere: no path of a machine."""
    try:
        return path.relative_to(out).as_posix()
    except ValueError:
        return path.name


def _line(line: Line) -> dict[str, Any]:
    return {
        "name": line.name, "letters": line.letters, "claims": line.claims, "seeds": list(line.seeds),
        **_estimate(line.estimate), "change": _estimate(line.change) if line.change else None,
    }  # fmt: skip


def _pair(pair: Pair) -> dict[str, Any]:
    return {"a": pair.a, "b": pair.b, **_estimate(pair.difference), "p_holm": pair.p, "separated": pair.separated}


def _estimate(e: Estimate) -> dict[str, float | None]:
    return {k: _plain(v) for k, v in vars(e).items()}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def markdown(subject: Subject, found: Table) -> str:
    """The leaderboard for a README or an issue."""
    label, better = LABELS[found.primary]
    words = best(found)
    lines = [f"# {subject.name}", "", *([f"{words[0].upper()}{words[1:]}.", ""] if words else [])]
    lines += [
        f"| group | cell | {label} ({better} is better) | change from the base | did it help? | trainings |",
        "|---|---|---|---|---|---|",
    ]
    helped = {entry.name: answers(entry, "helped") for entry in subject.entries}
    for line in found.main.lines:
        change = interval(line.change, found.primary, signed=True) if line.change else ""
        value = interval(line.estimate, found.primary)
        cells = [line.letters, line.name, value, change, helped.get(line.name, ""), trainings(line)]
        lines.append(f"| {' | '.join(cells)} |")
    if (real := found.ceilings.get(found.primary)) is not None:
        lines.append(f"| | real pictures | {_number(real, found.primary)} | | | |")
    lines += ["", *[f"- {text}" for text in explained(found)], ""]
    heads = list(dict.fromkeys(key for entry in subject.entries for key in costs_text(entry.costs)))
    lines += [f"| cell | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for entry in subject.entries:
        told = costs_text(entry.costs)
        lines.append(f"| {entry.name} | {' | '.join(told.get(head, '') for head in heads)} |")
    return "\n".join(lines) + "\n"


def trainings(line: Line) -> str:
    """How many there are, and what that allows to say."""
    if line.name == BASE:
        return ""
    return (
        str(len(line.seeds)) if line.claims else f"{len(line.seeds)}, this run only"
        if len(line.seeds) == 1 else f"{len(line.seeds)}, these runs only"
    )  # fmt: skip


def explained(found: Table) -> list[str]:
    """How the leaderboard is to be read."""
    units = "validation pictures" if found.primary == "validation_loss" else "prompts"
    out = [
        f"Rows that share a letter cannot be told apart at 5% over all pairs (Holm), with {found.units[found.primary]} {units}.",
        f"Intervals are 95%; they speak of other {units} and other training seeds. All rows have the same {units}: changes are paired.",
    ]
    if found.main.of == "runs":
        out[1] = (
            f"No cell has {SEEDS_TO_CLAIM} trainings: all that is said here is of these very runs, and another training seed may turn "
            "it round."
        )
    return [*out, *found.notes]


def interval(e: Estimate, key: str, *, signed: bool = False) -> str:
    """0.286 (0.21 to 0.35); shares in per cent."""
    texts = [_number(v, key, signed=signed) for v in (e.value, e.low, e.high)]
    return f"{texts[0]} ({texts[1]} to {texts[2]})" if math.isfinite(e.low) else texts[0]


def _number(value: float, key: str, *, signed: bool = False) -> str:
    if key == "found_first":
        points = round(100 * (value if signed else min(1.0, max(0.0, value))))
        return (
            f"{points:+d}".replace("-", "\N{MINUS SIGN}") if signed and points else f"{points}{'' if signed else '%'}"
        )
    value = 0.0 if abs(value) < 1e-12 else value
    return ("+" if signed and value > 0 else "") + number(value)
