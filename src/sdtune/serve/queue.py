"""Jobs and pictures in SQLite: what was taken is still there after a crash, and what was being drawn waits again."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["queued", "running", "done", "failed", "cancelled"]
OPEN: tuple[State, ...] = ("queued", "running")
TRIES = 3
"""Starts of a job; one that the server died of so often is not tried again."""
VERSION = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
  number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, state TEXT NOT NULL, wish TEXT NOT NULL, client TEXT NOT NULL,
  key TEXT, error TEXT, tries INTEGER NOT NULL DEFAULT 0, alone INTEGER NOT NULL DEFAULT 0,
  created REAL NOT NULL, started REAL, finished REAL);
CREATE UNIQUE INDEX IF NOT EXISTS jobs_key ON jobs (client, key) WHERE key IS NOT NULL;
CREATE INDEX IF NOT EXISTS jobs_state ON jobs (state, number);
CREATE TABLE IF NOT EXISTS pictures (
  id TEXT PRIMARY KEY, job TEXT, number INTEGER NOT NULL, kind TEXT NOT NULL, record TEXT NOT NULL, created REAL NOT NULL);
CREATE INDEX IF NOT EXISTS pictures_job ON pictures (job, number);
"""


@dataclass(frozen=True)
class Job:
    number: int
    """In the order of arrival."""
    id: str
    state: State
    wish: dict[str, Any]
    client: str
    error: dict[str, str] | None
    tries: int
    alone: bool
    """Whether it is drawn by itself, since a worker died while it was drawn with others."""
    created: float
    started: float | None
    finished: float | None

    @property
    def pictures(self) -> int:
        """How many it asks for."""
        return len(self.wish["seeds"]) * (2 if self.wish["kind"] == "compare" else 1)


@dataclass(frozen=True)
class Picture:
    id: str
    job: str | None
    """None: an upload."""
    number: int
    """Its place in the job: pictures of the original come before those of the tuned model."""
    kind: str
    """tuned, original, or upload."""
    record: dict[str, Any]
    created: float


class Queue:
    """Used by one thread: the server's."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(file, isolation_level=None, timeout=5)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")  # a job that was answered 202 outlives a power cut
        self._db.executescript(_TABLES)
        self._db.execute(f"PRAGMA user_version={VERSION}")

    def close(self) -> None:
        self._db.close()

    # ---- jobs

    def add(self, wish: Mapping[str, Any], client: str, key: str | None = None) -> Job:
        """A new job at the end. Raises sqlite3.IntegrityError if the client has used `key` before."""
        name = uuid.uuid4().hex
        self._db.execute(
            "INSERT INTO jobs (id, state, wish, client, key, created) VALUES (?, 'queued', ?, ?, ?, ?)",
            (name, json.dumps(wish), client, key, time.time()),
        )
        found = self.get(name)
        assert found
        return found

    def get(self, name: str) -> Job | None:
        return self._one("SELECT * FROM jobs WHERE id = ?", name)

    def by_key(self, client: str, key: str) -> Job | None:
        return self._one("SELECT * FROM jobs WHERE client = ? AND key = ?", client, key)

    def jobs(self, states: Collection[str] = (), *, limit: int = 100, before: int | None = None) -> list[Job]:
        """The newest first."""
        where = [f"state IN ({', '.join('?' * len(states))})"] if states else []
        where += ["number < ?"] if before is not None else []
        clause = f"WHERE {' AND '.join(where)}" if where else ""
        rows = self._db.execute(
            f"SELECT * FROM jobs {clause} ORDER BY number DESC LIMIT ?",
            (*states, *([before] if before is not None else []), limit),
        )
        return [_job(row) for row in rows]

    def waiting(self, limit: int = 100) -> list[Job]:
        """The oldest first."""
        rows = self._db.execute("SELECT * FROM jobs WHERE state = 'queued' ORDER BY number LIMIT ?", (limit,))
        return [_job(row) for row in rows]

    def ahead(self, job: Job) -> int:
        """How many wait before it."""
        return self._count("SELECT COUNT(*) FROM jobs WHERE state = 'queued' AND number < ?", job.number)

    def count(self, state: State, client: str | None = None) -> int:
        if client is None:
            return self._count("SELECT COUNT(*) FROM jobs WHERE state = ?", state)
        return self._count("SELECT COUNT(*) FROM jobs WHERE state = ? AND client = ?", state, client)

    def start(self, names: Sequence[str]) -> None:
        with self._at_once():
            self._db.executemany(
                "UPDATE jobs SET state = 'running', tries = tries + 1, started = ? WHERE id = ? AND state = 'queued'",
                [(time.time(), name) for name in names],
            )

    def begun(self) -> list[Job]:
        """Open jobs that a worker has had, the oldest first."""
        rows = self._db.execute(
            "SELECT * FROM jobs WHERE state = 'running' OR (state = 'queued' AND tries) ORDER BY number"
        )
        return [_job(row) for row in rows]

    def end(self, name: str, state: State, error: Mapping[str, str] | None = None) -> bool:
        """Whether it was open until now."""
        told = json.dumps(error) if error else None
        done = self._db.execute(
            "UPDATE jobs SET state = ?, error = ?, finished = ? WHERE id = ? AND state IN ('queued', 'running')",
            (state, told, time.time(), name),
        )
        return done.rowcount > 0

    def put_back(self, name: str, *, alone: bool = False, free: bool = False) -> None:
        """Let a running job wait again, in its old place. `free`: this start does not count."""
        self._db.execute(
            "UPDATE jobs SET state = 'queued', started = NULL, alone = MAX(alone, ?), tries = tries - ? "
            "WHERE id = ? AND state = 'running'",
            (int(alone), int(free), name),
        )

    def recover(self) -> list[str]:
        """What was running when the server ended waits again; returns the ids of jobs that have been tried too often."""
        lost = [job for job in self.jobs(("running",), limit=10_000) if job.tries >= TRIES]
        for job in lost:
            self.end(
                job.id, "failed", {"code": "crashed", "message": f"the server ended {TRIES} times while it was drawn"}
            )
        self._db.execute("UPDATE jobs SET state = 'queued', started = NULL WHERE state = 'running'")
        return [job.id for job in lost]

    # ---- pictures

    def add_picture(self, name: str, job: str | None, number: int, kind: str, record: Mapping[str, Any]) -> None:
        """After its file is whole."""
        self._db.execute(
            "INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?, ?, ?)",
            (name, job, number, kind, json.dumps(record), time.time()),
        )

    def picture(self, name: str) -> Picture | None:
        row = self._db.execute("SELECT * FROM pictures WHERE id = ?", (name,)).fetchone()
        return _picture(row) if row else None

    def pictures_of(self, job: str) -> list[Picture]:
        rows = self._db.execute("SELECT * FROM pictures WHERE job = ? ORDER BY number", (job,))
        return [_picture(row) for row in rows]

    def pictures(self, *, limit: int = 100, before: float | None = None) -> list[Picture]:
        """What was drawn, the newest first."""
        rows = self._db.execute(
            "SELECT * FROM pictures WHERE job IS NOT NULL AND created < ? ORDER BY created DESC LIMIT ?",
            (1e12 if before is None else before, limit),
        )
        return [_picture(row) for row in rows]

    def uploads(self) -> list[Picture]:
        """The oldest first."""
        return [_picture(r) for r in self._db.execute("SELECT * FROM pictures WHERE job IS NULL ORDER BY created")]

    def drop_pictures(self, names: Sequence[str]) -> None:
        """All or none."""
        with self._at_once():
            self._db.executemany("DELETE FROM pictures WHERE id = ?", [(name,) for name in names])

    def kinds(self) -> dict[str, str]:
        """The kind of each picture and upload, by id."""
        return {row["id"]: row["kind"] for row in self._db.execute("SELECT id, kind FROM pictures")}

    def beyond(self, most: int) -> list[Picture]:
        """The oldest drawn pictures, as many as there are more than `most`, but for those that open jobs need."""
        count = self._count("SELECT COUNT(*) FROM pictures WHERE job IS NOT NULL") - most
        if count <= 0:
            return []
        rows = self._db.execute(
            "SELECT * FROM pictures WHERE job IS NOT NULL "
            "AND job NOT IN (SELECT id FROM jobs WHERE state IN ('queued', 'running')) ORDER BY created, number LIMIT ?",
            (count,),
        )
        needed = self.needed()
        return [picture for picture in map(_picture, rows) if picture.id not in needed]

    def forget_jobs(self, most: int, *, all_before: bool) -> None:
        """Drop ended jobs without pictures beyond the newest `most` ended ones; `all_before`: and those older than any picture."""
        self._db.execute(
            "DELETE FROM jobs WHERE finished IS NOT NULL AND id NOT IN (SELECT job FROM pictures WHERE job IS NOT NULL) AND ("
            "number <= (SELECT number FROM jobs WHERE finished IS NOT NULL ORDER BY number DESC LIMIT 1 OFFSET ?) OR "
            "(? AND finished < (SELECT MIN(created) FROM pictures WHERE job IS NOT NULL)))",
            (most, int(all_before)),
        )

    @contextmanager
    def _at_once(self) -> Iterator[None]:
        """One write to the disk for all that is done inside."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def needed(self) -> set[str]:
        """The ids of pictures that open jobs begin with."""
        wishes = [job.wish for job in self.jobs(OPEN, limit=10_000)]
        return {name for wish in wishes for name in (wish.get("image"), wish.get("mask")) if name}

    def _one(self, question: str, *values: object) -> Job | None:
        row = self._db.execute(question, values).fetchone()
        return _job(row) if row else None

    def _count(self, question: str, *values: object) -> int:
        return int(self._db.execute(question, values).fetchone()[0])


def _job(row: sqlite3.Row) -> Job:
    error = json.loads(row["error"]) if row["error"] else None
    return Job(
        row["number"], row["id"], row["state"], json.loads(row["wish"]), row["client"], error, row["tries"], bool(row["alone"]),
        row["created"], row["started"], row["finished"],
    )  # fmt: skip


def _picture(row: sqlite3.Row) -> Picture:
    return Picture(row["id"], row["job"], row["number"], row["kind"], json.loads(row["record"]), row["created"])
