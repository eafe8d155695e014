"""Captioned pictures to a folder: an imagefolder or WebDataset's tar files, whole under its name or not there at all. Imports no torch.

All is written into a hidden folder beside OUT, which in the end gets OUT's name. A run that was killed leaves that folder; the
same command goes on in it, and one of another source or with other options begins it anew.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import unicodedata
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Literal

from sdtune.data import archives, layouts, masks
from sdtune.data.images import KINDS, SUFFIXES, kind_of
from sdtune.data.layouts import Entry, is_text, shown
from sdtune.errors import DataError
from sdtune.files import atomic_write, write_json
from sdtune.happened import Happened

To = Literal["imagefolder", "webdataset"]
MARK = ".sdtune-set.json"
"""In each folder that was written: from what, so that the same command knows that it is done."""
BEGUN = ".sdtune-begun.json"
"""In the hidden folder until it has its name: of what it is being written, so that only the same goes on in it."""
METADATA = "metadata.jsonl"
MASKS = "masks"
MB = 2**20
_NO_NAME = re.compile(r'[\x00-\x1f\x7f<>:"\\|?*%\ud800-\udfff]')
"""Characters that some file system refuses, or that are read as something else in a name."""


@dataclass(frozen=True)
class Item:
    """A picture to be written."""

    split: str
    """"train", "validation", "test"; "" where there are no splits."""
    entry: Entry
    name: str
    """Its path in the split's folder, with / and without a suffix; unique there whatever the case of letters."""


@dataclass(frozen=True)
class Wish:
    """What is to be written, and how."""

    out: Path
    to: To = "imagefolder"
    link: bool = False
    """Hard links instead of copies, where the file system lets them be."""
    shard_mb: int = 256
    """Of a tar file: so large at most, unless one picture is larger."""
    shard_pictures: int = 10_000


@dataclass(frozen=True)
class Written(Happened):
    """What became of it so far."""

    done: int
    total: int
    bytes: int = 0
    """Of pictures and masks; of whole tar files that were there."""
    linked: int = 0
    kept: int = 0
    """Files that an earlier run, which did not end, had written."""
    already: bool = False
    """The folder was there, made of the same: nothing was to do."""


@dataclass
class _Tally:
    total: int
    done: int = 0
    bytes: int = 0
    linked: int = 0
    kept: int = 0

    def told(self) -> Written:
        return Written(**vars(self))


def named(entries: Sequence[tuple[str, Entry, str]]) -> list[Item]:
    """Items of (split, entry, path in its source): the path is kept where it may be, and made unique in its split."""
    taken: set[tuple[str, str]] = set()
    items = []
    for split, entry, path in entries:
        name = stem = plain_name(path)
        number = 1
        while (split, folded := _folded(name)) in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add((split, folded))
        items.append(Item(split, entry, name))
    return items


def plain_name(path: str) -> str:
    """A path without suffix that every file system takes and that no reader takes for something else."""
    *folders, last = PurePosixPath(path).parts
    stem = last[: -len(suffix)] if (suffix := PurePosixPath(last).suffix).lower() in SUFFIXES else last
    parts = [_plain(part) for part in folders] + [
        _plain(stem).replace(".", "_")
    ]  # a sample's key ends at the first dot
    name = "/".join(parts)
    return (
        name if not layouts.outside(name) else hashlib.sha256(path.encode("utf-8", "backslashreplace")).hexdigest()[:16]
    )


def _plain(part: str) -> str:
    part = _NO_NAME.sub("_", part).rstrip(" .")
    part = re.sub(r"^[.~]", "_", part.strip()) or "_"
    meant = part.lower() in (*masks.FOLDERS, "__macosx") or part.lower().endswith(masks.LABEL)
    return f"{part}_" if meant else part


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def suffix_of(path: Path, data: bytes) -> str:
    """The suffix of a picture's name if it is one that readers know, else what its first bytes say."""
    if path.suffix.lower() in SUFFIXES:
        return path.suffix
    return KINDS[kind_of(data) or "PNG"][0]


# ---- the folder as a whole


def write(items: Sequence[Item], wish: Wish, source: str) -> Iterator[Written]:
    """Write the items, telling after each; the last is the whole. Raises DataError: OUT holds something else, or a file cannot be had."""
    written = _Tally(len(items))
    out = wish.out.expanduser().absolute()
    fingerprint = _fingerprint(items, wish)
    if _is_done(out, fingerprint, source):
        yield Written(len(items), len(items), already=True)
        return
    part = out.with_name(f".{out.name}.part")
    _begin(part, fingerprint)
    kinds = _imagefolder if wish.to == "imagefolder" else _webdataset
    try:
        for split, of in groupby(sorted(items, key=lambda item: item.split), key=lambda item: item.split):
            yield from kinds(part / split, list(of), wish, written)
        write_json(part / MARK, {"fingerprint": fingerprint, "source": source, "to": wish.to, "pictures": len(items)})
        _finish(part, out)
        (out / BEGUN).unlink()
    except OSError as error:
        raise DataError(f"{error.filename or part}: {layouts.reason(error)}; the same command goes on") from None
    yield written.told()


def check_place(out: Path) -> None:
    """Refuse a place that cannot become the folder, before anything is read. Raises DataError."""
    out = out.expanduser()
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; name a folder")
    if out.is_dir() and not (out / MARK).is_file() and (there := sorted(p.name for p in out.iterdir())):
        raise DataError(f"{out}: holds something else ({layouts.listed(there)}); choose another folder, or empty it")


def _is_done(out: Path, fingerprint: str, source: str) -> bool:
    """Whether the folder is there, made of the same. Raises DataError if it holds something else."""
    check_place(out)
    if not (out / MARK).is_file():
        return False
    try:
        mark = json.loads((out / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        mark = {}
    if isinstance(mark, dict) and mark.get("fingerprint") == fingerprint:
        return True
    was = mark.get("source") if isinstance(mark, dict) else None
    what = f"was made of {source} as it was before, or with other options" if was == source else f"was made of {was}"
    raise DataError(f"{out}: {what}; choose another folder, or remove it")


def _begin(part: Path, fingerprint: str) -> None:
    """The hidden folder, empty or with what a run of the same left in it. Raises DataError."""
    try:
        begun = json.loads((part / BEGUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        begun = None
    try:
        if part.exists() and begun is None and any(part.iterdir()):
            raise DataError(f"{part}: is there and was not begun by sdtune; remove it")
        if begun is not None and begun != fingerprint:
            shutil.rmtree(part)
        part.mkdir(parents=True, exist_ok=True)
        for left in part.rglob(".*.tmp"):  # of a writer that was killed
            left.unlink()
        write_json(part / BEGUN, fingerprint)
    except OSError as error:
        raise DataError(f"{part}: {layouts.reason(error)}") from None


def _finish(part: Path, out: Path) -> None:
    """All to disk, then the name: single files are not flushed, which would take longer than copying them."""
    if hasattr(os, "sync"):
        os.sync()
    if out.is_dir():
        out.rmdir()
    os.replace(part, out)


def _fingerprint(items: Sequence[Item], wish: Wish) -> str:
    """Of all that decides what is written: names, captions, other columns; size and time of the files."""
    told = hashlib.sha256(json.dumps([wish.to, wish.link, wish.shard_mb, wish.shard_pictures]).encode())
    stamps: dict[Path, str] = {}
    for item in items:
        files = [item.entry.image, *([item.entry.mask.file] if item.entry.mask else [])]
        for path in files:
            file = archives.archive_of(path) or path
            if file not in stamps:
                with suppress(OSError):  # which the copying says
                    stamps[file] = f"{file.stat().st_size}/{file.stat().st_mtime_ns}"
        row = [
            item.split,
            item.name,
            item.entry.captions,
            _row(item.entry.row),
            *(shown(p) + stamps.get(archives.archive_of(p) or p, "") for p in files),
        ]
        told.update(json.dumps(row, sort_keys=True).encode())
    return told.hexdigest()


# ---- imagefolder


def _imagefolder(folder: Path, items: Sequence[Item], wish: Wish, written: _Tally) -> Iterator[Written]:
    rows = []
    for item in items:
        data = _bytes(item.entry.image)
        file_name = item.name + suffix_of(item.entry.image, data)
        _put(item.entry.image, data, folder / file_name, wish, written)
        row: dict[str, object] = {"file_name": file_name, "text": _text(item.entry.captions)}
        if item.entry.mask:
            mask = item.entry.mask.file
            data = _bytes(mask)
            row["mask_file_name"] = f"{MASKS}/{item.name}{suffix_of(mask, data)}"
            _put(mask, data, folder / str(row["mask_file_name"]), wish, written)
        rows.append(row | _renamed(_row(item.entry.row), {*row, "text", *masks.COLUMNS}))
        written.done += 1
        yield written.told()
    with atomic_write(folder / METADATA) as file:
        file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def _put(source: Path, data: bytes, target: Path, wish: Wish, written: _Tally) -> None:
    """The file under its name: linked, kept from a run that did not end if it is the same to the last byte, or written."""
    written.bytes += len(data)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        if target.read_bytes() == data:
            written.kept += 1
            return
        target.unlink()
    if wish.link and source.is_file():
        with suppress(OSError):  # another disk, or a file system without links
            os.link(source.resolve(), target)
            written.linked += 1
            return
    part = target.with_name(f".{target.name}.tmp")
    part.write_bytes(data)
    os.replace(part, target)


def _text(captions: tuple[str, ...]) -> object:
    return captions[0] if len(captions) == 1 else list(captions) if captions else ""


def _renamed(row: Mapping[str, object], taken: set[str]) -> dict[str, object]:
    return {f"source_{name}" if name in taken else name: value for name, value in row.items()}


def _row(row: Mapping[str, object]) -> dict[str, object]:
    """What of a row JSON can hold plainly: texts, numbers, truths, lists of them."""

    def plain(value: object) -> bool:
        if isinstance(value, list):
            return all(plain(v) and not isinstance(v, list) for v in value)
        return (isinstance(value, str) and is_text(value)) or (
            isinstance(value, int | float) and value == value and abs(value) != float("inf")
        )

    return {name: value for name, value in row.items() if is_text(name) and plain(value)}


def lost_columns(items: Sequence[Item]) -> list[str]:
    """Columns of the source whose values cannot be kept, somewhere."""
    rows = [item.entry.row for item in items]
    there = {name for row in rows for name, value in row.items() if value not in (None, "", [])}
    return sorted(there - {name for row in rows for name in _row(row)})


# ---- WebDataset


def _webdataset(folder: Path, items: Sequence[Item], wish: Wish, written: _Tally) -> Iterator[Written]:
    """Tar files of samples. A file that is there whole is kept: its name is given when it is on the disk."""
    number, todo = 0, deque(items)
    while todo:
        shard = folder / f"{number:05d}.tar"
        if shard.is_file():
            members = map(PurePosixPath, archives.inside(shard))
            count = len({m.with_name(m.name.partition(".")[0]) for m in members})
            for _ in range(min(count, len(todo))):
                todo.popleft()
                written.done += 1
            written.kept += 1
            written.bytes += shard.stat().st_size
        else:
            with atomic_write(shard) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                count = 0
                while todo and count < wish.shard_pictures and (not count or file.tell() < wish.shard_mb * MB):
                    _add_sample(tar, todo.popleft(), written)
                    count += 1
                    written.done += 1
                    yield written.told()
        number += 1


def _add_sample(tar: tarfile.TarFile, item: Item, written: _Tally) -> None:
    entry, key = item.entry, item.name
    data = _bytes(entry.image)
    _add(tar, key + suffix_of(entry.image, data), data)
    written.bytes += len(data)
    lines = [line for caption in entry.captions for line in caption.splitlines()]
    row = _renamed(_row(entry.row), {"caption", "key"})
    if entry.captions and lines == list(entry.captions):
        _add(tar, f"{key}.txt", "\n".join(lines).encode())
    elif entry.captions:  # a line break inside a caption: one a line would be read as two
        row["caption"] = list(entry.captions)
    if row:
        _add(tar, f"{key}.json", json.dumps(row, ensure_ascii=False).encode())
    if entry.mask:
        data = _bytes(entry.mask.file)
        _add(tar, f"{key}.mask{suffix_of(entry.mask.file, data)}", data)
        written.bytes += len(data)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # with no time and no owner: the same pictures give the same file
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _bytes(path: Path) -> bytes:
    """Raises DataError."""
    try:
        return archives.read_bytes(path)
    except OSError as error:
        raise DataError(f"{shown(path)}: {layouts.reason(error)}") from None
