"""Which pictures stand beside each other: a row for each prompt, across it the real picture, the base and each entry's first training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sdtune import stats
from sdtune.contact import write_columns
from sdtune.data.images import load_image
from sdtune.errors import DataError
from sdtune.experiments.evidence import BASE, Trained
from sdtune.metrics.content import strip_shared
from sdtune.pairs import make_plan

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdtune.experiments.page import Subject

NAME = "contact.png"
PROMPTS = 12
"""Rows of the sheet at most; the page has more."""
REAL = "real"


@dataclass(frozen=True)
class Row:
    """Pictures of one prompt. None where there is none."""

    prompt: str
    short: str
    """Without the words that all prompts share."""
    real: Path | None
    drawn: tuple[Path | None, ...]
    """The base's, then each entry's."""


@dataclass(frozen=True)
class Shown:
    names: tuple[str, ...]
    """Of the columns of `Row.drawn`."""
    rows: tuple[Row, ...]
    seed: int
    """Of every picture."""
    train_seed: int
    """Of each entry's training."""
    whole: int
    """Prompts in all; the rows are evenly spread over them."""

    @property
    def real(self) -> bool:
        """Whether any prompt has a real picture."""
        return any(row.real for row in self.rows)


def of_subject(subject: Subject, most: int) -> Shown:
    """At most so many prompts, evenly spread, all at the first seed."""
    first = subject.entries[0].runs[0]
    seed = first.scores["pictures"][0]["seed"]
    prompts: list[str] = first.scores["plan"]["prompts"]
    short = dict(zip(prompts, strip_shared(prompts), strict=True))
    real = {e.captions[0]: e.image for e in (subject.plan or make_plan(subject.config)).reference}
    columns = [_by_prompt(first, "base", seed), *(_by_prompt(e.runs[0], "tuned", seed) for e in subject.entries)]
    rows = tuple(Row(p, short[p], real.get(p), tuple(c.get(p) for c in columns)) for p in stats.spread(prompts, most))
    names = (BASE, *(entry.name for entry in subject.entries))
    return Shown(names, rows, seed, first.seed, len(prompts))


def _by_prompt(trained: Trained, side: Literal["base", "tuned"], seed: int) -> Mapping[str, Path]:
    rows = trained.scores["pictures"]
    return {row["prompt"]: path for row, path in zip(rows, trained.pictures(side), strict=True) if row["seed"] == seed}


def opened(path: Path | None) -> Image | None:
    """Upright and in RGB; None for a picture that is gone."""
    try:
        return load_image(path) if path else None
    except DataError:
        return None


def write_sheet(subject: Subject) -> Path:
    """Write the sheet of at most 12 prompts beside the page; returns its path. For a README or an issue, as leaderboard.md is."""
    shown = of_subject(subject, PROMPTS)
    heads = [(name, f"training seed {shown.train_seed}") for name in shown.names]
    heads[0] = BASE, "before training"
    rows = [(f"{row.prompt}   seed {shown.seed}", [opened(path) for path in row.drawn]) for row in shown.rows]
    if shown.real:
        heads.insert(0, (REAL, "held out of training"))
        for (_, cells), row in zip(rows, shown.rows, strict=True):
            cells.insert(0, opened(row.real))
    path = subject.out / NAME
    write_columns(rows, heads, path)
    return path
