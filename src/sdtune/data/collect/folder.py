"""The imagefolder that is filled: metadata.jsonl, LICENSES.md, and beside them what is known of pictures that are not there.

`.collect.jsonl` is written line by line: a picture is announced before its file appears and confirmed after, so that a
run that was killed in between leaves nothing unknown. metadata.jsonl is the user's as well: lines are added, none changed.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdtune.data import images, layouts, likeness
from sdtune.data.collect.sources import Found, plain
from sdtune.data.layouts import Found as Faults
from sdtune.data.layouts import plural
from sdtune.data.readers import imagefolder, tables
from sdtune.errors import ConfigError, DataError
from sdtune.files import atomic_write, write_text

METADATA = "metadata.jsonl"
JOURNAL = ".collect.jsonl"
CREDITS = "LICENSES.md"
REMOVED = "removed by hand"
WRITE_EVERY = 10.0
"""Seconds after which new rows are added to metadata.jsonl; and they are at the end."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Credit:
    """Whom a picture is owed to. Texts are "" where they are not known."""

    file_name: str
    title: str
    author: str
    licence: str
    licence_url: str
    page: str
    source: str


def credits(folder: Path) -> list[Credit]:  # noqa: A001 (the word for it)
    """Of each picture in the folder that its metadata.jsonl says something of: for a model card. None without such a file.

    Raises DataError for a file that cannot be read.
    """
    return [_credit(row) for row in _rows(folder) if "licence" in row and (folder / _name(row)).is_file()]


def credits_text(
    owed: list[Credit], title: str = "Licences of these pictures", about: str = "Made by `sdtune data collect`."
) -> str:
    """A Markdown page: how many of each licence, then a table of the pictures."""
    counts = Counter((c.licence or "unknown", c.licence_url) for c in owed)
    lines = [f"# {_cell(title)}", "", f"{plural(len(owed), 'picture')}. {about}", ""]
    lines += ["| licence | pictures |", "|---|---:|"]
    lines += [f"| {_link(name, url)} | {n} |" for (name, url), n in sorted(counts.items(), key=lambda c: (-c[1], c[0]))]
    lines += ["", "| picture | title | author | licence | source |", "|---|---|---|---|---|"]
    for c in sorted(owed, key=lambda c: c.file_name):
        cells = (
            _cell(c.file_name),
            _cell(c.title),
            _cell(c.author),
            _link(c.licence, c.licence_url),
            _link(c.source, c.page),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


class Folder:
    """The pictures of a folder and what is known of others. `add` and `leave` are safe to be killed in."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError for a folder that holds something else, DataError for a damaged metadata.jsonl."""
        self.path = path
        self.rows = [row for row in _rows(path) if (path / _name(row)).is_file()]
        self.left: dict[str, str] = {}
        """Of pictures that were not kept: why."""
        self._new: list[Row] = []
        self._written = time.monotonic()
        self._likeness: dict[str, int] = {}
        self._check_place()
        self._read_journal()
        self.keys = {f"{row.get('source')}/{row.get('id')}" for row in self.rows}
        self.urls = {row.get("url") for row in self.rows} - {None, ""}
        self._digests = {row["sha256"]: _name(row) for row in self.rows if isinstance(row.get("sha256"), str)}
        self._names = [_name(row) for row in self.rows]
        self._hashes = np.empty(0, np.uint64)
        """Of the first of `_names`; those of the others are seen to when they are needed."""

    def count(self, query: str, sources: set[str]) -> int:
        """How many pictures are there from these sources for this query."""
        return sum(row.get("query") == query and row.get("source") in sources for row in self.rows)

    def twin(self, digest: str, likeness_: int, distance: int) -> str:
        """Which picture here is the same, or looks so: a phrase, "" for none. `distance` -1: only the very same bytes."""
        if name := self._digests.get(digest):
            return f"the same file as {name}"
        if distance < 0:
            return ""
        alike = likeness.near(likeness_, self._all_hashes(), distance)
        return f"looks like {self._names[alike[0]]}" if len(alike) else ""

    def add(self, found: Found, query: str, text: str, data: bytes, suffix: str, likeness_: int) -> str:
        """Write a picture and what is known of it; returns its name."""
        digest = hashlib.sha256(data).hexdigest()
        name = f"{hashlib.sha256(found.key.encode()).hexdigest()[:12]}-{slug(found.title or text)}{suffix}"
        row = {
            "file_name": name,
            "text": text,
            "title": found.title,
            "author": found.author,
            "licence": found.licence.name,
            "licence_url": found.licence.url,
            "source": found.source,
            "id": found.id,
            "page": found.page,
            "url": found.url,
            "query": query,
            "sha256": digest,
        }
        self._note({"row": row, "likeness": f"{likeness_:016x}"})
        with atomic_write(self.path / name) as file:
            file.write(data)
        self._note({"kept": name})
        self.left.pop(found.key, None)
        self._take(row, likeness_)
        self._new.append(row)
        if time.monotonic() - self._written > WRITE_EVERY:
            self._write_rows()
        return name

    def leave(self, found: Found, why: str) -> None:
        """Remember that a picture is not wanted or cannot be had."""
        self.left[found.key] = why
        self._note({"left": found.key, "why": why, "url": found.url})

    def write(self) -> None:
        """Bring metadata.jsonl and LICENSES.md up to date."""
        self._write_rows()
        if owed := credits(self.path):
            write_text(self.path / CREDITS, credits_text(owed))

    def _write_rows(self) -> None:
        self._written = time.monotonic()
        if self._new:
            file = self.path / METADATA
            before = file.read_bytes() if file.exists() else b""  # not from memory: captions may be edited meanwhile
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self._new)
            with atomic_write(file) as out:
                out.write(before + b"\n" * (bool(before) and not before.endswith(b"\n")) + lines.encode())
            self._new.clear()

    def _take(self, row: Row, likeness_: int) -> None:
        name = _name(row)
        self.rows.append(row)
        self.keys.add(f"{row['source']}/{row['id']}")
        self.urls.add(row["url"])
        self._digests[row["sha256"]] = name
        self._names.append(name)
        self._likeness[name] = likeness_

    def _check_place(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"--out {self.path}: is a file; name a folder")
        for name in imagefolder.METADATA:
            if name != METADATA and (self.path / name).exists():
                raise ConfigError(f"--out {self.path}: has a {name}; choose another folder, or make it a {METADATA}")
        if self.rows or (self.path / METADATA).exists() or (self.path / JOURNAL).exists() or not self.path.exists():
            return
        if strange := [p.name for p in sorted(self.path.iterdir()) if p.suffix.lower() in images.SUFFIXES]:
            raise ConfigError(
                f"--out {self.path}: holds pictures without a {METADATA} ({layouts.listed(strange)}); choose another folder"
            )

    def _read_journal(self) -> None:
        """What earlier runs knew: rows that never reached metadata.jsonl are added, pictures taken away stay away."""
        announced: dict[str, Row] = {}
        kept = set()
        for line in _json_lines(self.path / JOURNAL):
            match line:
                case {"row": dict(row), "likeness": str(hexadecimal)} if _whole(row):
                    announced[row["file_name"]] = row
                    self._likeness[row["file_name"]] = int(hexadecimal, 16)
                    self.left.pop(f"{row['source']}/{row['id']}", None)
                case {"seen": str(name), "likeness": str(hexadecimal)}:
                    self._likeness[name] = int(hexadecimal, 16)
                case {"kept": str(name)}:
                    kept.add(name)
                case {"left": str(key), "why": str(why)}:
                    self.left[key] = why
        known = {_name(row) for row in self.rows}
        for name, row in announced.items():
            if name not in known and (self.path / name).is_file():
                self.rows.append(row)
                self._new.append(row)
            elif name not in known and name in kept:
                self.left[f"{row['source']}/{row['id']}"] = REMOVED

    def _all_hashes(self) -> NDArray[np.uint64]:
        later = [self._hash(name) for name in self._names[len(self._hashes) :]]
        self._hashes = np.append(self._hashes, np.array(later, np.uint64))
        return self._hashes

    def _hash(self, name: str) -> int:
        """Of a picture that came here in another way: from its file, once."""
        if name not in self._likeness:
            try:
                self._likeness[name] = images.check((self.path / name).read_bytes()).look
            except (DataError, OSError):
                return 0
            self._note({"seen": name, "likeness": f"{self._likeness[name]:016x}"})
        return self._likeness[name]

    def _note(self, line: Row) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / JOURNAL).open("ab") as file:
            # a line that was cut off by a crash is closed first; one that is empty harms nobody
            file.write(b"\n" * (file.tell() > 0) + json.dumps(line, ensure_ascii=False).encode())


def slug(text: str) -> str:
    """A text as a part of a file name: its letters and digits, small, without accents, 40 at most."""
    letters = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", letters).strip("-")[:40].rstrip("-") or "picture"


def _rows(folder: Path) -> list[Row]:
    """The rows of a folder's metadata.jsonl that name a file. Raises DataError with the lines that are at fault."""
    if not (folder / METADATA).exists():
        return []
    found = Faults()
    lines = list(tables.jsonl(folder / METADATA, found))
    for number, row in lines:
        if not isinstance(row.get("file_name"), str):
            found.fault(f"{METADATA}:{number}", "no file_name; mend or remove the line")
    if found.faults:
        raise DataError("\n".join(f"{folder / fault.where}: {fault.what}" for fault in found.faults[:20]))
    return [row for _, row in lines]


def _json_lines(path: Path) -> Iterator[Any]:
    """The lines of the journal that are whole."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    for line in lines:
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            continue


def _whole(row: Row) -> bool:
    """Whether a row of the journal is one that this module wrote: its name leads nowhere else."""
    name = row.get("file_name")
    return isinstance(name, str) and Path(name).name == name and {"source", "id", "url", "sha256"} <= row.keys()


def _name(row: Row) -> str:
    return str(row["file_name"])


def credit_of(row: Mapping[str, object], file_name: str) -> Credit | None:
    """What a row of metadata says of whom its picture is owed to, in our words or with America's `license`; None if it says nothing."""
    said = {**row, "licence": row.get("licence") or row.get("license"), "file_name": file_name}
    return _credit(said) if said["licence"] or row.get("author") else None


def _credit(row: Mapping[str, object]) -> Credit:
    names = ("file_name", "title", "author", "licence", "licence_url", "page", "source")
    return Credit(**{n: plain(v) if isinstance(v := row.get(n), str) else "" for n in names})


def _cell(text: str) -> str:
    """A text inside a table of Markdown, as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|#~$!])", r"\\\1", text)


def _link(text: str, url: str) -> str:
    shown = _cell(text) or "unknown"
    if not url.startswith(("http://", "https://")) or re.search(r"\s", url):
        return shown
    target = "".join(f"%{ord(c):02X}" if c in '()<>|\\`"' else c for c in url)
    return f"[{shown}]({target})"
