"""What was found out about files, kept until they change. Imports no torch."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdtune.data import archives
from sdtune.data.listing import state

FORMAT = "1"
"""To be changed with anything that changes what is found out about the same file."""
WRITTEN_S = 20.0
"""No more work than this is lost to a crash."""


class Ledger:
    """Facts by a file's path and what was asked, for files that are as they were (`listing.state`).

    It only saves time: where it cannot be read or written, everything is looked at again. Several processes may use one.
    """

    def __init__(self, path: Path, asked: str) -> None:
        """`asked`: whatever the facts depend on beside the file, as a text."""
        self._asked, self._new = f"{FORMAT}/{asked}", list[tuple[str, str, str, str]]()
        self._db: sqlite3.Connection | None = None
        self._written = time.monotonic()
        with suppress(OSError, sqlite3.Error):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=10, isolation_level=None)
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=off")
            self._db.execute(
                "create table if not exists facts (path text, asked text, state text, said text, primary key (path, asked)) without rowid"
            )

    def get(self, path: Path) -> Any:
        """What `put` was given for the file as it is now, or None."""
        if self._db is None:
            return None
        with suppress(sqlite3.Error, ValueError):
            row = self._db.execute(
                "select state, said from facts where path = ? and asked = ?", (_text(path), self._asked)
            ).fetchone()
            if row and row[0] == state_of(path):
                return json.loads(row[1])
        return None

    def put(self, path: Path, facts: object, was: str | None) -> None:
        """Remember `facts` of a file, which must be what JSON can hold. `was`: its `state_of` before it was read; None: not to be
        remembered. Written from time to time, and by `close`."""
        if self._db is not None and was:
            self._new.append((_text(path), self._asked, was, json.dumps(facts)))
            if len(self._new) >= 10_000 or time.monotonic() - self._written > WRITTEN_S:
                self._write()

    def close(self) -> None:
        self._write()
        if self._db is not None:
            self._db.close()
            self._db = None

    def _write(self) -> None:
        new, self._new, self._written = self._new, [], time.monotonic()
        if self._db is None or not new:
            return
        with suppress(sqlite3.Error):
            self._db.execute("begin immediate")
            self._db.executemany("insert or replace into facts values (?, ?, ?, ?)", new)
            self._db.execute("commit")


def state_of(path: Path) -> str | None:
    """`state`, of a picture inside an archive that of the archive."""
    return state(archives.archive_of(path) or path)


def _text(path: Path) -> str:
    return str(path.absolute()).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
