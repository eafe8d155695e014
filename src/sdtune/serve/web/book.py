"""What people did with pictures beyond drawing them: grids that they asked for, and blind votes. In SQLite, beside the queue."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Choice = Literal["original", "tuned", "same"]
_TABLES = """
CREATE TABLE IF NOT EXISTS grids (
  id TEXT PRIMARY KEY, x TEXT NOT NULL, y TEXT NOT NULL, jobs TEXT NOT NULL, prompt TEXT NOT NULL, created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS votes (
  job TEXT NOT NULL, seed INTEGER NOT NULL, model TEXT NOT NULL, prompt TEXT NOT NULL, choice TEXT NOT NULL, created REAL NOT NULL,
  PRIMARY KEY (job, seed));
"""


@dataclass(frozen=True)
class Axis:
    """One side of a grid: a setting of the form, and its values."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Grid:
    id: str
    x: Axis
    y: Axis
    jobs: tuple[str, ...]
    """Row by row."""
    prompt: str
    created: float


@dataclass(frozen=True)
class Vote:
    """What one person chose who did not know which picture was which."""

    job: str
    seed: int
    model: str
    prompt: str
    choice: Choice


class Book:
    """Used by one thread: the server's."""

    def __init__(self, file: Path) -> None:
        self._db = sqlite3.connect(file, isolation_level=None, timeout=5)
        self._db.executescript(_TABLES)

    def add_grid(self, x: Axis, y: Axis, jobs: Sequence[str], prompt: str) -> Grid:
        grid = Grid(uuid.uuid4().hex, x, y, tuple(jobs), prompt, time.time())
        row = (grid.id, *(json.dumps([a.key, a.values]) for a in (x, y)), json.dumps(jobs), prompt, grid.created)
        self._db.execute("INSERT INTO grids VALUES (?, ?, ?, ?, ?, ?)", row)
        return grid

    def grid(self, name: str) -> Grid | None:
        rows = self._grids("WHERE id = ?", name)
        return rows[0] if rows else None

    def grids(self, limit: int = 20) -> list[Grid]:
        """The newest first."""
        return self._grids("ORDER BY created DESC LIMIT ?", limit)

    def _grids(self, clause: str, value: object) -> list[Grid]:
        rows = self._db.execute(f"SELECT id, x, y, jobs, prompt, created FROM grids {clause}", (value,))
        return [Grid(row[0], _axis(row[1]), _axis(row[2]), tuple(json.loads(row[3])), row[4], row[5]) for row in rows]

    def vote(self, vote: Vote) -> None:
        """A later one on the same pair takes the earlier one's place."""
        row = (vote.job, vote.seed, vote.model, vote.prompt, vote.choice, time.time())
        self._db.execute("INSERT OR REPLACE INTO votes VALUES (?, ?, ?, ?, ?, ?)", row)

    def votes(self, model: str | None = None) -> list[Vote]:
        """All, or those on one model."""
        rows = self._db.execute(
            "SELECT job, seed, model, prompt, choice FROM votes WHERE ? IS NULL OR model = ?", (model, model)
        )
        return [Vote(*row) for row in rows]


def _axis(text: str) -> Axis:
    key, values = json.loads(text)
    return Axis(key, tuple(values))
