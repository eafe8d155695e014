"""Folders of pictures that a file of another tool names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdtune.data.layouts import Entry, Folder, Found, shown, walk
from sdtune.data.readers.base import Reader, tell_of_links
from sdtune.data.readers.filename import Filename
from sdtune.data.readers.sidecar import Sidecar


@dataclass(frozen=True)
class Part:
    """A folder as a dataset file describes it."""

    where: str
    """What to name in messages."""
    folder: object
    repeats: int = 1
    prompt: str = ""
    """The caption of pictures without one; of all, if `strategy` is "prompt"."""
    strategy: str = "sidecar"
    """Or "filename", "prompt"."""
    extension: str | None = None
    prefix: str = ""
    suffix: str = ""


def read_part(folder: Folder, part: Part, found: Found) -> list[Entry]:
    """The entries of a named folder, whose names in messages are relative to `folder`."""
    path = _resolved(folder, part, found)
    if path is None:
        return []
    inner = Found()
    there = Folder(path, lambda: list(walk(path, (), inner)), folder.column, folder.roots, folder.masked)
    reader: Reader = Filename() if part.strategy == "filename" else Sidecar(part.extension)
    tell_of_links(there, reader, inner)
    reader.read(there, inner)
    known = {mask.file for mask, _ in found.masks}
    found.masks += [(mask, of) for mask, of in there.masks if mask.file not in known]
    inside = shown(path.relative_to(folder.path)) if path.is_relative_to(folder.path) else shown(path)
    for fault in inner.faults:
        found.faults.append(replace(fault, where=f"{inside}/{fault.where}"))
    found.notes += [f"{inside}/: {note}" for note in inner.notes if not note.startswith("pictures w")]
    if not inner.entries and not inner.faults:
        found.fault(part.where, f"no pictures in {inside}/")
    return [_with_part(entry, part, f"{inside}/") for entry in inner.entries]


def _with_part(entry: Entry, part: Part, inside: str) -> Entry:
    captions: Sequence[str] = entry.captions if part.strategy != "prompt" else ()
    captions = captions or ((part.prompt,) if part.prompt else ())
    captions = tuple(" ".join(filter(None, (part.prefix, c, part.suffix))) for c in captions)
    return replace(entry, captions=captions, repeats=entry.repeats * part.repeats, where=inside + entry.where)


def _resolved(folder: Folder, part: Part, found: Found) -> Path | None:
    """The folder itself, if it is there and inside `folder` or its roots; else a fault."""
    if not isinstance(part.folder, str) or not part.folder.strip():
        found.fault(part.where, f"names no folder of pictures ({part.folder!r:.60})")
        return None
    path = folder.path / Path(part.folder).expanduser()
    if not path.is_dir():
        found.fault(part.where, f"{part.folder}: no such folder; paths are relative to {folder.path}, or absolute")
    elif not folder.holds(path):
        found.fault(part.where, f"{part.folder} is outside of {folder.path}; name it in data.roots to let it be read")
    else:
        return path
    return None
