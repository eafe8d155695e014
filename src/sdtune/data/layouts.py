"""What every reader of a folder of pictures works with: entries, faults, notes, and the rules for names. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import unquote

from sdtune.data import masks
from sdtune.data.images import SUFFIXES
from sdtune.data.masks import Mask

AUTO_COLUMN = "text"
"""`data.caption_column` while nothing else is said; layouts with columns of their own take it for "as usual"."""


@dataclass(frozen=True)
class Entry:
    """A picture that exists inside the folder, with its captions as written (none, if it has none)."""

    image: Path
    captions: tuple[str, ...]
    where: str
    """What to name when its caption is at fault: "a.txt" or "metadata.jsonl:3"."""
    mask: Mask | None = None
    repeats: int = 1
    """How often an epoch shows it."""
    row: Mapping[str, object] = field(default_factory=dict, compare=False)
    """What else its metadata says, by column: where `Folder.rows` asks for it."""


@dataclass(frozen=True)
class Fault:
    where: str
    what: str
    """What is wrong, and the remedy."""
    skippable: bool = False
    """Whether leaving this one picture out would be a cure."""
    kind: str = "dataset"
    """One of `sdtune.data.check.kinds`."""
    pictures: tuple[Path, ...] = ()
    """The pictures that it is about, to be shown; none of them leads out of the folder."""
    out: tuple[Path, ...] = ()
    """Of those, the ones that "skip" leaves out. Empty: all."""
    detail: str = ""
    """What is true of this one alone, such as its size; `what` is the same for all of its kind."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.detail})" if self.detail else "")


@dataclass
class Found:
    """What a folder holds."""

    entries: list[Entry] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    masks: list[tuple[Mask, Path]] = field(default_factory=list)
    """Files that are masks by their names, so no entries; and whose they are, a path without suffix."""
    listed: int = 0
    """Files seen so far: with the entries, how far a reading in another thread is."""
    stopped: bool = False
    """Set by who does not wait for it any longer: no more files are listed or read."""

    def fault(
        self, where: str, what: str, *, skippable: bool = False, kind: str = "", pictures: tuple[Path, ...] = ()
    ) -> None:
        self.faults.append(Fault(where, what, skippable, kind or ("row" if skippable else "dataset"), pictures))


@dataclass(frozen=True)
class Folder:
    """A folder to be read, and how: what a reader looks at."""

    path: Path
    listing: Sequence[Path] | Callable[[], Sequence[Path]]
    """All files in it and below, in a fixed order; or what finds them when they are first asked for."""
    column: str = AUTO_COLUMN
    roots: tuple[Path, ...] = ()
    """Other folders that files in this one may point into."""
    masked: bool = False
    """Whether masks are wanted."""
    file: Path | None = None
    """The one file in it that was named instead of the folder."""
    rows: bool = False
    """Whether the other columns of metadata are wanted, too."""
    named: bool = False
    """Whether the user said which layout it is."""

    @cached_property
    def files(self) -> list[Path]:
        """All files but the `links`."""
        return [p for p in self._all if p not in self.links] if self.links else self._all

    @cached_property
    def links(self) -> frozenset[Path]:
        """Files that are links out of the folder and of `roots`: never to be opened."""
        return frozenset(p for p in self._all if p.is_symlink() and not self.holds(p))

    @cached_property
    def masks(self) -> list[tuple[Mask, Path]]:
        """The files that are masks by their names, and whose they are."""
        return list(masks.by_name(self.files, self.path))

    @cached_property
    def pictures(self) -> list[Path]:
        """The pictures that are no masks."""
        hidden = {mask.file for mask, _ in self.masks}
        return [p for p in self.files if is_picture(p) and not (hidden and p in hidden)]

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of the files directly in it."""
        depth = len(self.path.parts) + 1
        return frozenset(p.name for p in self.files if len(p.parts) == depth)

    @cached_property
    def _all(self) -> list[Path]:
        return list(self.listing() if callable(self.listing) else self.listing)

    @cached_property
    def _resolved(self) -> tuple[Path, ...]:
        return tuple(root.resolve() for root in (self.path, *self.roots))

    def name(self, path: Path) -> str:
        """`path` as it is called in messages."""
        return called(path, self.path)

    def holds(self, path: Path) -> bool:
        """Whether `path` leads into this folder or one of its `roots`, links followed, and not in circles."""
        try:
            target = path.resolve()
        except (OSError, RuntimeError):
            return False
        return any(target.is_relative_to(root) for root in self._resolved)


def listed(names: Collection[str], limit: int = 5) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(list(names)[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def plural(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"


def shown(path: Path) -> str:
    """A path as text that can be printed and stored, whatever bytes the file system allows in names."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode("utf-8")


def called(path: Path, root: Path) -> str:
    """`path` as it is called in messages: relative to `root` if it lies there. By its text, since a set has 100,000 of them."""
    text, top = shown(path), shown(root)
    if text == top:
        return "."
    return text.removeprefix(top if top.endswith("/") else f"{top}/")


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def walk(folder: Path, skip: Collection[str], found: Found) -> Iterator[Path]:
    """All files in a fixed order, hidden ones left out."""

    def unreadable(error: OSError) -> None:
        at = Path(error.filename or folder)
        found.fault(shown(at.relative_to(folder) if at.is_relative_to(folder) else at), reason(error))

    for parent, folders, names in os.walk(folder, onerror=unreadable):
        if found.stopped:
            return
        here, top = Path(parent), Path(parent) == folder
        found.listed += len(names)
        if links := [f for f in folders if (here / f).is_symlink()]:
            linked = [shown((here / f).relative_to(folder)) for f in sorted(links)]
            found.notes.append(f"links to folders are not followed: {listed(linked)}")
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")) and not (top and f in skip))
        yield from (here / n for n in sorted(names) if not n.startswith(".") and n not in ("Thumbs.db", "desktop.ini"))


# ---- names that files give


def leads_into(path: Path, *roots: Path) -> bool:
    """Whether `path` leads into one of `roots`, links followed; not if it leads in circles."""
    try:
        return any(path.resolve().is_relative_to(root.resolve()) for root in roots)
    except (OSError, RuntimeError):
        return False


def outside(name: str, *, absolute: bool = False) -> str:
    """Why `name` is no plain relative path (or absolute one, where that is allowed), or nothing."""
    plain = unquote(name)
    windows = PureWindowsPath(plain)
    if not is_text(plain):
        return "holds characters that are no text"
    if "://" in plain or plain.lower().startswith(("file:", "data:", "http:", "https:")):
        return "is an address"
    if (PurePosixPath(plain).is_absolute() or windows.drive or windows.root or plain.startswith("~")) and not absolute:
        return "is an absolute path"
    if ".." in windows.parts:
        return "leaves the folder"
    return "has a backslash" if "\\" in plain and not (absolute and windows.drive) else ""


def located(folder: Folder, name: object, where: str, found: Found, *, what: str = "file_name") -> Path | None:
    """The file inside `folder` (or, by its absolute path, inside one of `folder.roots`) that a row calls `name`; else a fault."""
    if not isinstance(name, str) or not name.strip():
        found.fault(where, f"{what} is {name!r}, not the name of a file")
        return None
    if why := outside(name, absolute=bool(folder.roots)):
        remedy = "use a path inside the folder, relative to it"
        remedy += ", or name the folder that it leads into in data.roots" if why == "is an absolute path" else ""
        found.fault(where, f"{what} {name!a} {why}; {remedy}", kind="outside")
        return None
    try:
        (folder.path / name).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        found.fault(where, f"{name} does not exist; remove the row or add the picture", skippable=True, kind="missing")
        return None
    if not folder.holds(folder.path / name):
        found.fault(
            where,
            f"{name} is outside of the folder and of data.roots; name the folder that holds it there"
            if Path(name).is_absolute()
            else f"{name} is a link that leaves the folder; copy the picture into it",
            kind="outside",
        )
        return None
    return folder.path / name


# ---- texts


def is_text(value: str) -> bool:
    try:
        return b"\0" not in value.encode("utf-8")
    except UnicodeEncodeError:
        return False


def captions_of(value: object) -> tuple[str, ...] | None:
    """The captions that are not blank; None if `value` is of no use as captions (JSON can even hold half characters)."""
    values: list[Any] = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(v, str) and is_text(v) for v in values):
        return None
    return tuple(v.strip() for v in values if v.strip())


def text_of(path: Path, name: str, found: Found, *, skippable: bool = False) -> str | None:
    """The text of a UTF-8 file; None if it cannot be read, which is then a fault."""
    if found.stopped:
        return None
    raw = b""
    try:
        raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found.fault(name, not_utf8(raw, error), skippable=skippable, kind="not_utf8")
        return None
    except OSError as error:
        found.fault(name, reason(error), skippable=skippable)
        return None
    if "\0" in text:
        what = f"a NUL character at byte {raw.index(0)}; save it as UTF-8 text"
        found.fault(name, what, skippable=skippable, kind="not_utf8")
        return None
    return text


def not_utf8(raw: bytes, error: UnicodeDecodeError) -> str:
    """What is wrong with a text, by the byte where it stops being UTF-8 (counted from 0, without a leading mark)."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "is UTF-16 (byte 0); save it as UTF-8"
    return f"is not UTF-8 at byte {error.start} (0x{raw[error.start]:02x}); save it as UTF-8"


def reason(error: OSError) -> str:
    return f"{(error.strerror or 'cannot be read').lower()}; check the file and its permissions"
