"""The datasets that clients may name: folders of the command line and the sets that come with sdtune; their pictures and captions."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdtune.captioners import store
from sdtune.captioners.config import CaptionConfig
from sdtune.data import dataset, readers, thumbs
from sdtune.data.config import DataConfig
from sdtune.errors import ConfigError, DataError
from sdtune.serve.errors import ApiError, not_found
from sdtune.serve.limits import Limits
from sdtune.serve.views import SetPicture, SetView

KEPT = 20.0
"""Seconds for which a list of pictures is taken for what is there."""
CAPTIONS = 50
"""Of one picture, at most."""


@dataclass(frozen=True)
class SetEntry:
    id: str
    place: str
    """What data.path is to be; never told to clients."""
    folder: Path
    shipped: bool
    why: str = ""
    """Why captions cannot be written here."""

    def told(self) -> SetView:
        title = self.id.removeprefix("embedded:") if self.shipped else self.folder.name
        return SetView(self.id, title, self.shipped, not self.why, self.why)


@dataclass(frozen=True)
class Item:
    """A picture of a set."""

    path: Path
    name: str
    captions: tuple[str, ...]
    by: str
    holder: store.Folder | None
    """Where its captions are written; None: nowhere."""
    own: store.Picture | None


def shipped() -> list[SetEntry]:
    """The sets that come with sdtune."""
    place = dataset.resolve("embedded:comic").parent
    return [
        SetEntry(f"embedded:{p.name}", f"embedded:{p.name}", p, shipped=True, why="it comes with sdtune")
        for p in sorted(place.iterdir())
        if p.is_dir() and not p.name.startswith(("_", "."))
    ]


class Sets:
    """By id. Reading and writing may take long: in threads."""

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        """Raises ConfigError for a folder that is not there."""
        self._entries = dict[str, SetEntry]()
        for folder in folders:
            place = folder.expanduser()
            if not place.is_dir():
                raise ConfigError(f"--data {folder}: no such folder; name one that holds pictures")
            self._add(place.resolve())
        self._entries |= {entry.id: entry for entry in shipped()}
        self._lists = dict[str, tuple[float, list[Item]]]()
        self._lock = threading.Lock()

    def _add(self, folder: Path) -> None:
        if folder in [entry.folder for entry in self._entries.values()]:
            return
        slug = re.sub(r"[^a-z0-9._-]+", "-", folder.name.lower()).strip("-.")[:60] or "data"
        name = next(n for i in range(1, 10_000) if (n := slug if i == 1 else f"{slug}-{i}") not in self._entries)
        self._entries[name] = SetEntry(name, str(folder), folder, shipped=False, why=_why(folder))

    def all(self) -> list[SetEntry]:
        return list(self._entries.values())

    def get(self, name: str) -> SetEntry | None:
        return self._entries.get(name)

    def need(self, name: str) -> SetEntry:
        """Raises ApiError."""
        if (found := self._entries.get(name)) is None:
            raise not_found("dataset")
        return found

    # ---- pictures

    def items(self, entry: SetEntry) -> list[Item]:
        """All pictures in a fixed order. Raises ApiError."""
        with self._lock:
            return self._items(entry)

    def _items(self, entry: SetEntry) -> list[Item]:
        since, found = self._lists.get(entry.id, (0.0, list[Item]()))
        if time.monotonic() - since > KEPT or not since:
            try:
                found = [item for part in _parts(entry.folder) for item in _listed(part, entry)]
            except (DataError, OSError):
                raise ApiError(409, "unreadable", "the dataset cannot be read; GET /api/datasets/ID says why") from None
            self._lists[entry.id] = time.monotonic(), found
        return found

    def page(self, entry: SetEntry, offset: int, limit: int) -> tuple[list[SetPicture], int]:
        found = self.items(entry)
        start = max(0, offset)
        return [told(entry, n, item) for n, item in enumerate(found[start : start + limit], start)], len(found)

    def item(self, entry: SetEntry, n: int) -> Item:
        found = self.items(entry)
        if not 0 <= n < len(found):
            raise not_found("picture")
        return found[n]

    def thumbnail(self, entry: SetEntry, n: int, side: int) -> tuple[bytes, str]:
        """The bytes and their media type. Raises ApiError."""
        try:
            return thumbs.small(self.item(entry, n).path, side, max_pixels=Limits.upload_pixels * 4)
        except (DataError, OSError):
            raise ApiError(409, "unreadable", "the picture cannot be read") from None

    def write(self, entry: SetEntry, n: int, captions: Sequence[str], name: str | None) -> SetPicture:
        """Raises ApiError."""
        if entry.why:
            raise ApiError(403, "read_only", f"captions cannot be written here: {entry.why}")
        clean = _checked(captions)
        with self._lock:
            self._lists.pop(entry.id, None)  # what is written goes by what is there now
            found = self._items(entry)
            if not 0 <= n < len(found):
                raise not_found("picture")
            item = found[n]
            if name is not None and name != item.name:
                raise ApiError(409, "changed", f"picture {n} is another one by now: {item.name}"[:300])
            if item.holder is None or item.own is None:
                raise ApiError(403, "read_only", "captions of this picture cannot be written")
            try:
                store.put(item.holder, item.own, clean)
            except (DataError, OSError):
                raise ApiError(
                    409, "unwritable", "the captions could not be written; the server's log says why"
                ) from None
            found[n] = replace(
                item, captions=clean, by="human" if clean else "nobody", own=replace(item.own, captions=clean)
            )
            return told(entry, n, found[n])


def told(entry: SetEntry, n: int, item: Item) -> SetPicture:
    href = f"/api/datasets/{entry.id}/pictures/{n}/thumbnail"
    return SetPicture(n, item.name, list(item.captions), item.by, href)  # type: ignore[arg-type]  # one of three


def _checked(captions: Sequence[Any]) -> tuple[str, ...]:
    """Captions as they can stand in a file. Raises ApiError."""
    if len(captions) > CAPTIONS:
        raise ApiError(422, "invalid", f"captions: more than {CAPTIONS}", field="captions")
    for text in captions:
        if not isinstance(text, str) or len(text) > Limits.text:
            raise ApiError(422, "invalid", f"captions: texts of at most {Limits.text} characters", field="captions")
        if any(c in "\r\n\0\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029" or "\ud800" <= c <= "\udfff" for c in text):
            raise ApiError(422, "invalid", "captions: one line each, of whole characters", field="captions")
    return tuple(text.strip() for text in captions if text.strip())


# ---- folders


def _parts(folder: Path) -> list[Path]:
    """What is trained on and what is held out, as training finds them."""
    train, held_out, _, _ = dataset.split_folders(folder, DataConfig(path=str(folder)))
    if train == folder or held_out is None:
        return [train]
    return [train, held_out]


def _why(folder: Path) -> str:
    """Why captions cannot be written into a folder; "" if they can."""
    try:
        for part in _parts(folder):
            store.check_writable(part)
            store.check_layout(part, CaptionConfig())
    except (DataError, OSError) as error:
        line = str(error).splitlines()[0]
        return line.partition(": ")[2] or "its layout keeps captions in files of its own"
    return ""


def _listed(part: Path, entry: SetEntry) -> list[Item]:
    """The pictures of a folder; where captions cannot be written, as its reader finds them."""
    inside = part.relative_to(entry.folder)
    if not entry.why:
        holder = store.read(part, CaptionConfig())
        return [Item(p.path, (inside / p.name).as_posix(), p.captions, p.by, holder, p) for p in holder.pictures]
    found = readers.read(part)
    names = [(e, _called(e.image, entry.folder)) for e in found.entries]
    return [Item(e.image, name, e.captions, "human" if e.captions else "nobody", None, None) for e, name in names]


def _called(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
