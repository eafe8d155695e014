"""`sdtune ls`: the runs below a folder, each with its state, method, verdicts, size and time. Imports no torch."""

from __future__ import annotations

import json
import re
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdtune.errors import RunError
from sdtune.events import Event, Failed, Finished, Started, Step
from sdtune.experiments.measure import cost, size_of
from sdtune.judging.scores import QUESTIONS
from sdtune.runs import Run

BOARD = "leaderboard.json"
DEPTH = 6
"""Folders are looked through so deep."""


@dataclass(frozen=True)
class Row:
    """One run, for the list and for programs."""

    run: str
    state: str
    """finished, running, stopped, failed or empty; `compared` says whether it has a report."""
    method: str
    """Kind, with rank and layers where it has them."""
    step: int
    steps: int
    compared: bool
    verdicts: dict[str, str]
    primary: str
    """The change of the primary figure, with its interval."""
    size_mb: float | None
    """Of the result."""
    seconds: float | None
    """Of the training."""
    folder_mb: float
    began: float
    """Seconds since 1970."""
    message: str = ""
    """Why it failed."""

    @property
    def marks(self) -> str:
        """The verdicts as one sign each: + as wished, - not, ? cannot tell."""
        return "".join(
            "?" if (a := self.verdicts.get(key, "")) in ("", "cannot tell") else "+" if a == wish else "-"
            for key, (_, wish) in QUESTIONS.items()
        )


def runs_below(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The run folders at or below `folder`, by name. Folders inside a run are not looked into."""
    if (folder / "config.toml").is_file():
        yield folder
        return
    if depth >= 0:
        for path in _inside(folder):
            yield from runs_below(path, depth - 1)


def boards_below(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Folders with a leaderboard at or below `folder`, by name. Neither runs nor leaderboards are looked into."""
    if (folder / BOARD).is_file():
        yield folder
    elif depth >= 0 and not (folder / "config.toml").is_file():
        for path in _inside(folder):
            yield from boards_below(path, depth - 1)


def _inside(folder: Path) -> list[Path]:
    """The folders in a folder, by name, without hidden ones and links; none where it may not be read."""
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and not p.is_symlink())
    except OSError:
        return []


@dataclass(frozen=True)
class Place:
    """Where the run of a cell lies: EXPERIMENT/CELL-ID/seed-N."""

    experiment: Path
    cell: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.experiment.name}, {self.cell}, seed {self.seed}"


def cell_of(folder: Path) -> str:
    """The name of the cell whose folder it is; "" if it is none."""
    found = re.fullmatch(r"(.+)-[0-9a-f]{8}", folder.name)
    return found[1] if found else ""


def seed_of(folder: Path) -> int | None:
    """The seed that a run's folder in a cell is named by; None if it is none."""
    found = re.fullmatch(r"seed-(\d{1,18})", folder.name)
    return int(found[1]) if found else None


def place_of(run: Path) -> Place | None:
    """None for a run that belongs to no experiment, by its place."""
    cell, seed = cell_of(run.parent), seed_of(run)
    return Place(run.parent.parent, cell, seed) if cell and seed is not None else None


def rows(folder: Path) -> list[Row]:
    """What lies below a folder, oldest first. Raises RunError if it is not there."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; name one that holds runs")
    return sorted(filter(None, map(row, runs_below(folder))), key=lambda r: (r.began, r.run))


def row(path: Path) -> Row | None:
    """None where the config is none of ours."""
    run = Run(path)
    try:
        config = tomllib.loads(run.config_file.read_text(encoding="utf-8"))
        method, train = config["method"], config["train"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    events = _events(run)
    spent, found = cost(run, events), outcome_of(run)
    state, message = _state(run, events)
    steps = [e.step for e in events if isinstance(e, Step | Finished)]
    return Row(
        run=str(path), state=state, method=method_text(method), step=steps[-1] if steps else 0, steps=int(train.get("steps", 0)),
        compared=found.compared, verdicts=found.verdicts, primary=found.primary,
        size_mb=spent.size_mb, seconds=spent.seconds, folder_mb=size_of(path) / 1e6,
        began=next((e.time for e in events if isinstance(e, Started)), path.stat().st_mtime), message=message,
    )  # fmt: skip


def _events(run: Run) -> list[Event]:
    try:
        return list(run.events())
    except (OSError, ValueError, KeyError, TypeError):  # of another version
        return []


def _state(run: Run, events: list[Event]) -> tuple[str, str]:
    if run.living():
        return "running", ""
    if run.final.is_dir() and any(isinstance(e, Finished) for e in events):
        return "finished", ""
    last = events[-1] if events else None
    if isinstance(last, Failed):
        return "failed", last.message
    try:
        return "failed", str(json.loads((run.path / "failure.json").read_text(encoding="utf-8"))["message"])
    except (OSError, ValueError, KeyError):
        return ("stopped" if any(isinstance(e, Step) for e in events) else "empty"), ""


@dataclass(frozen=True)
class Outcome:
    """What a run's comparison came to."""

    compared: bool = False
    verdicts: dict[str, str] = field(default_factory=dict)
    """The answer to each question of QUESTIONS."""
    primary: str = ""
    """The change of the primary figure in words, with its interval."""


def outcome_of(run: Run) -> Outcome:
    """Nothing before it is compared, and where another program or version wrote the scores."""
    try:
        scores = json.loads(run.scores_file.read_text(encoding="utf-8"))
        return Outcome(bool(scores), {v["key"]: v["answer"] for v in scores.get("verdicts", [])}, _primary(scores))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Outcome()


def _primary(scores: dict[str, Any]) -> str:
    from sdtune.judging.scores import number

    primary = scores.get("statistics", {}).get("primary", "")
    figure = next((f for f in scores.get("figures", []) if f["key"] in (primary, f"{primary}_target")), None)
    change = figure and figure.get("difference")
    if not change or change["value"] is None:
        return ""
    low, high = change.get("low"), change.get("high")
    values = [f"{'+' if v > 0 else ''}{number(v)}" for v in (change["value"], low, high) if v is not None]
    return f"{primary} {values[0]}" + (f" ({values[1]} to {values[2]})" if len(values) == 3 else "")


def method_text(method: dict[str, Any]) -> str:
    """lora 8 many."""
    targets = method.get("targets", "")
    parts = [
        method.get("type", "lora"),
        method.get("rank", ""),
        targets if isinstance(targets, str) else "layers by name",
    ]
    return " ".join(str(p) for p in parts if p != "")


def when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
