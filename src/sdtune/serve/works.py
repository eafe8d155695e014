"""The trainings and evaluations of the server, in the queue's SQLite file: what was asked, its process, how it ended."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdtune.serve.views import JobState, Kind, WorkJob

_TABLES = """
CREATE TABLE IF NOT EXISTS works (
  number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, kind TEXT NOT NULL, run TEXT NOT NULL, place TEXT NOT NULL,
  state TEXT NOT NULL, request TEXT NOT NULL, client TEXT NOT NULL, key TEXT, error TEXT, stopping INTEGER NOT NULL DEFAULT 0,
  pid INTEGER, born REAL, created REAL NOT NULL, started REAL, finished REAL);
CREATE UNIQUE INDEX IF NOT EXISTS works_key ON works (client, key) WHERE key IS NOT NULL;
CREATE INDEX IF NOT EXISTS works_state ON works (state, number);
CREATE INDEX IF NOT EXISTS works_run ON works (run, number);
"""


@dataclass(frozen=True)
class Process:
    """A process that cannot be taken for a later one of the same number."""

    pid: int
    born: float
    """Seconds since 1970."""


class Works:
    """Used by one thread: the server's."""

    def __init__(self, file: Path) -> None:
        self._db = sqlite3.connect(file, isolation_level=None, timeout=5)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_TABLES)

    def close(self) -> None:
        self._db.close()

    def add(
        self, kind: Kind, run: str, place: Path, request: Mapping[str, Any], client: str, key: str | None = None
    ) -> WorkJob:
        """A new one at the end; `place` is the run's folder."""
        name = uuid.uuid4().hex
        self._db.execute(
            "INSERT INTO works (id, kind, run, place, state, request, client, key, created) VALUES (?, ?, ?, ?, 'queued', ?, ?, ?, ?)",
            (name, kind, run, str(place), json.dumps(request), client, key, time.time()),
        )
        found = self.get(name)
        assert found
        return found

    def get(self, name: str) -> WorkJob | None:
        return self._one("SELECT * FROM works WHERE id = ?", name)

    def by_key(self, client: str, key: str) -> WorkJob | None:
        return self._one("SELECT * FROM works WHERE client = ? AND key = ?", client, key)

    def newest_of(self, run: str) -> WorkJob | None:
        return self._one("SELECT * FROM works WHERE run = ? ORDER BY number DESC LIMIT 1", run)

    def open_of(self, run: str) -> WorkJob | None:
        """The one of a run that waits or runs."""
        return self._one("SELECT * FROM works WHERE run = ? AND state IN ('queued', 'running')", run)

    def jobs(self, states: Collection[str] = (), *, limit: int = 100, before: int | None = None) -> list[WorkJob]:
        """The newest first."""
        where = [f"state IN ({', '.join('?' * len(states))})"] if states else []
        where += ["number < ?"] if before is not None else []
        clause = f"WHERE {' AND '.join(where)}" if where else ""
        rows = self._db.execute(
            f"SELECT * FROM works {clause} ORDER BY number DESC LIMIT ?",
            (*states, *([before] if before is not None else []), limit),
        )
        return [_job(row) for row in rows]

    def waiting(self) -> WorkJob | None:
        """The one that has waited longest."""
        return self._one("SELECT * FROM works WHERE state = 'queued' ORDER BY number LIMIT 1")

    def ahead(self, job: WorkJob) -> int:
        """How many wait before it."""
        return self._count("SELECT COUNT(*) FROM works WHERE state = 'queued' AND number < ?", job.number)

    def count(self, state: JobState, client: str | None = None) -> int:
        if client is None:
            return self._count("SELECT COUNT(*) FROM works WHERE state = ?", state)
        return self._count("SELECT COUNT(*) FROM works WHERE state = ? AND client = ?", state, client)

    def place(self, run: str) -> Path | None:
        """The folder of a run that was asked for here; it may not be there yet."""
        row = self._db.execute("SELECT place FROM works WHERE run = ? ORDER BY number DESC LIMIT 1", (run,)).fetchone()
        return Path(row["place"]) if row else None

    def runs(self) -> dict[str, Path]:
        """Those that something is open for: they may have no folder yet."""
        rows = self._db.execute("SELECT run, place FROM works WHERE state IN ('queued', 'running')")
        return {row["run"]: Path(row["place"]) for row in rows}

    def start(self, name: str) -> None:
        """Before its process is there: a server that ends in between finds the process by its command line."""
        self._db.execute(
            "UPDATE works SET state = 'running', started = ? WHERE id = ? AND state = 'queued'", (time.time(), name)
        )

    def put_back(self, name: str) -> None:
        """It was to be started, and was not."""
        self._db.execute(
            "UPDATE works SET state = 'queued', started = NULL, pid = NULL, born = NULL WHERE id = ? AND state = 'running'", (name,)
        )  # fmt: skip

    def keep_process(self, name: str, process: Process) -> None:
        self._db.execute("UPDATE works SET pid = ?, born = ? WHERE id = ?", (process.pid, process.born, name))

    def process(self, name: str) -> Process | None:
        row = self._db.execute("SELECT pid, born FROM works WHERE id = ?", (name,)).fetchone()
        return Process(row["pid"], row["born"]) if row and row["pid"] is not None else None

    def mark_stopping(self, name: str) -> None:
        self._db.execute("UPDATE works SET stopping = 1 WHERE id = ?", (name,))

    def end(self, name: str, state: JobState, error: Mapping[str, str] | None = None) -> bool:
        """Whether it was open until now."""
        done = self._db.execute(
            "UPDATE works SET state = ?, error = ?, finished = ? WHERE id = ? AND state IN ('queued', 'running')",
            (state, json.dumps(error) if error else None, time.time(), name),
        )
        return done.rowcount > 0

    def _one(self, question: str, *values: object) -> WorkJob | None:
        row = self._db.execute(question, values).fetchone()
        return _job(row) if row else None

    def _count(self, question: str, *values: object) -> int:
        return int(self._db.execute(question, values).fetchone()[0])


def _job(row: sqlite3.Row) -> WorkJob:
    error = json.loads(row["error"]) if row["error"] else None
    return WorkJob(
        row["number"], row["id"], row["kind"], row["run"], row["state"], json.loads(row["request"]), row["client"], error,
        bool(row["stopping"]), row["created"], row["started"], row["finished"],
    )  # fmt: skip
