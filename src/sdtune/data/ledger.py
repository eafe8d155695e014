"""What was found out about files, kept until they change. Imports no torch."""

from __future__ import annotations

import json
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdtune.data import archives
from sdtune.data.listing import state

FORMAT = "1"
"""To be changed with anything that changes what is found out about the same file."""


class Ledger:
    """Facts by a file's path and what was asked, for files that are as they were (`listing.state`).

    It only saves time: where it cannot be read or written, everything is looked at again. Several processes may use one.
    """

    def __init__(self, path: Path, asked: str) -> None:
        """`asked`: whatever the facts depend on beside the file, as a text."""
        self._asked, self._new = f"{FORMAT}/{asked}", list[tuple[str, str, str, str]]()
        self._db: sqlite3.Connection | None = None
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
            if row and row[0] == _state(path):
                return json.loads(row[1])
        return None

    def put(self, path: Path, facts: object) -> None:
        """Remember `facts` of a file, which must be what JSON can hold. `close` writes them."""
        if self._db is not None and (now := _state(path)):
            self._new.append((_text(path), self._asked, now, json.dumps(facts)))
            if len(self._new) >= 10_000:
                self._write()

    def close(self) -> None:
        self._write()
        if self._db is not None:
            self._db.close()
            self._db = None

    def _write(self) -> None:
        new, self._new = self._new, []
        if self._db is None or not new:
            return
        with suppress(sqlite3.Error):
            self._db.execute("begin immediate")
            self._db.executemany("insert or replace into facts values (?, ?, ?, ?)", new)
            self._db.execute("commit")


def _state(path: Path) -> str | None:
    """Of a picture inside an archive, that of the archive."""
    return state(archives.archive_of(path) or path)


def _text(path: Path) -> str:
    return str(path.absolute()).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
