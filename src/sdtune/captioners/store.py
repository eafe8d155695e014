"""The captions of a folder: which there are and who wrote them, and how new ones are written. Imports no torch.

`.sdtune-captions.json` remembers what sdtune wrote. A caption that is not what it remembers was written by a person, and is theirs.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from sdtune.captioners import text
from sdtune.captioners.config import CaptionConfig
from sdtune.data import layouts, masks
from sdtune.data.images import FOREIGN_SUFFIXES
from sdtune.data.layouts import (
    Found,
    captions_of,
    is_picture,
    leads_into,
    listed,
    outside,
    plural,
    shown,
    text_of,
    walk,
)
from sdtune.data.readers import READERS, imagefolder, tables
from sdtune.data.readers.sidecar import TEXTS
from sdtune.errors import DataError
from sdtune.files import atomic_write, write_json, write_text

RECORDS = ".sdtune-captions.json"
METADATA = "metadata.jsonl"
OTHER_METADATA = tuple(name for name in imagefolder.METADATA if name != METADATA)
WRITABLE = ("imagefolder", "sidecar", "kohya")
"""Layouts that read what is written here."""
Write = Literal["sidecar", "metadata"]
Captions = tuple[str, ...]


def check_writable(folder: Path) -> None:
    """Refuse a folder that captions cannot be written into, before a model is loaded for them. Raises DataError."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(
            f"{folder}: captions cannot be written there ({(error.strerror or 'error').lower()}); copy the pictures into a folder "
            "of your own, or look at captions with --dry-run"
        ) from None


class _Changed(Exception):
    """A caption is not what it was when the folder was read."""


@dataclass(frozen=True)
class Record:
    """What was written for a picture."""

    sha256: str
    """Of the captions, one a line."""
    model: str
    settings: dict[str, Any]
    time: float
    """Seconds since 1970."""
    kept: Captions = ()
    """A person's captions that were added to."""
    was: str = ""
    """The sha256 before: if the writing of the new caption fails, the old one is still known."""


@dataclass(frozen=True)
class Picture:
    """A picture and the captions it has."""

    path: Path
    name: str
    """Relative to the folder, with slashes."""
    captions: Captions
    by: Literal["nobody", "human", "sdtune"]
    kept: Captions = ()
    """Of captions by sdtune: the part that a person wrote."""
    since: float = 0.0
    """When sdtune wrote it."""


@dataclass
class Folder:
    """A folder that was read."""

    path: Path
    write: Write
    column: str
    pictures: list[Picture] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    """What cannot be captioned, and why."""
    notes: list[str] = field(default_factory=list)
    unfinished: dict[str, Any] = field(default_factory=dict)
    """What is remembered of a run with --again that was stopped."""


def read(path: str | Path, config: CaptionConfig) -> Folder:
    """The pictures of a folder and their captions. Raises DataError."""
    root = Path(path).expanduser()
    if not root.is_dir():
        what = "is a file; give the folder that holds the pictures" if root.exists() else "no such folder"
        raise DataError(f"{path}: {what}")
    found = Found()
    files = list(walk(root, (), found))
    folder = Folder(root, _form(root, files, config), config.column, notes=found.notes)
    lines = _lines(folder)
    images = _pictures(folder, files, lines or ())
    records, folder.unfinished = read_records(root)
    rows = None if lines is None else _captions_in(folder, lines)
    missing = [name for name in rows or () if not _exists(folder, name)]
    folder.left += [(name, f"in {METADATA}, but not there; remove the row or add it") for name in missing]
    for image in images:
        name = image.relative_to(root).as_posix()
        try:
            captions = rows.get(name, ()) if rows is not None else sidecar_of(image)[1]
        except DataError as error:
            folder.left.append((shown(image.relative_to(root)), str(error)))
            continue
        folder.pictures.append(_with_record(Picture(image, name, captions, "human"), records.get(shown_name(name))))
    return folder


def check_layout(path: Path, config: CaptionConfig) -> None:
    """Refuse a folder whose layout does not read what is written here. Captions are not looked at. Raises DataError."""
    _form(path, list(walk(path, (), Found())), config)


def put(folder: Folder, picture: Picture, captions: Captions) -> None:
    """Write a person's captions of one picture, in place of whatever it has; they are one line each. Raises DataError and OSError.

    Nothing is remembered of them: they count as written by people.
    """
    if folder.write == "sidecar":
        write_text(sidecar_of(picture.path)[0], "".join(f"{caption}\n" for caption in captions))
        return
    _captions_in(folder, _lines(folder) or ())  # the error for a file that cannot be written to as it is
    _write_rows(folder, {picture.name: captions})


def wanted(folder: Folder, config: CaptionConfig, since: float = 0.0) -> list[Picture]:
    """The pictures to be captioned; of those by sdtune only what is older than `since`."""
    kinds = {"nobody": True, "human": config.overwrite or config.append, "sdtune": config.again}
    return [p for p in folder.pictures if kinds[p.by] and not (p.by == "sdtune" and since and p.since >= since)]


def shown_name(name: str) -> str:
    return shown(Path(name))


# ---- what is there


def _form(root: Path, files: list[Path], config: CaptionConfig) -> Write:
    """How captions are written. Refuses what training would not read afterwards."""
    layout = next(r.name for r in READERS if r.recognises(layouts.Folder(root, files, config.column)))
    if layout not in WRITABLE:
        raise DataError(
            f"{root}: is laid out as {layout}, which says in a file of its own what the captions are; "
            "put the pictures to be captioned into a folder by themselves"
        )
    if layout == "kohya" and config.write == "metadata":
        raise DataError(f"{root}: {METADATA} would hide the repeats in the names of kohya's folders; leave --write out")
    for name in OTHER_METADATA:
        if (root / name).is_file():
            raise DataError(f"{root / name}: captions are written to .txt files or {METADATA}; save it as {METADATA}")
    there = (root / METADATA).is_file()
    if not there and (inner := next((p for p in files if p.name in imagefolder.METADATA and p.parent != root), None)):
        raise DataError(f"{inner}: has the captions of its folder; caption that folder by itself: {inner.parent}")
    if there and config.write == "sidecar":
        raise DataError(
            f"{root / METADATA}: has the captions of this folder, so that .txt files would not be read; leave --write out, "
            "or take the file away"
        )
    return config.write or ("metadata" if there else "sidecar")


def _pictures(folder: Folder, files: list[Path], rows: Sequence[tables.Row]) -> list[Path]:
    """The pictures of `folder` in a fixed order, without masks; what is in the way of one goes to `folder.left`."""
    hidden = {mask.file for mask, _ in masks.by_name(files, folder.path)}
    hidden |= {folder.path / str(row[c]) for _, row in rows for c in masks.COLUMNS if row.get(c)}
    found = [p for p in files if is_picture(p) and p not in hidden]
    sharing: dict[Path, list[Path]] = defaultdict(list)
    for image in found:
        sharing[image.with_suffix("")].append(image)
    good = []
    for image in found:
        what = _hindrance(image, folder, sharing[image.with_suffix("")])
        if what:
            folder.left.append((shown(image.relative_to(folder.path)), what))
        else:
            good.append(image)
    foreign = [p for p in files if p.suffix.lower() in FOREIGN_SUFFIXES]
    what = "not one of the formats that are read; convert it to PNG or JPEG"
    folder.left += [(shown(p.relative_to(folder.path)), what) for p in foreign]
    if hidden & set(files):
        folder.notes.append(f"{plural(len(hidden & set(files)), 'mask')} left alone")
    return good


def _hindrance(image: Path, folder: Folder, sharing: Sequence[Path]) -> str:
    """Why `image` cannot have a caption, or nothing."""
    if folder.write == "sidecar" and len(sharing) > 1:
        return f"would share a text file ({listed([shown(Path(p.name)) for p in sharing])}); give the pictures different names"
    if folder.write == "metadata" and not _writable(image.relative_to(folder.path)):
        return f"its name cannot be written into {METADATA}; rename it, or use --write sidecar"
    return "" if leads_into(image, folder.path) else "a link that leaves the folder; copy the picture into it"


def _writable(name: Path) -> bool:
    """Whether a row of metadata.jsonl can name it so that training takes it for a file inside the folder."""
    return shown(name) == name.as_posix() and not outside(name.as_posix())


def sidecar_of(image: Path) -> tuple[Path, Captions]:
    """The text file of a picture, there or not, and its lines. Raises DataError."""
    path = next((p for p in (image.with_suffix(s) for s in TEXTS) if p.is_file()), image.with_suffix(TEXTS[0]))
    if not path.exists():
        return path, ()
    text = text_of(path, shown(Path(path.name)), found := Found())
    if text is None:
        raise DataError(str(found.faults[0]))
    return path, tuple(line.strip() for line in text.splitlines() if line.strip())


def _with_record(picture: Picture, record: Record | None) -> Picture:
    """Whose the caption is."""
    if not picture.captions:
        return replace(picture, by="nobody")
    if record and digest(picture.captions) in (record.sha256, record.was):
        return replace(picture, by="sdtune", kept=record.kept, since=record.time)
    return picture


def digest(captions: Captions) -> str:
    return hashlib.sha256("\n".join(captions).encode("utf-8", "surrogatepass")).hexdigest()


# ---- metadata.jsonl


def _lines(folder: Folder) -> list[tables.Row] | None:
    """The rows of metadata.jsonl, each of which names a file; None where there is none. Raises DataError that lists all faults."""
    if not (folder.path / METADATA).is_file():
        return None
    found = Found()
    rows = list(tables.jsonl(folder.path / METADATA, found))
    for number, row in rows:
        if not isinstance(row.get("file_name"), str):
            found.fault(f"{METADATA}:{number}", "no file_name; mend or remove the line")
    _refuse(folder, found)
    return rows


def _captions_in(folder: Folder, rows: Sequence[tables.Row]) -> dict[str, Captions]:
    """The captions of each picture by its name. Raises DataError that lists all faults."""
    captioned: dict[str, Captions] = {}
    found = Found()
    for number, row in rows:
        name, captions = _name_of(row), captions_of(row.get(folder.column))
        where = f"{METADATA}:{number}"
        if captions is None:
            found.fault(where, f"{folder.column!r} is no text or list of texts: {row.get(folder.column)!a:.60}")
        elif name in captioned:
            found.fault(where, f"{name} is in another line, too; put its captions into one row, as a list")
        else:
            captioned[name] = captions
    _refuse(folder, found)
    return captioned


def _refuse(folder: Folder, found: Found) -> None:
    if found.faults:
        faults = [f"{folder.path / fault.where}: {fault.what}" for fault in found.faults[:20]]
        raise DataError("\n".join([f"{folder.path / METADATA}: cannot be written to as it is", *faults]))


def _exists(folder: Folder, name: str) -> bool:
    try:
        return (folder.path / name).is_file()
    except (OSError, ValueError):
        return False


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("file_name"), str) else None


def _name_of(row: Mapping[str, Any]) -> str:
    return PurePosixPath(row["file_name"]).as_posix()


def _write_rows(folder: Folder, new: Mapping[str, Captions]) -> None:
    """Put `new` into metadata.jsonl; other keys of the rows, and other lines, stay byte for byte as they are."""
    path = folder.path / METADATA
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    left = dict(new)
    for i, line in enumerate(lines):
        mark = b"\xef\xbb\xbf" if line.startswith(b"\xef\xbb\xbf") else b""
        row = _row(line.removeprefix(mark)) if line.strip() else None
        if row and (captions := left.pop(_name_of(row), None)) is not None:
            lines[i] = mark + _json({**row, folder.column: _value(captions)}) + b"\r" * line.endswith(b"\r")
    while lines and not lines[-1].strip():
        lines.pop()
    lines += [_json({"file_name": name, folder.column: _value(captions)}) for name, captions in left.items()]
    with atomic_write(path) as file:
        file.write(b"\n".join(lines) + b"\n")


def _value(captions: Captions) -> str | list[str]:
    return captions[0] if len(captions) == 1 else list(captions)


def _json(row: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:  # JSON can hold half characters
        return json.dumps(row).encode("ascii")


# ---- what sdtune wrote


def read_records(root: Path) -> tuple[dict[str, Record], dict[str, Any]]:
    """What is remembered of each picture, and the run with --again that was not finished, if any. Raises DataError."""
    path = root / RECORDS
    if not path.exists():
        return {}, {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        records = {name: Record(**{**r, "kept": tuple(r.get("kept", ()))}) for name, r in found["captions"].items()}
        return records, dict(found.get("unfinished", {}))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); mend it, or remove it: all captions then count as written by people"
        ) from None


def write_records(root: Path, records: Mapping[str, Record], unfinished: Mapping[str, Any]) -> None:
    captions = {name: {k: v for k, v in asdict(r).items() if v or k == "settings"} for name, r in records.items()}
    write_json(
        root / RECORDS, {"version": 1, "captions": captions, **({"unfinished": unfinished} if unfinished else {})}
    )


def plain(value: Mapping[str, Any]) -> Any:
    """`value` as it comes back from JSON."""
    return json.loads(json.dumps(value))


PATIENCE = 10
"""Captions wait so many times as long as the last writing took: in large folders the records alone are megabytes."""


class Writer:
    """Writes captions a few at a time, first what is remembered of them and then they themselves.

    A stop between the two leaves the folder as it was: what is remembered then fits no caption.
    """

    def __init__(self, folder: Folder, config: CaptionConfig, model: str, *, tags: bool) -> None:
        self.folder, self.config, self.model, self.tags = folder, config, model, tags
        self.settings = config.record()
        self._waiting: list[tuple[Picture, str]] = []
        self._due = 0.0

    def put(self, picture: Picture, made: str) -> list[tuple[Picture, Captions | str]]:
        """Take the caption `made`; gives what `flush` gives when it is time to write, else nothing."""
        self._waiting.append((picture, made))
        return self.flush() if time.monotonic() >= self._due else []

    def flush(self) -> list[tuple[Picture, Captions | str]]:
        """Write what waits. Each picture with its captions as they are now, or with the reason why it has none."""
        if not self._waiting:
            return []
        began = time.monotonic()
        waiting, self._waiting = self._waiting, []
        lines = _lines(self.folder) if self.folder.write == "metadata" else None
        current = None if lines is None else _captions_in(self.folder, lines)
        outcome: list[tuple[Picture, Captions | str]] = []
        new: list[tuple[Picture, Captions, Captions]] = []
        for picture, made in waiting:
            try:
                self._check(picture, current)
                captions, kept = combined(picture, made, self.config, tags=self.tags)
                new.append((picture, captions, kept))
                outcome.append((picture, captions))
            except (_Changed, DataError) as error:
                outcome.append((picture, str(error)))
        self._remember(new)
        self._write(new, current)
        self._due = time.monotonic() + PATIENCE * (time.monotonic() - began)
        return outcome

    def _check(self, picture: Picture, current: Mapping[str, Captions] | None) -> None:
        """Refuse to touch a caption that was written since the folder was read."""
        captions = current.get(picture.name, ()) if current is not None else sidecar_of(picture.path)[1]
        if captions != picture.captions:
            raise _Changed("its caption was changed meanwhile, and stays as it is")

    def _remember(self, new: Sequence[tuple[Picture, Captions, Captions]]) -> None:
        records, unfinished = read_records(self.folder.path)
        for picture, captions, kept in new:
            was = digest(picture.captions) if picture.by == "sdtune" else ""
            records[shown_name(picture.name)] = Record(
                digest(captions), self.model, self.settings, time.time(), kept, was
            )
        write_records(self.folder.path, records, unfinished)

    def _write(self, new: Sequence[tuple[Picture, Captions, Captions]], current: Mapping[str, Captions] | None) -> None:
        if self.folder.write == "sidecar":
            for picture, captions, _ in new:
                write_text(sidecar_of(picture.path)[0], "\n".join(captions) + "\n")
            return
        rows = {picture.name: captions for picture, captions, _ in new}
        if current is None:  # the first row: from now on text files are not read, so what they say goes along
            rows = {p.name: p.captions for p in self.folder.pictures if p.captions} | rows
        if rows:
            _write_rows(self.folder, rows)


def combined(picture: Picture, made: str, config: CaptionConfig, *, tags: bool) -> tuple[Captions, Captions]:
    """The captions that the picture is to have, and the part of them that a person wrote."""
    theirs = picture.captions if picture.by == "human" else picture.kept
    if not theirs or config.overwrite:
        return (made,), ()
    return tuple(text.added(caption, made, tags=tags) for caption in theirs), theirs
