"""Pictures inside other files, called by a path through them: shards/00000.tar/000123.jpg, or a row as in `rows`. Imports no torch."""

from __future__ import annotations

import errno
import io
import tarfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from sdtune.data import rows

SUFFIX = ".tar"
SUFFIXES = (SUFFIX, *rows.SUFFIXES)


class Member(NamedTuple):
    offset: int
    size: int


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, or of an archive's member or row. Raises OSError."""
    if (archive := archive_of(path)) is None:
        return path.read_bytes()
    if archive.suffix != SUFFIX:
        return rows.read_bytes(archive, path.relative_to(archive).as_posix())
    member = _member(archive, path)
    with archive.open("rb") as file:
        file.seek(member.offset)
        return file.read(member.size)


def size(path: Path) -> int:
    """Its length in bytes. Raises OSError."""
    if (archive := archive_of(path)) is None:
        return path.stat().st_size
    if archive.suffix != SUFFIX:
        return rows.size(archive, path.relative_to(archive).as_posix())
    return _member(archive, path).size


def _member(archive: Path, path: Path) -> Member:
    try:
        return inside(archive)[path.relative_to(archive).as_posix()]
    except (KeyError, tarfile.TarError) as error:
        raise FileNotFoundError(errno.ENOENT, "no such member of the archive, or it is damaged", str(path)) from error


def archive_of(path: Path) -> Path | None:
    """The archive that `path` leads into, if it does."""
    if not any(suffix in str(path) for suffix in SUFFIXES):  # nearly always, and parents are slow
        return None
    return next((p for p in path.parents if p.suffix in SUFFIXES and p.is_file()), None)


def inside(archive: Path) -> dict[str, Member]:
    """Name -> place of all regular files in an uncompressed tar; the last one of a name. Nothing is unpacked.

    Raises tarfile.TarError, OSError.
    """
    return _read(archive, archive.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _read(archive: Path, modified: int) -> dict[str, Member]:
    """`modified` makes a changed file a new one."""
    with archive.open("rb") as raw, tarfile.open(fileobj=io.BufferedReader(raw), mode="r:") as tar:
        return {m.name.removeprefix("./"): Member(m.offset_data, m.size) for m in tar if m.isreg()}
