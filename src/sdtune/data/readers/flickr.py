"""Flickr30k and Flickr8k in the three forms in which they are handed on: five captions a picture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sdtune.data.layouts import Entry, Folder, Found, listed, plural, text_of
from sdtune.data.readers.base import Reader
from sdtune.data.readers.tables import csv_rows

FORMS = ("results_20130124.token", "results.csv", "captions.txt")
BAR = re.compile(r"\s*([^|]+?)\s*\|\s*(\d+)\s*\|?\s*(.*)")
"""name| number| caption. One row of the published file lacks its second bar."""
Captions = Iterator[tuple[int, str, str]]
"""Line, picture, caption."""


class Flickr(Reader):
    """A list of captions, and the pictures beside it or in a folder below."""

    name = "flickr30k"
    file = FORMS[0]

    def recognises(self, folder: Folder) -> bool:
        return _form(folder) is not None

    def read(self, folder: Folder, found: Found) -> None:
        path = _form(folder)
        if path is None:
            return found.fault(
                folder.path.name, f"none of {', '.join(FORMS)} is here, as data.layout={self.name!r} needs"
            )
        by_name = {p.name: p for p in reversed(folder.pictures)}
        captions: dict[str, list[str]] = {}
        lines: dict[str, int] = {}
        for line, name, caption in _captions(path, found):
            lines.setdefault(name, line)
            captions.setdefault(name, []).extend([caption] if caption else [])
        missing = [name for name in captions if name not in by_name]
        for name, texts in captions.items():
            if name in by_name:
                found.entries.append(Entry(by_name[name], tuple(texts), f"{path.name}:{lines[name]}"))
        if missing:
            what = f"{plural(len(missing), 'picture')} of it not here ({listed(missing)}); add them"
            found.fault(path.name, what, skippable=True, kind="missing")
        if other := [folder.name(p) for p in folder.pictures if p.name not in captions]:
            found.notes.append(f"{plural(len(other), 'picture')} not in {path.name}, left alone: {listed(other)}")
        return found.notes.insert(0, f"Flickr's {path.name}: {plural(len(found.entries), 'picture')}")


def _form(folder: Folder) -> Path | None:
    names = [folder.file.name] if folder.file else FORMS
    for name in names:
        if name in FORMS and name in folder.names and _looks_like_it(folder.path / name):
            return folder.path / name
    return _below(folder) if folder.file is None else None


def _below(folder: Folder) -> Path | None:
    """The list in the one folder inside that has one, if all pictures lie there, too: as archives of the set unpack."""
    depth = len(folder.path.parts)
    lists = [p for p in folder.files if p.name in FORMS and len(p.parts) == depth + 2 and _looks_like_it(p)]
    if not lists or not all(p.is_relative_to(lists[0].parent) for p in (*lists, *folder.pictures)):
        return None
    return min(lists, key=lambda p: FORMS.index(p.name))


def _looks_like_it(path: Path) -> bool:
    """By the first line: captions.txt and results.csv are names that other things have, too."""
    with path.open("rb") as file:
        first = file.readline(4096).decode("utf-8", "replace").removeprefix("\ufeff").strip()
    if path.suffix == ".token":
        return "#" in first
    return first.replace(" ", "") in ("image,caption", "image_name|comment_number|comment")


def _captions(path: Path, found: Found) -> Captions:
    if path.name == "captions.txt":
        for line, row in csv_rows(path, found):
            yield line, str(row.get("image", "")).strip(), str(row.get("caption", "")).strip()
        return
    for line, text in enumerate((text_of(path, path.name, found) or "").splitlines(), 1):
        if not text.strip() or (line == 1 and path.suffix == ".csv"):
            continue
        if path.suffix == ".token":
            key, tab, caption = text.partition("\t")
            name, mark, number = key.rpartition("#")
            if tab and mark and number.strip().isdigit():
                yield line, name.strip(), caption.strip()
                continue
        elif match := BAR.fullmatch(text):
            yield line, match[1], match[3].strip()
            continue
        found.fault(
            f"{path.name}:{line}", f"not a picture, a number and a caption: {text!a:.60}; mend or remove the line"
        )
