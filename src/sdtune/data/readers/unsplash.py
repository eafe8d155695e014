"""The Unsplash Lite dataset: photos.tsv000 with descriptions, keywords.tsv000, and pictures that were downloaded by their id."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sdtune.data.layouts import AUTO_COLUMN, Entry, Folder, Found, listed, plural, shown
from sdtune.data.readers.base import Reader
from sdtune.data.readers.tables import csv_rows

PHOTOS = "photos.tsv000"
PART = re.compile(r"(photos|keywords)\.([tc])sv\d*")
"""A table may come in several parts: photos.tsv000, photos.tsv001; of the later ones some are .csv."""
COLUMNS = ("photo_description", "ai_description", "keywords")
"""In this order, unless data.caption_column names one."""
MOST_KEYWORDS = 10
LEAST_CONFIDENCE = 50.0


class Unsplash(Reader):
    """Pictures named by their photo_id anywhere below; the description is the caption, else the AI's, else keywords."""

    name = "unsplash"
    has_rows = True
    file = PHOTOS

    def recognises(self, folder: Folder) -> bool:
        return bool(_parts(folder, "photos")) and (folder.file is None or PART.fullmatch(folder.file.name) is not None)

    def read(self, folder: Folder, found: Found) -> None:
        parts = _parts(folder, "photos")
        if not parts:
            return found.fault(folder.path.name, f"no {PHOTOS} here, as data.layout={self.name!r} needs")
        wanted = COLUMNS if folder.column == AUTO_COLUMN else (folder.column,)
        if unknown := set(wanted) - {*COLUMNS}:
            known = ", ".join(COLUMNS)
            return found.fault("data.caption_column", f"{unknown.pop()!r}, but Unsplash's captions are {known}")
        keywords = _keywords(folder, found) if "keywords" in wanted else {}
        pictures = {p.stem: p for p in folder.pictures}
        missing = []
        for name, line, row in _rows(folder, "photos", found):
            photo = str(row.get("photo_id", "")).strip()
            if not photo:
                found.fault(f"{name}:{line}", "no photo_id; take the file from Unsplash again")
            elif photo not in pictures:
                missing.append(photo)
            else:
                caption = _caption(row, keywords.get(photo, ()), wanted)
                entry = Entry(pictures[photo], (caption,) if caption else (), f"{name}:{line}")
                found.entries.append(replace(entry, row=_credit(row)) if folder.rows else entry)
        if missing:
            found.notes.append(
                f"{plural(len(missing), 'photo')} of {parts[0]} not here: {listed(missing)}; `sdtune data collect --source "
                f"{shown(folder.path)} --captions source --out pictures` fetches them into a folder of its own"
            )
        return found.notes.insert(0, f"Unsplash's {parts[0]}: {plural(len(found.entries), 'picture')}")


def _credit(row: dict[Any, Any]) -> dict[str, object]:
    """Whom a photo is owed to, in the words of `sdtune data collect`."""
    name = " ".join(str(row.get(f"photographer_{part}_name") or "").strip() for part in ("first", "last")).strip()
    said = {
        "author": name or row.get("photographer_username"),
        "licence": "Unsplash",
        "licence_url": "https://unsplash.com/license",
        "source": "unsplash",
        "id": row.get("photo_id"),
        "page": row.get("photo_url"),
    }
    return {column: value for column, value in said.items() if value}


def _parts(folder: Folder, table: str) -> list[str]:
    """The files that a table lies in."""
    return sorted(name for name in folder.names if (match := PART.fullmatch(name)) and match[1] == table)


def _rows(folder: Folder, table: str, found: Found) -> Iterator[tuple[str, int, dict[Any, Any]]]:
    """File, line and fields of each row of a table."""
    for name in _parts(folder, table):
        for line, row in csv_rows(folder.path / name, found, "\t" if ".tsv" in name else ","):
            yield name, line, row


def _caption(row: dict[Any, Any], keywords: tuple[str, ...] | list[str], wanted: tuple[str, ...]) -> str:
    texts = (", ".join(keywords) if column == "keywords" else str(row.get(column) or "").strip() for column in wanted)
    return next(filter(None, texts), "")


def _keywords(folder: Folder, found: Found) -> dict[str, list[str]]:
    """Of each photo the surest keywords, those that people suggested first."""
    rated: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for _, _, row in _rows(folder, "keywords", found):
        sure = max(_number(row.get(f"ai_service_{i}_confidence")) for i in (1, 2))
        sure = 101.0 if str(row.get("suggested_by_user", "")).lower() in ("t", "true", "1") else sure
        if sure >= LEAST_CONFIDENCE and (word := str(row.get("keyword", "")).strip()):
            rated[str(row.get("photo_id", "")).strip()].append((-sure, word))
    return {photo: [word for _, word in sorted(words)[:MOST_KEYWORDS]] for photo, words in rated.items()}


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return 0.0
