"""Files that appear under their name whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Written beside, flushed to disk, renamed; nothing is left behind when the writing fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o666 & ~_umask())
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: object) -> None:
    write_text(path, as_json(value))


def is_ours(path: Path, mark: str) -> bool:
    """Whether a file begins with `mark`, or is not there: it may be written over."""
    try:
        with path.open("rb") as file:
            return file.read(len(mark.encode())) == mark.encode()
    except FileNotFoundError:
        return True
    except OSError:
        return False


def free_bytes(path: Path) -> int:
    """The room on the disk where `path` is or would be."""
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free


def cache_home() -> Path:
    """Where sdtune keeps what it can make or fetch again: $SDTUNE_CACHE, else `sdtune` in $XDG_CACHE_HOME or ~/.cache. Not created here."""
    if chosen := os.environ.get("SDTUNE_CACHE"):
        return Path(chosen).expanduser().absolute()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))  # a relative path counts as unset (XDG base directories)
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "sdtune"


def as_json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
