"""The ways in which a folder says which picture has which captions: one reader each. Imports no torch.

A reader gives entries, faults and notes, and raises nothing: all that is wrong with a folder is told at once.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import unquote

from sdtune.data import masks
from sdtune.data.images import FOREIGN_SUFFIXES, SUFFIXES
from sdtune.data.masks import Mask

METADATA = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class Entry:
    """A picture that exists inside the folder, with its captions as written (none, if it has none)."""

    image: Path
    captions: tuple[str, ...]
    where: str
    """What to name when its caption is at fault: "a.txt" or "metadata.jsonl:3"."""
    mask: Mask | None = None


@dataclass(frozen=True)
class Fault:
    where: str
    what: str
    """What is wrong, and the remedy."""
    skippable: bool = False
    """Whether leaving this one picture out would be a cure."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass
class Found:
    """What a folder holds."""

    entries: list[Entry] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    masks: list[tuple[Mask, Path]] = field(default_factory=list)
    """Files that are masks by their names, so no entries; and whose they are, a path without suffix."""

    def fault(self, where: str, what: str, *, skippable: bool = False) -> None:
        self.faults.append(Fault(where, what, skippable))


def read(
    folder: Path,
    caption_column: str,
    skip: Collection[str] = (),
    *,
    masked: bool = False,
    mask_folder: Path | None = None,
) -> Found:
    """The entries of `folder`, without its subfolders named in `skip`. The layout is recognised by what is there.

    Masks are told from pictures in any case; only if `masked` they are given to them. `mask_folder` holds more masks.
    """
    found = Found()
    files = list(_walk(folder, skip, found))
    if mask_folder and mask_folder.resolve().is_relative_to(folder.resolve()):
        inside = folder / mask_folder.resolve().relative_to(folder.resolve())
        files = [p for p in files if not p.is_relative_to(inside)]
    found.masks = list(masks.by_name(files, folder))
    present = [name for name in METADATA if (folder / name).is_file()]
    if len(present) > 1:
        found.fault(" and ".join(present), "only one of them can count; remove the other")
    elif present:
        _read_metadata(folder, present[0], caption_column, files, masked, found)
    else:
        _read_sidecars(folder, files, found)
    if masked:
        _give_masks(folder, mask_folder, found)
    elif found.masks:
        shown = listed([_name(mask.file, folder) for mask, _ in found.masks])
        found.notes.append(f'{plural(len(found.masks), "mask")} not used (data.mask="files" uses them): {shown}')
    return found


def listed(names: Collection[str], limit: int = 5) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(list(names)[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def plural(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"


def _walk(folder: Path, skip: Collection[str], found: Found) -> Iterator[Path]:
    """All files in a fixed order, hidden ones left out."""
    for parent, folders, names in os.walk(folder):
        here, top = Path(parent), Path(parent) == folder
        if links := [f for f in folders if (here / f).is_symlink()]:
            shown = [_name(here / f, folder) for f in sorted(links)]
            found.notes.append(f"links to folders are not followed: {listed(shown)}")
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")) and not (top and f in skip))
        yield from (here / n for n in sorted(names) if not n.startswith(".") and n not in ("Thumbs.db", "desktop.ini"))


def shown(path: Path) -> str:
    """A path as text that can be printed and stored, whatever bytes the file system allows in names."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode("utf-8")


def _name(path: Path, folder: Path) -> str:
    return shown(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


# ---- metadata.jsonl, metadata.csv


def _read_metadata(folder: Path, name: str, column: str, files: list[Path], masked: bool, found: Found) -> None:
    """HF imagefolder: each row has `file_name`, relative to the folder, and the caption in `column`; it may name a mask."""
    rows = list(_jsonl(folder / name, found) if name.endswith(".jsonl") else _csv(folder / name, found))
    if any([_lacks(name, rows, "file_name", found), _lacks(name, rows, column, found)]):
        return
    seen: dict[Path, int] = {}
    known = {mask.file.resolve() for mask, _ in found.masks}
    for line, row in rows:
        mask = _mask_of(folder, f"{name}:{line}", row, found if masked else Found())
        known |= {mask.file.resolve()} if mask else set()
        _read_row(folder, name, line, row, column, seen, found, mask if masked else None)
    for mask, of in found.masks:
        if (at := seen.get(mask.file.resolve())) is not None:
            found.fault(
                f"{name}:{at}", f"{_name(mask.file, folder)} {_both(mask, of, folder)}; rename it, or remove the row"
            )
    known |= seen.keys()
    for path in files:
        if _is_picture(path) and path.resolve() not in known:
            found.fault(_name(path, folder), f"not in {name}; add a row for it or take it away", skippable=True)
    if sidecars := [p for p in files if p.suffix == ".txt" and any(p.with_suffix(s).exists() for s in SUFFIXES)]:
        found.notes.append(f"{plural(len(sidecars), '.txt file')} beside pictures, not read: {name} has the captions")
    found.notes.insert(0, f"imagefolder with {name}: {plural(len(found.entries), 'picture')}")


def _lacks(name: str, rows: list[tuple[int, dict[Any, Any]]], needed: str, found: Found) -> bool:
    """Whether no row has the column `needed`, which is then a fault."""
    columns = sorted({str(key) for _, row in rows for key in row})
    if not rows or needed in columns:
        return False
    near = difflib.get_close_matches(needed, columns, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(columns)}"
    found.fault(name, f"no column {needed!r}; {hint}" + " (data.caption_column)" * (needed != "file_name"))
    return True


def _read_row(
    folder: Path, name: str, line: int, row: dict[Any, Any], column: str, seen: dict[Path, int], found: Found,
    mask: Mask | None,
) -> None:  # fmt: skip
    where = f"{name}:{line}"
    file_name = row.get("file_name")
    if not isinstance(file_name, str) or not file_name.strip():
        return found.fault(where, f"file_name is {file_name!r}, not the name of a file")
    if why := _outside(file_name):
        return found.fault(where, f"file_name {file_name!a} {why}; use a path inside the folder, relative to it")
    try:
        path = (folder / file_name).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        return found.fault(where, f"{file_name} does not exist; remove the row or add the picture", skippable=True)
    if not path.is_relative_to(folder.resolve()):
        return found.fault(where, f"{file_name} is a link that leaves the folder; copy the picture into it")
    if path in seen:
        return found.fault(where, f"{file_name} is in line {seen[path]} too; put its captions into one row, as a list")
    seen[path] = line
    captions = _captions_of(row.get(column))
    if captions is None:
        return found.fault(where, f"{column!r} of {file_name} is no text or list of texts: {row.get(column)!a:.60}")
    found.entries.append(Entry(folder / file_name, captions, where, mask))
    return None


def _mask_of(folder: Path, where: str, row: dict[Any, Any], found: Found) -> Mask | None:
    """The mask that a row names, there or not."""
    column = next((c for c in masks.COLUMNS if row.get(c) not in (None, "")), "")
    name = row.get(column)
    if name is None:
        return None
    if not isinstance(name, str):
        found.fault(where, f"{column} is {name!r:.60}, not the name of a file")
    elif why := _outside(name):
        found.fault(where, f"{column} {name!a} {why}; use a path inside the folder, relative to it")
    elif _leaves(folder / name, folder):
        found.fault(where, f"{column} {name} is a link that leaves the folder; copy the mask into it")
    else:
        return Mask(folder / name, f'the column "{column}"')
    return None


def _leaves(path: Path, *roots: Path) -> bool:
    """Whether `path` leads out of all `roots`, or in circles."""
    try:
        return not any(path.resolve().is_relative_to(root.resolve()) for root in roots)
    except (OSError, RuntimeError):
        return True


def _captions_of(value: object) -> tuple[str, ...] | None:
    """The captions that are not blank; None if `value` is of no use as captions (JSON can even hold half characters)."""
    values: list[Any] = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(v, str) and _is_text(v) for v in values):
        return None
    return tuple(v.strip() for v in values if v.strip())


def _is_text(value: str) -> bool:
    try:
        return b"\0" not in value.encode("utf-8")
    except UnicodeEncodeError:
        return False


def _outside(name: str) -> str:
    """Why `name` is no plain relative path, or nothing."""
    plain = unquote(name)
    windows = PureWindowsPath(plain)
    if not _is_text(plain):
        return "holds characters that are no text"
    if "://" in plain or plain.lower().startswith(("file:", "data:", "http:", "https:")):
        return "is an address"
    if PurePosixPath(plain).is_absolute() or windows.drive or windows.root or plain.startswith("~"):
        return "is an absolute path"
    if ".." in windows.parts:
        return "leaves the folder"
    return "has a backslash" if "\\" in plain else ""


def _jsonl(path: Path, found: Found) -> Iterator[tuple[int, dict[Any, Any]]]:
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        return found.fault(path.name, _reason(error))
    for number, raw in enumerate(lines, 1):
        where = f"{path.name}:{number}"
        if not raw.strip():
            continue
        try:
            row = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            found.fault(where, not_utf8(raw, error))
            if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                return None
        except (ValueError, RecursionError) as error:
            found.fault(where, f"not valid JSON: {error}; mend or remove the line")
        else:
            if isinstance(row, dict):
                yield number, row
            else:
                found.fault(where, 'not an object like {"file_name": "a.png", "text": "a cat"}')
    return None


def _csv(path: Path, found: Found) -> Iterator[tuple[int, dict[Any, Any]]]:
    raw = b""
    try:
        raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return found.fault(f"{path.name}:{raw[: error.start].count(10) + 1}", not_utf8(raw, error))
    except OSError as error:
        return found.fault(path.name, _reason(error))
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    last = 1  # a quoted caption may span lines: a row is named by its first one
    try:
        for row in reader:
            line, last = last + 1, reader.line_num
            if None in row or None in row.values():
                found.fault(
                    f"{path.name}:{line}", "other fields than the first line has; put captions with commas in quotes"
                )
            else:
                yield line, row
    except csv.Error as error:
        found.fault(f"{path.name}:{last + 1}", f"not valid CSV: {error}")
    return None


# ---- a.png with a.txt beside it


def _read_sidecars(folder: Path, files: list[Path], found: Found) -> None:
    """Pictures with a text of the same stem beside them, one caption a line."""
    pictures: dict[Path, list[Path]] = defaultdict(list)
    files = _without_masks(folder, files, found)
    for path in files:
        if _is_picture(path):
            pictures[path.with_suffix("")].append(path)
    root = folder.resolve()
    for stem, sharing in pictures.items():
        text = stem.with_name(stem.name + ".txt")
        name = _name(text, folder)
        if len(sharing) > 1 and text.exists():
            shown = listed([p.name for p in sharing])
            found.fault(name, f"belongs to more than one picture ({shown}); give the pictures different names")
            continue
        if text.exists() and not text.resolve().is_relative_to(root):
            found.fault(name, "a link that leaves the folder; copy the file into it")
            continue
        captions = _lines(text, name, found) if text.is_file() else ()
        if captions is None:
            continue
        for path in sharing:
            if path.resolve().is_relative_to(root):
                found.entries.append(Entry(path, captions, name))
            else:
                found.fault(_name(path, folder), "a link that leaves the folder; copy the picture into it")
    _tell_of_others(folder, files, set(pictures), found)
    found.notes.insert(0, f"pictures with .txt files: {plural(len(found.entries), 'picture')}")


def _without_masks(folder: Path, files: list[Path], found: Found) -> list[Path]:
    """The files that are no masks. A fault for what its folder makes a mask and its caption a picture."""
    there = set(files)
    for mask, of in found.masks:
        text = mask.file.with_suffix(".txt")
        if text in there and mask.file.parent != of.parent:
            found.fault(
                _name(mask.file, folder),
                f"{_both(mask, of, folder)}; rename the folder, or remove {_name(text, folder)}",
            )
    there -= {mask.file for mask, _ in found.masks}
    return [p for p in files if p in there]


def _lines(path: Path, name: str, found: Found) -> tuple[str, ...] | None:
    """The lines of a caption file that are not blank; None if it cannot be read, which is then a fault."""
    raw = b""
    try:
        raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found.fault(name, not_utf8(raw, error), skippable=True)
        return None
    except OSError as error:
        found.fault(name, _reason(error), skippable=True)
        return None
    if "\0" in text:
        found.fault(name, f"a NUL character at byte {raw.index(0)}; save it as UTF-8 text", skippable=True)
        return None
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _tell_of_others(folder: Path, files: list[Path], stems: set[Path], found: Found) -> None:
    """Faults for pictures of formats that are not read, notes for what belongs to no picture."""
    alone, other = [], []
    for path in files:
        name = _name(path, folder)
        if path.suffix.lower() in FOREIGN_SUFFIXES:
            found.fault(name, "not one of the formats that are read; convert it to PNG or JPEG", skippable=True)
        elif path.suffix == ".txt" and path.with_suffix("") not in stems:
            alone.append(name)
        elif path.suffix != ".txt" and not _is_picture(path):
            other.append(name)
    if alone:
        found.notes.append(f"{plural(len(alone), '.txt file')} without a picture: {listed(alone)}")
    if other:
        found.notes.append(f"{plural(len(other), 'other file')} not read: {listed(other)}")


# ---- masks


def _both(mask: Mask, of: Path, folder: Path) -> str:
    return f"has a caption like a picture and the name of a mask ({mask.kind}) of {_name(of, folder)}"


def _give_masks(folder: Path, mask_folder: Path | None, found: Found) -> None:
    """Each entry its mask. A fault where it has several, or where a mask has several pictures."""
    named: dict[Path, list[Mask]] = defaultdict(list)
    for mask, of in found.masks:
        named[of].append(mask)
    for mask, of in _masks_elsewhere(folder, mask_folder, found):
        named[of].append(mask)
    sharing: dict[Path, list[int]] = defaultdict(list)
    for i, entry in enumerate(found.entries):
        sharing[entry.image.with_suffix("")].append(i)
    for stem, places in sharing.items():
        if named[stem] and len(places) > 1:
            shown = listed([found.entries[i].image.name for i in places])
            what = f"belongs to more than one picture ({shown}); give the pictures different names"
            found.fault(_name(named[stem][0].file, folder), what)
            continue
        for i in places:
            _give(found.entries[i], i, named[stem], folder, mask_folder, found)
    used = {entry.mask.file for entry in found.entries if entry.mask}
    if alone := [_name(m.file, folder) for m, of in found.masks if of not in sharing and m.file not in used]:
        found.notes.append(f"{plural(len(alone), 'mask')} without a picture: {listed(alone)}")


def _give(entry: Entry, i: int, named: list[Mask], folder: Path, mask_folder: Path | None, found: Found) -> None:
    """Entry number `i` the one mask of those by name and the one of its row."""
    all_of = list({m.file.resolve(): m for m in [*filter(None, [entry.mask]), *named]}.values())
    if len(all_of) > 1:
        shown = listed([_name(m.file, folder) for m in all_of])
        found.fault(_name(entry.image, folder), f"has more than one mask ({shown}); remove all but one")
    elif all_of and _leaves(all_of[0].file, folder, *filter(None, [mask_folder])):
        found.fault(_name(all_of[0].file, folder), "a link that leaves the folder; copy the file into it")
    elif all_of:
        found.entries[i] = replace(entry, mask=all_of[0])


def _masks_elsewhere(folder: Path, mask_folder: Path | None, found: Found) -> Iterator[tuple[Mask, Path]]:
    """The masks in `mask_folder` and whose they may be. That of train/a.png may lie in train/ there, too, or not."""
    for path in filter(_is_picture, _walk(mask_folder, (), found) if mask_folder else ()):
        assert mask_folder
        parts = masks.owner(path).relative_to(mask_folder).parts
        yield Mask(path, "data.mask_path"), folder.joinpath(*parts)
        if parts[0] == folder.name:
            yield Mask(path, "data.mask_path"), folder.joinpath(*parts[1:])


def not_utf8(raw: bytes, error: UnicodeDecodeError) -> str:
    """What is wrong with a text, by the byte where it stops being UTF-8 (counted from 0, without a leading mark)."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "is UTF-16 (byte 0); save it as UTF-8"
    return f"is not UTF-8 at byte {error.start} (0x{raw[error.start]:02x}); save it as UTF-8"


def _reason(error: OSError) -> str:
    return f"{(error.strerror or 'cannot be read').lower()}; check the file and its permissions"
